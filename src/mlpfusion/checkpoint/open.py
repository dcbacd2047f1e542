"""Opens a checkpoint once: its config at once, everything else on first use."""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.config import CONFIG
from mlpfusion.checkpoint.files import adapter_beside
from mlpfusion.checkpoint.padding import agree_on_padding
from mlpfusion.checkpoint.read import check_finite, check_weights, empty_model, load_model, origin, read_config, resolve
from mlpfusion.checkpoint.tokenizer import add_tokens, load_tokenizer
from mlpfusion.checkpoint.weights import stored_tensors
from mlpfusion.checks import user_path
from mlpfusion.errors import InputError
from mlpfusion.options.mlps import USUAL_MLPS, MLPOptions
from mlpfusion.record import Origin
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.table import ARCHITECTURES, Architecture, architecture_to_dict, read_architecture

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of transformers in `folder`; what is not asked for is not read.

    `name` and `revision` are what the user gave, `mlps` what was said of where the MLPs are.
    With `new_head` a trained head counts as missing. `new_tokens` are added to the tokenizer, and to the vocabulary of
    the `training_config`, where they are missing.
    """

    name: str
    revision: str | None
    folder: Path
    config: PreTrainedConfig
    mlps: MLPOptions = USUAL_MLPS
    new_head: bool = False
    new_tokens: tuple[str, ...] = ()

    @cached_property
    def row(self) -> Architecture:
        """Where the MLPs are: as a row file says, or found. Raises `InputError` for a bad file, and where none is."""
        file, stacks = self.mlps.architecture, self.mlps.stacks
        if file is not None:
            known = read_architecture(user_path("architecture", file))
            return known if stacks is None else find_architecture(self.empty(), stacks, known)
        known = ARCHITECTURES.get(self.config.model_type)
        if known is not None and stacks is None and not any(stack.is_of_experts for stack in known.stacks):
            return known
        return find_architecture(self.empty(), stacks)

    def row_for_identity(self) -> dict[str, Any]:
        """What tells runs on different rows apart: any row but that of the table for the model type."""
        is_usual = self.row == ARCHITECTURES.get(self.config.model_type)
        return {} if is_usual else {"architecture": architecture_to_dict(self.row)}

    @cached_property
    def weight_files(self) -> list[Path]:
        """The weight files, their headers checked. Raises `InputError` for missing or damaged ones."""
        return check_weights(self.folder)

    @cached_property
    def tensors(self) -> frozenset[str]:
        """The names in the weight files."""
        return frozenset(stored_tensors(self.weight_files))

    @cached_property
    def sha256(self) -> str:
        """Hash of config and weights, all of which are read. Raises `InputError` for NaN or Inf in a weight."""
        digest = hashlib.sha256((self.folder / CONFIG).read_bytes())
        for file in self.weight_files:
            check_finite(file)
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token. Raises `InputError` where there is none."""
        tokenizer = load_tokenizer(self.folder, self.config)
        add_tokens(tokenizer, self.new_tokens)
        return tokenizer

    @cached_property
    def training_config(self) -> PreTrainedConfig:
        """A copy of the config with the padding id of the tokenizer, and room for `new_tokens`."""
        config = agree_on_padding(self.config, self.tokenizer)
        if self.new_tokens:
            text = config.get_text_config()
            text.vocab_size = max(text.vocab_size, len(self.tokenizer))
        return config

    def at(self, folder: Path) -> "Checkpoint":
        """The same with the files of `folder`, a later stage of it."""
        return replace(self, folder=folder, config=read_config(folder))

    @property
    def origin(self) -> Origin:
        """Where the checkpoint came from, for records and cards."""
        return origin(self.name, self.revision, self.folder)

    def read_for_training(self) -> None:
        """Reads all that training needs. Raises `InputError` for NaN or Inf in a weight, and a missing tokenizer."""
        assert self.sha256
        assert self.training_config

    def empty(self) -> PreTrainedModel:
        """The model without memory for its weights, in the class of the checkpoint."""
        return empty_model(self.config)

    def load(self) -> PreTrainedModel:
        """The model with its weights, in the class of the checkpoint, in eval mode on the CPU.

        Raises `InputError` for damaged weights.
        """
        assert self.weight_files
        return load_model(self.folder, self.config).eval()


def open_checkpoint(
    name: str,
    revision: str | None = None,
    *,
    mlps: MLPOptions = USUAL_MLPS,
    new_head: bool = False,
    new_tokens: tuple[str, ...] = (),
    with_adapter: bool = False,
) -> Checkpoint:
    """Opens the folder or Hub id `name`; only its config is read.

    Raises `InputError` if there is no such checkpoint, or a config that is malformed or that of quantised weights, and
    unless `with_adapter` for a model that computes with an adapter beside it.
    """
    folder = resolve(name, revision)
    beside = None if with_adapter else adapter_beside(folder)
    if beside is not None:
        raise InputError(
            f"`model` must hold all that it computes, got {name}, whose adapter is not merged: `mlpfusion tune` and "
            f"`sparsify` take both with --adapter {beside}, `mlpfusion.load_adapted` loads both"
        )
    config = read_config(folder)
    _LOGGER.info("opened %s, a %s", name, config.model_type)
    return Checkpoint(name, revision, folder, config, mlps, new_head, new_tokens)


def open_for_training(
    name: str,
    revision: str | None = None,
    *,
    mlps: MLPOptions = USUAL_MLPS,
    new_head: bool = False,
    new_tokens: tuple[str, ...] = (),
    with_adapter: bool = False,
) -> Checkpoint:
    """Opens a checkpoint as `open_checkpoint` does, and reads all that training needs of it.

    Raises `InputError` for damaged weights, NaN or Inf in a weight, and a missing tokenizer too.
    """
    checkpoint = open_checkpoint(
        name, revision, mlps=mlps, new_head=new_head, new_tokens=new_tokens, with_adapter=with_adapter
    )
    checkpoint.read_for_training()
    return checkpoint

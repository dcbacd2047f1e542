"""The parts of a composite model, and which of its stacks read text, images or sounds."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.errors import InputError, shown
from mlpfusion.sites.sites import has_module
from mlpfusion.sites.table import Stack

# What a stack reads; `other` is what joins two of them, and what no name tells.
Modality = Literal["text", "vision", "audio", "other"]
Role = Literal["experts", "shared", "dense"]
# Words in the name of a part, or of its class; the first that is found decides.
_WORDS: dict[Modality, tuple[str, ...]] = {
    "other": ("qformer", "projector", "resampler"),
    "vision": ("vision", "image", "visual", "video"),
    "audio": ("audio", "speech", "sound", "wav"),
}
# `main_input_name` of a class of transformers.
_INPUTS: dict[Modality, tuple[str, ...]] = {
    "text": ("input_ids",),
    "vision": ("pixel_values", "pixel_values_videos"),
    "audio": ("input_values", "input_features"),
}


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Config of the text model; `config` itself, but for composite ones. Several text models count as none."""
    try:
        return config.get_text_config()
    except ValueError:
        return config


def vocabulary_size(model: PreTrainedModel) -> int | None:
    """Number of token ids that `model` knows; None where it takes no ids."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # a model of two towers
        embeddings = None
    size = getattr(text_config(model.config), "vocab_size", None)
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else size


def parts_of(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """Names and configs of the models inside a composite model, those of their parts too: `vision_config`."""
    for name in config.sub_configs:
        part, inner = getattr(config, name, None), f"{path}.{name}" if path else name
        if isinstance(part, PreTrainedConfig):
            yield inner, part
            yield from parts_of(part, inner)


def owners_of(base: PreTrainedModel, path: str) -> list[PreTrainedModel]:
    """The models of transformers around the module at `path`, the innermost last; of a layer, those around its list."""
    names = path.partition(".{}")[0].split(".")
    paths = [".".join(names[:end]) for end in range(len(names))]
    around = [base.get_submodule(path) for path in paths if has_module(base, path)]
    return [one for one in around if isinstance(one, PreTrainedModel)]


def modality(base: PreTrainedModel, path: str) -> Modality:
    """What the module at `path` from `base` reads: what the part does that it is in, told by its config and its class.

    All that is in no part with a config of its own reads what the whole model does: both halves of Whisper read sound.
    """
    owner = owners_of(base, path)[-1]
    if isinstance(owner.config, type(base.config)):
        return _reads(base)
    if isinstance(owner.config, type(text_config(base.config))):
        return "text"
    names = [name for name, part in parts_of(base.config) if isinstance(owner.config, type(part))]
    told = " ".join((*names[:1], type(owner).__name__)).lower()
    found: list[Modality] = [what for what, words in _WORDS.items() if any(word in told for word in words)]
    return found[0] if found else _reads(owner)


def choose_stacks(base: PreTrainedModel, stacks: Sequence[Stack], choice: str | None) -> tuple[Stack, ...]:
    """Those of `stacks` that `choice` names.

    It names what they read (`text`, `vision`, `audio`), what they are in a model with mixtures of experts (`experts`,
    `shared`, `dense`), `all`, or shell patterns of their layers, several joined by commas. None are the experts of
    those that read text, or of all where none does; where there are no experts, all of these. Raises `InputError` for a
    choice without a stack.
    """
    reads: dict[Stack, Modality] = {stack: modality(base, stack.layer) for stack in stacks}
    if choice is None:
        usual = tuple(stack for stack in stacks if reads[stack] == "text") or tuple(stacks)
        return tuple(stack for stack in usual if stack.is_of_experts) or usual
    wanted = [one.strip() for one in str(choice).split(",")]
    for one in wanted:
        if not any(_is_meant(one, stack, reads[stack]) for stack in stacks):
            mixed = any(stack.is_of_experts for stack in stacks)
            words = {stack: f"{reads[stack]}, {role(stack)}" if mixed else reads[stack] for stack in stacks}
            layers = ", ".join(f"{stack.layer} ({words[stack]})" for stack in stacks)
            raise InputError(
                f"`stacks` must be {', '.join(_INPUTS)}, experts, shared, dense, all, or a pattern of layers, and fit "
                f"some of {layers}, got {shown(one)}"
            )
    return tuple(stack for stack in stacks if any(_is_meant(one, stack, reads[stack]) for one in wanted))


def role(stack: Stack) -> Role:
    """What the MLPs of a stack are: experts of a mixture, one beside it that every token goes through, or neither."""
    if stack.is_of_experts:
        return "experts"
    return "shared" if "shared" in f"{stack.layer}.{stack.up}" else "dense"


def _is_meant(choice: str, stack: Stack, reads: Modality) -> bool:
    return choice in ("all", reads, role(stack)) or fnmatchcase(stack.layer, choice)


def _reads(model: PreTrainedModel) -> Modality:
    name = model.main_input_name
    first = name if isinstance(name, str) else name[0]
    found: list[Modality] = [what for what, names in _INPUTS.items() if first in names]
    return found[0] if found else "other"

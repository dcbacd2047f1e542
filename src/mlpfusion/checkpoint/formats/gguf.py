"""A GGUF file of llama.cpp as a checkpoint of transformers: config, tokenizer and weights, which are plain again."""

import atexit
import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import quantization_config

from mlpfusion.checkpoint.config import CONFIG_ERRORS
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.extras import GGUF_FILE

# `general.file_type` of llama.cpp -> what holds its numbers; those of all others, quantised ones too, fit into fp16.
_DTYPES = {0: torch.float32, 32: torch.bfloat16}


def is_gguf(file: Path) -> bool:
    """True for a file that is one by its name."""
    return file.suffix.lower() == ".gguf" and file.is_file()


def unpacked(file: Path, *, weights: bool = True) -> Path:
    """The new folder of a checkpoint with what is in `file`; it goes when this process ends.

    With `weights=False` it holds the config alone. Raises `InputError` where the package gguf is missing, and for a
    file that transformers cannot read or that holds no causal language model.
    """
    GGUF_FILE.check()
    folder = Path(tempfile.mkdtemp(prefix="mlpfusion-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    place, named = str(file.parent), {"gguf_file": file.name}
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(place, **named)
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        if name is None:
            raise ValueError(f"{config.model_type} is no causal language model")
        config.architectures = [name]
        config.dtype = _dtype(file)
        config.save_pretrained(folder)
        if weights:
            AutoTokenizer.from_pretrained(place, **named).save_pretrained(folder)
            _save_weights(file, AutoConfig.from_pretrained(folder), folder)
    except CONFIG_ERRORS as error:
        raise InputError(
            f"`model` must be a GGUF file that transformers reads, got {shown(file.name)}: {one_line(error)}"
        ) from error
    return folder


def _save_weights(file: Path, config: PreTrainedConfig, folder: Path) -> None:
    """Writes the weights in `file` as plain ones; what transformers makes of a GGUF file itself cannot be saved."""
    options: dict[str, Any] = {"gguf_file": file.name, "config": copy.deepcopy(config), "dtype": config.dtype}
    if hasattr(quantization_config, "GgufConfig"):  # of newer versions, which could leave the blocks packed
        options["quantization_config"] = quantization_config.GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(str(file.parent), **options)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)


def _dtype(file: Path) -> torch.dtype:
    """The dtype for the weights in a file."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]

    field = GGUFReader(file).get_field("general.file_type")
    return torch.float16 if field is None else _DTYPES.get(field.contents(), torch.float16)

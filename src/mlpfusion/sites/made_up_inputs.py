"""Inputs for one forward pass of any model: a few token ids, an image, a second of sound."""

import inspect
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.sites.width_keys import text_config

_IMAGE_SIZE = 224  # of a vision model whose config does not say
_SAMPLES = 16_000  # of sound: a second
_FRAMES = 128  # of a spectrogram of any length
# Entries of a config for the number of values a frame of a spectrogram.
_FRAME_SIZES = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "feature_size")


def made_up_inputs(base: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Yields inputs to try one after the other: the main input of `base`, then with all else that it takes."""
    names = inspect.signature(base.forward).parameters
    main = base.main_input_name
    tensors = {name: tensor for name in _MAKERS if name in names and (tensor := _MAKERS[name](base)) is not None}
    ids = tensors.get("input_ids")
    if base.config.is_encoder_decoder and "decoder_input_ids" in names:
        tensors["decoder_input_ids"] = _ids(base) if ids is None else ids
    of_decoder = {"decoder_input_ids"} & set(tensors)
    for chosen in ({main, *of_decoder}, {"input_ids", "pixel_values"}, set(tensors)):
        if chosen <= set(tensors):
            yield {name: tensors[name] for name in chosen}


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Shape of one image for a vision model of `config`, or for the vision part of a larger model."""
    holder = getattr(config, "vision_config", config)
    size = getattr(holder, "image_size", None) or _IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return 1, getattr(holder, "num_channels", 3), height, width


def _ids(base: PreTrainedModel) -> Tensor:
    """One row of transformers' dummy ids, in the vocabulary of the model."""
    ids = base.dummy_inputs["input_ids"][:1].to(base.device)
    try:
        embeddings = base.get_input_embeddings()
    except NotImplementedError:  # a model of two towers
        embeddings = None
    vocabulary = getattr(text_config(base.config), "vocab_size", None)
    size = embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else vocabulary
    return ids if size is None else ids % size


def _image(base: PreTrainedModel) -> Tensor:
    return _ramp(base, image_shape(base.config))


def _sound(base: PreTrainedModel) -> Tensor:
    bins = getattr(base.config, "num_mel_bins", None)  # a spectrogram in place of samples
    frames = getattr(base.config, "max_length", None) or _FRAMES
    return _ramp(base, (1, _SAMPLES) if bins is None else (1, frames, bins))


def _spectrogram(base: PreTrainedModel) -> Tensor | None:
    sizes = (getattr(base.config, name, None) for name in _FRAME_SIZES)
    size = next((size for size in sizes if size), None)
    if size is None:
        return None
    positions = getattr(base.config, "max_source_positions", None)
    if positions is not None and hasattr(base.config, "num_mel_bins"):
        return _ramp(base, (1, size, 2 * positions))  # Whisper's convolutions halve the frames
    return _ramp(base, (1, _FRAMES, size))


def _ramp(base: PreTrainedModel, shape: tuple[int, ...]) -> Tensor:
    values = torch.linspace(-1, 1, math.prod(shape), device=base.device, dtype=base.dtype)
    return values.reshape(shape)


# What `forward` may take -> a function that makes it for a model; None for what the config does not describe.
_MAKERS = {"input_ids": _ids, "pixel_values": _image, "input_values": _sound, "input_features": _spectrogram}

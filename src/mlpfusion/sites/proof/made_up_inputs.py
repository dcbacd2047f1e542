"""Inputs for one forward pass of any model: a few token ids, an image, a second of sound, hidden states."""

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.sites.parts import parts_of, vocabulary_size

_IMAGE_SIZE = 224  # of a vision model whose config does not say
_IMAGE_SIZES = ("image_size", "crop_size", "max_img_size")  # entries that do
_SAMPLES = 19_200  # of sound: a second or so; some want a multiple of 1,920
_FRAMES = 200  # of a spectrogram of any length; some want a multiple of 8, some of 100
_BINS = 128  # of a frame, where the config does not say
_STATES = 16  # hidden states in a row
_GRID = (1, 4, 4)  # frames, rows and columns of the patches of an image; towers join two by two of them
_NUM_PATCHES = math.prod(_GRID)
# Entries of a config for the number of values a frame of a spectrogram, and for that of a hidden state.
_FRAME_SIZES = ("input_dim", "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "feature_size")
_WIDTHS = ("hidden_size", "d_model", "embed_dim")


def made_up_inputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Yields inputs to try one after the other: the main input of `model`, then with all else that it takes.

    An image comes as one, as several in a row, and where `model` wants their places as its patches.
    """
    parameters = inspect.signature(model.forward).parameters
    makers = {name: maker for name, maker in _MAKERS.items() if name in parameters}
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind not in _VARIADIC}
    needed |= {"decoder_input_ids"} & set(makers)
    main = {model.main_input_name} if isinstance(model.main_input_name, str) else set(model.main_input_name)
    all_but_states = set(makers) - (_STATE_NAMES - needed)
    choices = (needed | main, needed, needed | {"input_ids", "pixel_values"}, all_but_states, set(makers))
    for chosen in dict.fromkeys(frozenset(choice) for choice in choices if choice and choice <= set(makers)):
        names = sorted(chosen)
        for tensors in product(*(makers[name](model) for name in names)):
            yield dict(zip(names, tensors, strict=True))


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Shape of one image for a vision model of `config`, or for the vision part of a larger model."""
    holder = getattr(config, "vision_config", config)
    holders = (holder, *(part for _, part in parts_of(config)))
    sizes = (getattr(one, name, None) for one in holders for name in _IMAGE_SIZES)
    size = next((size for size in sizes if size), _IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    return 1, getattr(holder, "num_channels", 3), height, width


def _ids(model: PreTrainedModel) -> list[Tensor]:
    """One row of transformers' dummy ids, in the vocabulary of the model."""
    ids, size = model.dummy_inputs["input_ids"][:1].to(model.device), vocabulary_size(model)
    return [ids if size is None else ids % size]


def _boxes(model: PreTrainedModel) -> list[Tensor]:
    """The place of every token on its page."""
    return [torch.zeros(*ids.shape, 4, dtype=torch.long, device=model.device) for ids in _ids(model)]


def _images(model: PreTrainedModel) -> list[Tensor]:
    return [_ramp(model, image_shape(model.config)), *_films(model), *_patches(model)]


def _films(model: PreTrainedModel) -> list[Tensor]:
    """Images in a row: as many as the config says, or two."""
    one, *of_image = image_shape(model.config)
    return [_ramp(model, (one, _first(model.config, ("num_frames", "frames_per_clip")) or 2, *of_image))]


def _series(model: PreTrainedModel) -> list[Tensor]:
    """The past of a few quantities, and of one."""
    length = _first(model.config, ("context_length",))
    shapes = [] if length is None else [(1, length, _first(model.config, ("num_input_channels",)) or 1), (1, length)]
    return [_ramp(model, shape) for shape in shapes]


def _patches(model: PreTrainedModel) -> list[Tensor]:
    """The patches of an image in a row, flat or not, with and without a dimension of samples.

    None for a model that does not take beside them where they are.
    """
    if not _PLACES & set(inspect.signature(model.forward).parameters):
        return []
    config: Any = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(config, "patch_size", None), getattr(config, "in_channels", 3)
    if not isinstance(size, int):
        return []
    flat = channels * (_first(config, ("temporal_patch_size", "patch_temporal")) or 1) * size**2
    rows = [(_NUM_PATCHES, flat), (1, _NUM_PATCHES, flat), (_NUM_PATCHES, channels, size, size)]
    return [_ramp(model, shape) for shape in (*rows, (1, channels, size, _NUM_PATCHES * size))]


def _grid(model: PreTrainedModel) -> list[Tensor]:
    return [torch.tensor([_GRID], device=model.device)]


def _grid_of_image(model: PreTrainedModel) -> list[Tensor]:
    return [torch.tensor([_GRID[1:]], device=model.device)]


def _ones(model: PreTrainedModel) -> list[Tensor]:
    """One for every image."""
    return [torch.ones(1, dtype=torch.long, device=model.device)]


def _patch_masks(model: PreTrainedModel) -> list[Tensor]:
    return [torch.ones(1, _NUM_PATCHES, dtype=torch.long, device=model.device)]


def _places(model: PreTrainedModel) -> list[Tensor]:
    """Row and column of every patch."""
    return [torch.cartesian_prod(torch.arange(_GRID[1]), torch.arange(_GRID[2]))[None].to(model.device)]


def _sounds(model: PreTrainedModel) -> list[Tensor]:
    bins = getattr(model.config, "num_mel_bins", None)  # a spectrogram in place of samples
    frames = getattr(model.config, "max_length", None) or _FRAMES
    samples = [_ramp(model, (1, _SAMPLES)), _ramp(model, (1, 1, _SAMPLES))]
    return samples if bins is None else [_ramp(model, (1, frames, bins))]


def _spectrograms(model: PreTrainedModel) -> list[Tensor]:
    positions = getattr(model.config, "max_source_positions", None)
    if positions is not None and hasattr(model.config, "num_mel_bins"):
        return [_ramp(model, (1, model.config.num_mel_bins, 2 * positions))]  # Whisper's convolutions halve the frames
    frames_first = _ramp(model, (1, _FRAMES, _first(model.config, _FRAME_SIZES) or _BINS))
    return [frames_first, frames_first.transpose(1, 2)]


def _frame_masks(model: PreTrainedModel) -> list[Tensor]:
    return [torch.ones(1, _FRAMES, dtype=torch.bool, device=model.device)]


def _states(model: PreTrainedModel) -> list[Tensor]:
    size = _first(model.config, _WIDTHS)
    return ([] if size is None else [_ramp(model, (1, _STATES, size))]) + _patches(model)


def _states_of_encoder(model: PreTrainedModel) -> list[Tensor]:
    size = _first(model.config, ("encoder_hidden_size", "cross_attention_hidden_size", *_WIDTHS))
    return [] if size is None else [_ramp(model, (1, _STATES, size))]


def _latents(model: PreTrainedModel) -> list[Tensor]:
    return [*_states(model), *(states.transpose(-1, -2) for states in _states(model))]


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first of the entries that is there and a number."""
    return next((size for name in names if isinstance(size := getattr(config, name, None), int) and size), None)


def _ramp(model: PreTrainedModel, shape: tuple[int, ...]) -> Tensor:
    values = torch.linspace(-1, 1, math.prod(shape), device=model.device, dtype=model.dtype)
    return values.reshape(shape)


_PLACES = {"grid_thw", "image_grid_thw", "pixel_position_ids", "spatial_shapes", "target_sizes"}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_STATE_NAMES = {"hidden_states", "inputs_embeds", "query_embeds", "encoder_hidden_states", "latents", "inputs"}
# What `forward` may take -> a function that makes it for a model, in all forms to try.
_MAKERS: dict[str, Callable[[PreTrainedModel], list[Tensor]]] = {
    "input_ids": _ids,
    "decoder_input_ids": _ids,
    "bbox": _boxes,
    "pixel_values": _images,
    "pixel_values_videos": _films,
    "pixel_position_ids": _places,
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "merge_sizes": _ones,
    "spatial_shapes": _grid_of_image,
    "target_sizes": _grid_of_image,
    "pixel_attention_mask": _patch_masks,
    "input_values": _sounds,
    "input_features": _spectrograms,
    "input_features_mask": _frame_masks,
    "past_values": _series,
    **dict.fromkeys(sorted(_STATE_NAMES), _states),
    "encoder_hidden_states": _states_of_encoder,
    "latents": _latents,
}

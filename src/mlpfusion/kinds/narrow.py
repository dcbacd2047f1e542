"""The narrow kind: a narrower MLP in the place of a model's own, plain linear maps, scales in the activation.

The scales are constant diagonals around the activation: the stand-alone P of MLP Fusion, or two of any positive
numbers. The linear maps stay plain, so everything that looks for linear layers (PEFT, bitsandbytes) keeps working.
Under tensor parallelism each process applies the scales of the neurons that it computes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.foreign_forward import guard, unguard
from mlpfusion.kinds.kind import BlockSize, Kind, entry_place, number_at, replace_module, text_at
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.mlp import MLP, scale_neurons
from mlpfusion.mlp import fold as fold_mlp
from mlpfusion.sites.bits import as_bits, from_bits
from mlpfusion.sites.sites import Site, base_model, linear_maps, read_mlp, site_module
from mlpfusion.sites.weights import Tensors, is_plain, linear_shape, resized, written


@dataclass(frozen=True)
class NarrowSite:
    """A narrower MLP: its width now and before, the scales in its activation (`ACTIVATIONS`), its parameters now."""

    intermediate_size: int
    original_size: int
    scale: str
    num_parameters: int


class ScaledActivation(nn.Module):
    """`activation(x) * output_scale`: the stand-alone P of MLP Fusion (paper, Eq. 5).

    The scale is an int32 buffer: never trained, and exact under any dtype that the model is loaded in. `local` are the
    neurons that this process computes, None for all: the buffer is whole under tensor parallelism too.
    """

    output_scale: Int[Tensor, " neurons"]
    local: slice | None = None

    def __init__(self, activation: nn.Module, num_neurons: int, device: torch.device | None = None):
        super().__init__()
        self.activation = activation
        self.register_buffer("output_scale", torch.ones(num_neurons, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return scale_neurons(self.activation(x), _local_part(self.output_scale, self.local))

    def extra_repr(self) -> str:
        return f"num_neurons={self.output_scale.numel()}"


class MatchedActivation(nn.Module):
    """`activation(x * input_scale) * output_scale` with two diagonals of positive fp32 numbers, never trained.

    The buffers hold the bits of the numbers as int32, which no change of dtype touches: the numbers are exact in a
    model that is loaded in bf16. `local` is that of `ScaledActivation`.
    """

    input_scale_bits: Int[Tensor, " neurons"]
    output_scale_bits: Int[Tensor, " neurons"]
    local: slice | None = None

    def __init__(self, activation: nn.Module, num_neurons: int, device: torch.device | None = None):
        super().__init__()
        self.activation = activation
        for name in ("input_scale_bits", "output_scale_bits"):
            self.register_buffer(name, as_bits(torch.ones(num_neurons, dtype=torch.float32, device=device)))

    @property
    def input_scale(self) -> Float[Tensor, " neurons"]:
        return from_bits(self.input_scale_bits)

    @property
    def output_scale(self) -> Float[Tensor, " neurons"]:
        return from_bits(self.output_scale_bits)

    def forward(self, x: Tensor) -> Tensor:
        input_scale, output_scale = (_local_part(scale, self.local) for scale in (self.input_scale, self.output_scale))
        return scale_neurons(self.activation(scale_neurons(x, input_scale)), output_scale)

    def extra_repr(self) -> str:
        return f"num_neurons={self.output_scale_bits.numel()}"


# What the key of a saved model calls the scales of a block -> the module that holds them.
ACTIVATIONS: dict[str, type[ScaledActivation | MatchedActivation] | None] = {
    "none": None,
    "cluster-sizes": ScaledActivation,
    "matched": MatchedActivation,
}


def unscaled(activation: nn.Module) -> nn.Module:
    """The activation without the scales around it, if there are any."""
    return activation.activation if isinstance(activation, ScaledActivation | MatchedActivation) else activation


def read_block(model: PreTrainedModel, site: Site) -> MLP:
    """The MLP at `site` with the scales of a narrow block in its own fields, not in `activation`.

    Shares memory with the model and leaves it as it is. Raises `InputError` as `read_mlp` does.
    """
    mlp, activation = read_mlp(model, site), site_module(model, site, "activation")
    if isinstance(activation, MatchedActivation):
        mlp = replace(mlp, input_scale=activation.input_scale, output_scale=activation.output_scale)
    elif isinstance(activation, ScaledActivation):
        mlp = replace(mlp, output_scale=activation.output_scale)
    return replace(mlp, activation=unscaled(activation))


def read_narrow_entry(path: str, data: Mapping[str, Any]) -> NarrowSite:
    """The entry of a key. Raises `InputError` for numbers out of range, or a block that would be wider than before."""
    where = entry_place(path)
    entry = NarrowSite(
        intermediate_size=number_at(f"{where}.intermediate_size", data["intermediate_size"]),
        original_size=number_at(f"{where}.original_size", data["original_size"]),
        scale=text_at(f"{where}.scale", data["scale"]),
        num_parameters=number_at(f"{where}.num_parameters", data["num_parameters"]),
    )
    if entry.intermediate_size > entry.original_size:
        raise InputError(
            f"`intermediate_size` of {path} must be at most {entry.original_size}, got {entry.intermediate_size}"
        )
    return entry


def _entry_of(site: Site, outcome: Narrowed, original: Tensors) -> NarrowSite:
    mlp = outcome.mlp
    return NarrowSite(mlp.num_neurons, site.intermediate_size, scale_of(mlp), mlp.num_parameters)


def _tensors(site: Site, outcome: Narrowed, original: Tensors) -> dict[str, Tensor]:
    mlp, activation = outcome.mlp, site.module_path("activation")
    tensors = written(site.weights, mlp.tensors())
    scale = scale_of(mlp)
    if scale == "cluster-sizes":
        assert mlp.output_scale is not None
        tensors[f"{activation}.output_scale"] = mlp.output_scale
    elif scale == "matched":
        tensors[f"{activation}.input_scale_bits"], tensors[f"{activation}.output_scale_bits"] = scale_bits(mlp)
    return tensors


def _is_there(model: PreTrainedModel, site: Site, entry: NarrowSite) -> bool:
    return is_narrow_there(site, entry, _installed_scale(model, site), ACTIVATIONS)


def is_narrow_there(site: Site, entry: NarrowSite, installed: str, known: Iterable[str]) -> bool:
    """Whether the model has the width and the scales of `entry` at `site`; `installed` names the scales there.

    Raises `InputError` for scales that are not `known`, and for a width that is neither that of `entry` nor the one
    before.
    """
    if entry.scale not in known:
        raise InputError(f"`{entry_place(site.holder)}.scale` must be one of {', '.join(known)}, got {entry.scale!r}")
    if (site.intermediate_size, installed) == (entry.intermediate_size, entry.scale):
        return True
    if site.intermediate_size != entry.original_size or installed != "none":
        raise InputError(
            f"`mlp_fusion` wants {entry.intermediate_size} of {entry.original_size} neurons at {site.holder}, "
            f"the config gives that layer {site.intermediate_size}"
        )
    return False


def _make_room(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """New linear maps of another width, scales around the activation. Device, dtype and `requires_grad` are kept."""
    resize_maps(model, site, entry.intermediate_size)
    scaled = ACTIVATIONS[entry.scale]
    if scaled is not None:
        device = next(site_module(model, site, "down").parameters()).device
        activation = scaled(site_module(model, site, "activation"), entry.intermediate_size, device)
        replace_module(base_model(model), site.module_path("activation"), activation)
        guard(_runs_activation(model, site))


def resize_maps(model: PreTrainedModel, site: Site, num_neurons: int) -> None:
    """Puts new linear maps of `num_neurons` at `site`, uninitialised. Changes the model."""
    base = base_model(model)
    for path, fields in linear_maps(site).items():
        linear = base.get_submodule(path)
        if fields == ("down",):
            new = resized(linear, in_features=num_neurons)
        else:
            new = resized(linear, out_features=len(fields) * num_neurons)
        replace_module(base, path, new)


def _check(model: PreTrainedModel, site: Site, entry: NarrowSite) -> None:
    """Cluster sizes must be a partition of the original neurons, diagonals positive."""
    activation = site_module(model, site, "activation")
    if any(buffer.is_meta for buffer in activation.buffers()):
        return
    if isinstance(activation, MatchedActivation):
        for name, scale in (("input_scale", activation.input_scale), ("output_scale", activation.output_scale)):
            check_diagonal(scale, name, site.path)
    elif isinstance(activation, ScaledActivation):
        smallest, total = int(activation.output_scale.min()), int(activation.output_scale.sum())
        if smallest < 1 or total != entry.original_size:
            raise InputError(
                f"the `output_scale` at {site.path} must be at least 1 and sum up to "
                f"{entry.original_size}, got a minimum of {smallest} and a sum of {total}"
            )


@torch.no_grad()
def _fold(model: PreTrainedModel, site: Site) -> None:
    """Multiplies the scales into the linear maps around them."""
    base, activation = base_model(model), site_module(model, site, "activation")
    if unscaled(activation) is not activation:
        folded = written(site.weights, fold_mlp(read_block(model, site)).tensors())
        resize_maps(model, site, site.intermediate_size)
        replace_module(base, site.module_path("activation"), unscaled(activation))
        unguard(_runs_activation(model, site))
        for name, tensor in folded.items():
            base.get_parameter(name).copy_(tensor)


def _runs_activation(model: PreTrainedModel, site: Site) -> nn.Module:
    """The module that calls the activation in its forward pass."""
    return base_model(model).get_submodule(site.module_path("activation").rpartition(".")[0])


def narrow_size(site: Site, entry: NarrowSite) -> BlockSize:
    """The width now and the number of parameters, none of them held at zero."""
    return BlockSize(entry.intermediate_size, entry.num_parameters, entry.num_parameters)


def _size_words(size: BlockSize, metrics: Mapping[str, float]) -> str:
    return f"{size.width:,}"


def original_width(entry: NarrowSite) -> int:
    """The width before."""
    return entry.original_size


def _is_hurt_by_quantising(model: PreTrainedModel, site: Site, entry: NarrowSite) -> bool:
    """One scale a row of a quantised `down` cannot hold columns of such different lengths as those behind P."""
    return entry.scale != "none" and not is_plain(site_module(model, site, "down"))


def _share_scales(model: PreTrainedModel, site: Site) -> None:
    """Makes the activation use the scales of the neurons of this process. The buffers stay whole.

    Raises `InputError` where it cannot be told which neurons these are.
    """
    activation = site_module(model, site, "activation")
    if isinstance(activation, ScaledActivation | MatchedActivation):
        activation.local = _local_rows(model, site)


def _local_rows(model: PreTrainedModel, site: Site) -> slice | None:
    """The rows of the map in front of the activation that this process has, None if it has all."""
    linear = site_module(model, site, "up" if site.stack.gate is None else "gate")
    weight, rows = linear.get_parameter("weight"), linear_shape(linear)[0]
    if not isinstance(weight, DTensor):
        if weight.ndim == 2 and weight.shape[0] == rows:
            return None
        raise InputError(f"`tp_plan` must be left out, the shards at {site.path} are not known; call `fold` first")
    mesh, names = weight.device_mesh, weight.device_mesh.mesh_dim_names or ()
    if "tp" not in names:
        return None
    placement = weight.placements[names.index("tp")]
    if not (isinstance(placement, Shard) and placement.dim in (0, -2)):
        return None
    if any(weight.half is not None for weight in site.weights):
        raise InputError(f"`tp_plan` must leave out {site.path}, which holds gate and up in one map; call `fold` first")
    size = -(-rows // mesh["tp"].size())  # a shard is as long as those of torch.chunk: the last may be shorter
    start = min(rows, size * mesh["tp"].get_local_rank())
    return slice(start, min(rows, start + size))


def _local_part(scale: Tensor, local: slice | None) -> Tensor:
    """The scales of the neurons in `local`, all without one."""
    return scale if local is None else scale[local]


def scale_bits(mlp: MLP) -> tuple[Int[Tensor, " neurons"], Int[Tensor, " neurons"]]:
    """The bits of the two diagonals of a block, ones where it has none."""
    ones = mlp.up.new_ones(mlp.num_neurons, dtype=torch.float32)
    scales = (mlp.input_scale, mlp.output_scale)
    input_bits, output_bits = (as_bits(ones if scale is None else scale) for scale in scales)
    return input_bits, output_bits


def check_diagonal(scale: Tensor, name: str, path: str) -> None:
    """Raises `InputError` for a scale that is not positive and finite."""
    if not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise InputError(f"the `{name}` at {path} must be positive and finite, got {float(scale.min())}")


def scale_of(mlp: MLP) -> str:
    """The name in `ACTIVATIONS` for the scales of a block."""
    if mlp.input_scale is None and mlp.output_scale is None:
        return "none"
    whole = mlp.output_scale is not None and not mlp.output_scale.is_floating_point()
    return "cluster-sizes" if mlp.input_scale is None and whole else "matched"


def _installed_scale(model: PreTrainedModel, site: Site) -> str:
    activation = type(site_module(model, site, "activation"))
    return next((name for name, scaled in ACTIVATIONS.items() if scaled is activation), "none")


KIND = Kind(
    name="narrow",
    outcome=Narrowed,
    entry=NarrowSite,
    blocks="narrower MLPs",
    without_package="Without the package transformers refuses the checkpoint with a shape error.",
    read_entry=read_narrow_entry,
    entry_of=_entry_of,
    tensors=_tensors,
    is_there=_is_there,
    make_room=_make_room,
    check=_check,
    fold=_fold,
    trained_block=read_block,
    size=narrow_size,
    size_words=_size_words,
    buffers=(".output_scale", ".input_scale_bits", ".output_scale_bits"),
    buffers_of="the scales of every scaled block",
    after_cut=_share_scales,
    original_width=original_width,
    is_hurt_by_quantising=_is_hurt_by_quantising,
)

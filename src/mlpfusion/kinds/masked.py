"""The masked kind: linear maps of the old width whose zeros stay zero: the mask of a weight is the weight itself.

On disk they are plain weights with zeros in them. Stock transformers loads such a checkpoint without this package: the
function is the same, but the mask is lost, so that fine-tuning fills the zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.errors import InputError
from mlpfusion.kernel import MaskedMLP
from mlpfusion.kinds.kind import BlockSize, Kind, entry_place, number_at, replace_module
from mlpfusion.kinds.narrow import read_block
from mlpfusion.kinds.outcome import Masked
from mlpfusion.sites.sites import Site, base_model, linear_maps
from mlpfusion.sites.weights import (
    Tensors,
    held_bias,
    held_weight,
    is_plain,
    linear_shape,
    linear_weight,
    new_linear,
    resized,
    written,
)


@dataclass(frozen=True)
class MaskedSite:
    """An MLP with zeros: how many its matrices have at least, and its parameters, zeros counted."""

    num_zeros: int
    num_parameters: int


def keep_zeros(weight: Tensor) -> Tensor:
    """`weight`, but its zeros get the gradient 0, so that no optimizer of the usual kind moves them.

    AdamW's step for a weight of 0 whose gradients were all 0 is 0, weight decay included.
    """
    # torch.jit.trace compares two traces, one of them without gradients: both must be the same graph.
    if not (weight.requires_grad and (torch.is_grad_enabled() or is_tracing())):
        return weight
    return torch.where(weight != 0, weight, 0.0)


class MaskedLinear(nn.Linear):
    """`nn.Linear` whose zeros stay zero in training. Nothing beside the weight is kept, so nothing can be lost.

    A weight that training brings to exactly 0 stays there too. Outputs are those of `nn.Linear`, bit by bit.
    """

    dense_type = nn.Linear
    made_of = ""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, keep_zeros(self.weight), self.bias)

    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.out_features, self.in_features

    def check_readable(self) -> None:
        """Raises `InputError` if the weight is quantised or sharded."""
        held_weight(self)

    def dense_weight(self) -> Tensor:
        """The weight, detached."""
        return held_weight(self)

    def dense_bias(self) -> Tensor | None:
        """The bias, detached."""
        return held_bias(self)


class MaskedConv1D(Conv1D):
    """`MaskedLinear` for the transposed linear map of GPT-2."""

    dense_type = Conv1D
    made_of = ""

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), keep_zeros(self.weight))
        return flat.view(*x.shape[:-1], self.nf)

    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.nf, self.nx

    def check_readable(self) -> None:
        """Raises `InputError` if the weight is quantised or sharded."""
        held_weight(self)

    def dense_weight(self) -> Tensor:
        """The weight (out, in), detached."""
        return held_weight(self)

    def dense_bias(self) -> Tensor | None:
        """The bias, detached."""
        return held_bias(self)


MASKED_TYPES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: MaskedLinear, Conv1D: MaskedConv1D}
_DENSE_TYPES = {masked: dense for dense, masked in MASKED_TYPES.items()}


def as_type(linear: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The same linear map, parameters and all, as an instance of `kind`, a type that is built like its own."""
    new = new_linear(kind, *linear_shape(linear), bias=held_bias(linear) is not None)
    for name, parameter in linear.named_parameters():
        setattr(new, name, parameter)
    return new.train(linear.training)


def _read_entry(path: str, data: Mapping[str, Any]) -> MaskedSite:
    where = entry_place(path)
    return MaskedSite(
        num_zeros=number_at(f"{where}.num_zeros", data["num_zeros"], 0),
        num_parameters=number_at(f"{where}.num_parameters", data["num_parameters"]),
    )


def _entry_of(site: Site, outcome: Masked, original: Tensors) -> MaskedSite:
    matrices = outcome.mlp.matrices()
    kept = [matrices[w.field].to(original[w.name].dtype) for w in site.weights if not w.is_bias]
    return MaskedSite(sum(_count_zeros(weight) for weight in kept), outcome.mlp.num_parameters)


def _tensors(site: Site, outcome: Masked, original: Tensors) -> dict[str, Tensor]:
    return written(site.weights, outcome.mlp.tensors())


def _is_there(model: PreTrainedModel, site: Site, entry: MaskedSite) -> bool:
    return all(type(base_model(model).get_submodule(path)) in _DENSE_TYPES for path in linear_maps(site))


def _make_room(model: PreTrainedModel, site: Site, entry: MaskedSite) -> None:
    """Maps that keep their zeros; the weights will bring the zeros."""
    base = base_model(model)
    for path in linear_maps(site):
        new = resized(base.get_submodule(path))
        replace_module(base, path, as_type(new, MASKED_TYPES.get(type(new), type(new))))


def _check(model: PreTrainedModel, site: Site, entry: MaskedSite) -> None:
    """The loaded weights must have as many zeros as the key names, or something filled them.

    Weights that a quantiser has packed are not looked at: they are frozen.
    """
    base = base_model(model)
    maps = [base.get_submodule(path) for path in linear_maps(site)]
    if not all(is_plain(linear) and type(linear) in _DENSE_TYPES for linear in maps):
        return
    weights = [linear_weight(linear) for linear in maps]
    if any(weight.is_meta for weight in weights):
        return
    found = sum(_count_zeros(weight) for weight in weights)
    if found < entry.num_zeros:
        raise InputError(
            f"the weights at {site.path} must have at least {entry.num_zeros} zeros, got {found}: an adapter that is "
            "merged fills them. Nothing is lost: remove the entry `mlp_fusion` from the config.json, and this loads as "
            "the plain model that it is; call `fold` on such a model before it is saved"
        )


def _fold(model: PreTrainedModel, site: Site) -> None:
    """Puts the plain maps back: zeros are weights like others from here on."""
    base = base_model(model)
    for path in linear_maps(site):
        linear = base.get_submodule(path)
        if type(linear) in _DENSE_TYPES:
            replace_module(base, path, as_type(linear, _DENSE_TYPES[type(linear)]))


def _trained_block(model: PreTrainedModel, site: Site) -> MaskedMLP:
    return MaskedMLP(read_block(model, site))


def _count_zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())


def _size(site: Site, entry: MaskedSite) -> BlockSize:
    return BlockSize(site.intermediate_size, entry.num_parameters, entry.num_parameters - entry.num_zeros)


def _size_words(size: BlockSize, metrics: Mapping[str, float]) -> str:
    return f"{100 * size.nonzero_parameters / size.parameters:.1f} % non-zero"


KIND = Kind(
    name="masked",
    outcome=Masked,
    entry=MaskedSite,
    blocks="zeros in the MLPs",
    without_package=(
        "Without the package transformers loads it as well, but nothing then keeps the zeros in fine-tuning."
    ),
    read_entry=_read_entry,
    entry_of=_entry_of,
    tensors=_tensors,
    is_there=_is_there,
    make_room=_make_room,
    check=_check,
    fold=_fold,
    trained_block=_trained_block,
    size=_size,
    size_words=_size_words,
    no_adapter="a masked model: what is merged into it fills its zeros",
)

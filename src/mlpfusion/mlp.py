"""One feed-forward block in one layout, whatever the architecture it was read from."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MLP:
    """One feed-forward block (paper, Eq. 1 and 5).

    Row i of `up`, `gate` and their biases and column i of `down` belong to neuron i. The two scales are constant
    diagonals and never trained: `input_scale` multiplies what enters the activation, `output_scale` what leaves it.
    In MLP Fusion `output_scale` is P, the number of original neurons that neuron i stands for.
    """

    up: Float[Tensor, "neurons hidden"]
    down: Float[Tensor, "hidden neurons"]
    activation: Callable[[Tensor], Tensor]
    gate: Float[Tensor, "neurons hidden"] | None = None
    up_bias: Float[Tensor, " neurons"] | None = None
    gate_bias: Float[Tensor, " neurons"] | None = None
    down_bias: Float[Tensor, " hidden"] | None = None
    input_scale: Float[Tensor, " neurons"] | None = None
    output_scale: Int[Tensor, " neurons"] | Float[Tensor, " neurons"] | None = None

    @property
    def num_neurons(self) -> int:
        return self.up.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.up.shape[1]

    @property
    def num_parameters(self) -> int:
        """Number of trained values: weights and biases, not the constant scales."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def parameters_per_neuron(self) -> int:
        """Number of trained values that one neuron less saves: all but `down_bias`, which no width changes."""
        shared = 0 if self.down_bias is None else self.down_bias.numel()
        return (self.num_parameters - shared) // self.num_neurons

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by field name."""
        names = ("up", "up_bias", "gate", "gate_bias", "down", "down_bias")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def matrices(self) -> dict[str, Tensor]:
        """`up`, `gate` (if there is one) and `down` by field name."""
        return {name: tensor for name, tensor in self.tensors().items() if tensor.ndim == 2}


def forward(mlp: MLP, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
    """The output of the block: down(act(up x * s1) * s2) + b2, or down(act(gate x * s1) * s2 * up x) + b2."""
    return torch.nn.functional.linear(hidden_activations(mlp, x), mlp.down, mlp.down_bias)


def hidden_activations(mlp: MLP, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch neurons"]:
    """What enters `down`, scales included."""
    up = torch.nn.functional.linear(x, mlp.up, mlp.up_bias)
    activated = up if mlp.gate is None else torch.nn.functional.linear(x, mlp.gate, mlp.gate_bias)
    if mlp.input_scale is not None:
        activated = activated * mlp.input_scale.to(activated.dtype)
    activated = mlp.activation(activated)
    if mlp.output_scale is not None:
        activated = scale_neurons(activated, mlp.output_scale)
    return activated if mlp.gate is None else activated * up


def scale_neurons(x: Tensor, scale: Tensor) -> Tensor:
    """`x * scale` in fp32 or better and back in the dtype of `x`.

    bf16 holds whole numbers only up to 256; a cluster size of 463 would become 464 if the scale were rounded first.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    return (x * scale.to(compute)).to(x.dtype)


def fold(mlp: MLP) -> MLP:
    """The same function without scales: `down` takes up `output_scale`, the activation's input takes up `input_scale`.

    The forward pass is kept up to rounding; the Adam kernel of `down` is not (paper, section 4.3): fold to deploy,
    not before fine-tuning.
    """
    folded = {}
    if mlp.output_scale is not None:
        folded["down"] = scale_neurons(mlp.down, mlp.output_scale)
    if mlp.input_scale is not None:
        side = "up" if mlp.gate is None else "gate"
        for name in (side, f"{side}_bias"):
            tensor = getattr(mlp, name)
            if tensor is not None:
                scale = mlp.input_scale if tensor.ndim == 1 else mlp.input_scale[:, None]
                folded[name] = scale_neurons(tensor, scale)
    return replace(mlp, input_scale=None, output_scale=None, **folded)


def neurons(mlp: MLP) -> Float[Tensor, "neurons features"]:
    """One row a neuron, [gate | gate bias | up | up bias | down] (paper, section 4.2, step 2), in fp32 or better."""
    parts = [part.unsqueeze(1) if part.ndim == 1 else part for part in _neuron_parts(mlp).values()]
    compute = torch.promote_types(mlp.up.dtype, torch.float32)
    return torch.cat([part.to(compute) for part in parts], dim=1)


def replace_neurons(mlp: MLP, rows: Float[Tensor, "clusters features"]) -> MLP:
    """The block with these neurons in place of its own, in its own dtype; `down_bias` stays. Inverse of `neurons`."""
    parts = _neuron_parts(mlp)
    widths = [1 if part.ndim == 1 else part.shape[1] for part in parts.values()]
    fields = {}
    for (name, part), columns in zip(parts.items(), rows.split(widths, dim=1), strict=True):
        shaped = columns[:, 0] if part.ndim == 1 else columns.T if name == "down" else columns
        fields[name] = shaped.to(part.dtype).clone(memory_format=torch.contiguous_format)
    return replace(mlp, input_scale=None, output_scale=None, **fields)


def select_neurons(mlp: MLP, indices: Int[Tensor, " kept"]) -> MLP:
    """The block with only these neurons, in this order; rows of `up` and columns of `down` stay paired."""
    fields = {name: part[indices].clone() for name, part in _neuron_parts(mlp).items() if name != "down"}
    scales = {
        name: scale[indices].clone()
        for name in ("input_scale", "output_scale")
        if (scale := getattr(mlp, name)) is not None
    }
    return replace(mlp, **fields, **scales, down=mlp.down[:, indices].contiguous())


def canonical_order(mlp: MLP) -> Int[Tensor, " neurons"]:
    """The neurons by length of their row: with it a seeded method does not depend on the order it is given them in."""
    return neurons(mlp).double().square().sum(1).argsort(stable=True)


def in_compute_dtype(mlp: MLP) -> MLP:
    """The block with its tensors in fp32, or as they are if that is better; the scales stay."""
    compute = torch.promote_types(mlp.up.dtype, torch.float32)
    return replace(mlp, **{name: tensor.to(compute) for name, tensor in mlp.tensors().items()})


def copied(mlp: MLP) -> MLP:
    """The block with tensors of its own; the scales stay."""
    return replace(mlp, **{name: tensor.clone() for name, tensor in mlp.tensors().items()})


def _neuron_parts(mlp: MLP) -> dict[str, Tensor]:
    """Field name -> tensor with one row a neuron, in the order of the row of `neurons`."""
    parts = {"gate": mlp.gate, "gate_bias": mlp.gate_bias, "up": mlp.up, "up_bias": mlp.up_bias, "down": mlp.down.T}
    return {name: part for name, part in parts.items() if part is not None}


def on_device(mlp: MLP, device: torch.device) -> MLP:
    """The block with its tensors and scales on `device`."""
    tensors = dict(mlp.tensors())
    scales = {"input_scale": mlp.input_scale, "output_scale": mlp.output_scale}
    tensors |= {name: scale for name, scale in scales.items() if scale is not None}
    return replace(mlp, **{name: tensor.to(device) for name, tensor in tensors.items()})

"""One feed-forward block, in one layout for all architectures."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MLP:
    """One feed-forward block (paper, Eq. 1 and 5).

    Row i of `up`, `gate` and their biases and column i of `down` belong to neuron i. The two scales
    are constant diagonals and never trained: `input_scale` (s1) multiplies the input of the
    activation, `output_scale` (s2) its output. In MLP Fusion s2 = P, the number of original neurons
    in cluster i. `gating`, if set, makes the hidden activations of what the maps `gate` and `up` give, where they are
    not activation(gate) * up: clamped, say. Then there is no `input_scale`.

    >>> mlp = MLP(up=torch.ones(4, 3), down=torch.ones(3, 4), activation=torch.relu)
    >>> mlp.num_neurons, mlp.hidden_size, mlp.num_parameters
    (4, 3, 24)
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
    gating: Callable[[Tensor, Tensor], Tensor] | None = None

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
        """Number of trained values saved by removing one neuron: all but `down_bias`."""
        shared = 0 if self.down_bias is None else self.down_bias.numel()
        return (self.num_parameters - shared) // self.num_neurons

    def tensors(self) -> dict[str, Tensor]:
        """Returns the trained tensors by field name."""
        fields = {
            "up": self.up,
            "up_bias": self.up_bias,
            "gate": self.gate,
            "gate_bias": self.gate_bias,
            "down": self.down,
            "down_bias": self.down_bias,
        }
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    def matrices(self) -> dict[str, Tensor]:
        """Returns `up`, `gate` (if any) and `down` by field name."""
        return {name: tensor for name, tensor in self.tensors().items() if tensor.ndim == 2}


def forward(mlp: MLP, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
    """Computes down(act(up x * s1) * s2) + b2, or, gated, down(act(gate x * s1) * s2 * up x) + b2.

    >>> mlp = MLP(up=torch.eye(2), down=torch.eye(2), activation=torch.relu)
    >>> forward(mlp, torch.tensor([3.0, -1.0])).tolist()
    [3.0, 0.0]
    """
    return torch.nn.functional.linear(hidden_activations(mlp, x), mlp.down, mlp.down_bias)


def hidden_activations(mlp: MLP, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch neurons"]:
    """Computes the input of `down`, scales included.

    >>> mlp = MLP(torch.eye(2), torch.eye(2), torch.relu, output_scale=torch.tensor([2.0, 5.0]))
    >>> hidden_activations(mlp, torch.ones(2)).tolist()
    [2.0, 5.0]
    """
    up = torch.nn.functional.linear(x, mlp.up, mlp.up_bias)
    activated = up if mlp.gate is None else torch.nn.functional.linear(x, mlp.gate, mlp.gate_bias)
    if mlp.input_scale is not None:
        activated = activated * mlp.input_scale.to(activated.dtype)
    activated = mlp.activation(activated) if mlp.gating is None else mlp.gating(activated, up)
    if mlp.output_scale is not None:
        activated = scale_neurons(activated, mlp.output_scale)
    return activated if mlp.gate is None or mlp.gating is not None else activated * up


def scale_neurons(x: Tensor, scale: Tensor) -> Tensor:
    """Computes `x * scale` in fp32 or better, returned in the dtype of `x`.

    bf16 holds whole numbers only up to 256: a cluster size of 463, rounded first, would become 464.

    >>> scale_neurons(torch.ones(1, dtype=torch.float16), torch.tensor([2**17])).isinf().item()
    True
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    return (x * scale.to(compute)).to(x.dtype)


def fold(mlp: MLP) -> MLP:
    """Folds `output_scale` into `down` and `input_scale` into the map before the activation.

    The forward pass is kept up to rounding, the Adam kernel of `down` is not (paper, section 4.3):
    fold to deploy, not before fine-tuning.

    >>> mlp = MLP(torch.ones(1, 2), torch.ones(2, 1), torch.relu, output_scale=torch.tensor([3.0]))
    >>> fold(mlp).down.tolist()
    [[3.0], [3.0]]
    """
    down = mlp.down if mlp.output_scale is None else scale_neurons(mlp.down, mlp.output_scale)
    folded = replace(mlp, down=down, input_scale=None, output_scale=None)
    scale = mlp.input_scale
    if scale is None:
        return folded
    if mlp.gate is None:
        up_bias = None if mlp.up_bias is None else scale_neurons(mlp.up_bias, scale)
        return replace(folded, up=scale_neurons(mlp.up, scale[:, None]), up_bias=up_bias)
    gate_bias = None if mlp.gate_bias is None else scale_neurons(mlp.gate_bias, scale)
    return replace(folded, gate=scale_neurons(mlp.gate, scale[:, None]), gate_bias=gate_bias)


def neurons(mlp: MLP) -> Float[Tensor, "neurons features"]:
    """Stacks one row for each neuron, [gate | gate bias | up | up bias | down], in fp32 or better.

    The rows of the paper's section 4.2, step 2.

    >>> neurons(MLP(torch.ones(4, 3), torch.ones(3, 4), torch.relu, up_bias=torch.ones(4))).shape
    torch.Size([4, 7])
    """
    parts = [part.unsqueeze(1) if part.ndim == 1 else part for part in _neuron_parts(mlp).values()]
    compute = torch.promote_types(mlp.up.dtype, torch.float32)
    return torch.cat([part.to(compute) for part in parts], dim=1)


def replace_neurons(mlp: MLP, rows: Float[Tensor, "clusters features"]) -> MLP:
    """Rebuilds a block from rows as made by `neurons`, in its own dtype, without scales.

    `down_bias` stays.

    >>> mlp = MLP(torch.ones(4, 3), torch.ones(3, 4), torch.relu)
    >>> replace_neurons(mlp, neurons(mlp)[:2]).num_neurons
    2
    """
    parts = _neuron_parts(mlp)
    widths = [1 if part.ndim == 1 else part.shape[1] for part in parts.values()]
    fields = {}
    for (name, part), columns in zip(parts.items(), rows.split(widths, dim=1), strict=True):
        shaped = columns[:, 0] if part.ndim == 1 else columns.T if name == "down" else columns
        fields[name] = shaped.to(part.dtype).clone(memory_format=torch.contiguous_format)
    return replace(mlp, input_scale=None, output_scale=None, **fields)


def select_neurons(mlp: MLP, indices: Int[Tensor, " selected"]) -> MLP:
    """Selects neurons by index, in the given order, from all tensors and scales.

    >>> mlp = MLP(torch.arange(3.0)[:, None], torch.arange(3.0)[None], torch.relu)
    >>> select_neurons(mlp, torch.tensor([2, 0])).down.tolist()
    [[2.0, 0.0]]
    """

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[indices].clone()

    return replace(
        mlp,
        up=mlp.up[indices].clone(),
        up_bias=rows(mlp.up_bias),
        gate=rows(mlp.gate),
        gate_bias=rows(mlp.gate_bias),
        down=mlp.down[:, indices].contiguous(),
        input_scale=rows(mlp.input_scale),
        output_scale=rows(mlp.output_scale),
    )


def canonical_order(mlp: MLP) -> Int[Tensor, " neurons"]:
    """Sorts the neurons by the length of their rows.

    With this order a seeded method does not depend on the order of the neurons in the checkpoint.

    >>> canonical_order(MLP(torch.tensor([[3.0], [1.0]]), torch.ones(1, 2), torch.relu)).tolist()
    [1, 0]
    """
    return neurons(mlp).double().square().sum(1).argsort(stable=True)


def map_tensors(mlp: MLP, function: Callable[[Tensor], Tensor]) -> MLP:
    """Applies a function to all weights and biases. The scales stay.

    >>> mlp = MLP(torch.ones(2, 1), torch.ones(1, 2), torch.relu)
    >>> map_tensors(mlp, lambda tensor: 3 * tensor).up.tolist()
    [[3.0], [3.0]]
    """
    return replace(mlp, **{name: function(tensor) for name, tensor in mlp.tensors().items()})


def in_compute_dtype(mlp: MLP) -> MLP:
    """Casts weights and biases to fp32, or leaves float64. The scales stay.

    >>> half = MLP(torch.ones(2, 1).half(), torch.ones(1, 2).half(), torch.relu)
    >>> in_compute_dtype(half).up.dtype
    torch.float32
    """
    compute = torch.promote_types(mlp.up.dtype, torch.float32)
    return map_tensors(mlp, lambda tensor: tensor.to(compute))


def clone(mlp: MLP) -> MLP:
    """Copies the weights and biases. The scales are shared.

    >>> mlp = MLP(torch.ones(2, 1), torch.ones(1, 2), torch.relu)
    >>> clone(mlp).up is mlp.up
    False
    """
    return map_tensors(mlp, Tensor.clone)


def _neuron_parts(mlp: MLP) -> dict[str, Tensor]:
    """Returns the tensors with one row for each neuron, in the order of `neurons`."""
    parts = {"gate": mlp.gate, "gate_bias": mlp.gate_bias, "up": mlp.up, "up_bias": mlp.up_bias, "down": mlp.down.T}
    return {name: part for name, part in parts.items() if part is not None}


def on_device(mlp: MLP, device: torch.device) -> MLP:
    """Moves weights, biases and scales to `device`.

    >>> mlp = MLP(torch.ones(2, 1), torch.ones(1, 2), torch.relu)
    >>> on_device(mlp, torch.device("cpu")).up.device
    device(type='cpu')
    """
    return replace(
        map_tensors(mlp, lambda tensor: tensor.to(device)),
        input_scale=None if mlp.input_scale is None else mlp.input_scale.to(device),
        output_scale=None if mlp.output_scale is None else mlp.output_scale.to(device),
    )

from dataclasses import replace

import pytest
import torch
from random_mlp import make_mlp

from mlpfusion.mlp import fold, forward, neurons, replace_neurons, select_neurons

every_layout = pytest.mark.parametrize(
    "layout", [{"biased": False}, {"biased": True}, {"gated": True, "biased": False}, {"gated": True}], ids=str
)


def scales(mlp, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, mlp.num_neurons, generator=generator, dtype=torch.float64) + 0.5
    return {"input_scale": drawn[0], "output_scale": drawn[1]}


@every_layout
@pytest.mark.parametrize("seed", range(3))
def test_folding_keeps_the_function_for_both_scales(layout, seed):
    mlp = make_mlp(seed=seed, **layout)
    scaled = replace(mlp, **scales(mlp, seed))
    x = torch.randn(7, mlp.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    folded = fold(scaled)
    assert folded.input_scale is None
    assert folded.output_scale is None
    torch.testing.assert_close(forward(folded, x), forward(scaled, x))


@every_layout
def test_rows_and_blocks_are_inverse(layout):
    mlp = make_mlp(**layout)
    again = replace_neurons(mlp, neurons(mlp))
    for name, tensor in mlp.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert neurons(mlp).shape == (12, sum(t.numel() for n, t in mlp.tensors().items() if n != "down_bias") // 12)


@every_layout
def test_selecting_all_neurons_in_another_order_keeps_the_function(layout):
    mlp = make_mlp(**layout)
    mlp = replace(mlp, **scales(mlp, 0))
    x = torch.randn(7, mlp.hidden_size, dtype=torch.float64)
    moved = select_neurons(mlp, torch.arange(11, -1, -1))
    torch.testing.assert_close(forward(moved, x), forward(mlp, x))


def test_the_scale_is_applied_in_full_precision():
    mlp = make_mlp(4, dtype=torch.bfloat16, biased=False, activation="relu")
    scale = torch.tensor([463, 1, 1, 1], dtype=torch.int32)  # bf16 has 462 and 464
    x = torch.randn(3, mlp.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).bfloat16()
    activated = torch.relu(x @ mlp.up.T)
    expected = (activated.float() * scale).bfloat16() @ mlp.down.T
    assert torch.equal(forward(replace(mlp, output_scale=scale), x), expected)

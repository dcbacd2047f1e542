import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.methods.data_free.peak_to_peak import PeakToPeak, weight_range


def test_the_score_is_the_range_of_both_input_maps():
    mlp = make_mlp(gated=True)
    assert mlp.gate is not None
    expected = [
        max(up) + abs(min(up)) + max(gate) + abs(min(gate))
        for up, gate in zip(mlp.up.tolist(), mlp.gate.tolist(), strict=True)
    ]
    torch.testing.assert_close(weight_range(mlp), torch.tensor(expected, dtype=torch.float64))


def test_the_largest_ranges_are_kept_in_their_old_order():
    mlp = make_mlp()
    small = narrow(mlp, 5, PeakToPeak(), torch.Generator()).mlp
    best = weight_range(mlp).topk(5).indices.sort().values
    assert torch.equal(small.up, mlp.up[best])
    assert torch.equal(small.down, mlp.down[:, best])

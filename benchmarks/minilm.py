"""Output error of every method on the real all-MiniLM-L6-v2, one layer at a time, and what a cut saves.

    python benchmarks/minilm.py [--sentences N] [--out benchmarks/results/minilm.json]

Each layer alone is cut to 25 % of its neurons; the error is the mean of |H~ - H| over the mean of |H|, of the raw MLP
output, over all tokens of the SST-2 validation sentences in the folder that MLPFUSION_DATA names. Three seeds.
Size and forward time are those of the model with its last four layers fused, in turns with the original.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from mlpfusion.architectures.sites import find_sites, read_mlp
from mlpfusion.architectures.table import find_architecture
from mlpfusion.compression import compress
from mlpfusion.demo.model import demo_checkpoint
from mlpfusion.evaluate.output_error import mlp_inputs, relative_output_error
from mlpfusion.evaluate.speed import forward_seconds
from mlpfusion.methods import METHODS as NARROW_METHODS
from mlpfusion.methods import method_name, narrow
from mlpfusion.methods.fusion import Fusion
from mlpfusion.outcomes import site_generator
from mlpfusion.record import versions

KEEP_RATIO = 0.25
SEEDS = (0, 1, 2)
METHODS = {method_name(method): method() for method in NARROW_METHODS} | {"fusion, Lloyd only": Fusion(refine=False)}
BATCH_SIZE = 32


def read_batches(folder: Path, num_sentences: int | None) -> list[dict[str, torch.Tensor]]:
    """The validation sentences of SST-2 as padded batches."""
    data = Path(os.environ.get("MLPFUSION_DATA", "../shared/data")) / "glue" / "SST-2" / "validation.jsonl.gz"
    with gzip.open(data, "rt", encoding="utf-8") as file:
        sentences = [json.loads(line)["sentence"] for line in file][:num_sentences]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"padding": "longest", "truncation": True, "max_length": 128, "return_tensors": "pt"}
    return [
        dict(tokenizer(sentences[start : start + BATCH_SIZE], **options))
        for start in range(0, len(sentences), BATCH_SIZE)
    ]


@torch.no_grad()
def measure_errors(folder: Path, batches: list[dict[str, torch.Tensor]]) -> list[dict]:
    """One row a method, layer and seed."""
    model = AutoModel.from_pretrained(folder).eval()
    sites = find_sites(model, find_architecture(model.config.model_type))
    inputs = mlp_inputs(model, sites, batches)
    rows = []
    for site in sites:
        mlp = read_mlp(model, site)
        for name, method in METHODS.items():
            for seed in SEEDS:
                width = round(KEEP_RATIO * mlp.num_neurons)
                result = narrow(mlp, width, method, site_generator(seed, site.path))
                error = relative_output_error(mlp, result.mlp, inputs[site.path])
                row = {"method": name, "layer": site.layer, "seed": seed, "output_error": error}
                rows.append(row | {"metrics": result.metrics})
                print(f"{name:18} layer {site.layer} seed {seed}: {error:.3f}", flush=True)
    return rows


def measure_cut(folder: Path, batch: dict[str, torch.Tensor]) -> dict:
    """Parameters, bytes, compression and forward seconds with the last four layers fused."""
    original, fused = (AutoModel.from_pretrained(folder).eval() for _ in range(2))
    record = compress(fused, Fusion(), layers="last:4", keep_ratio=KEEP_RATIO)
    before, after = forward_seconds([original, fused], batch, repeats=9)
    return {
        "layers": "last:4",
        "parameters": [record.original.parameters, record.compressed.parameters],
        "bytes": [record.original.bytes, record.compressed.bytes],
        "compress_seconds": record.seconds,
        "batch_shape": list(batch["input_ids"].shape),
        "forward_seconds": [before, after],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, help="take only the first N sentences")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/minilm.json"))
    arguments = parser.parse_args()
    folder = demo_checkpoint()
    batches = read_batches(folder, arguments.sentences)
    result = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "keep_ratio": KEEP_RATIO,
        "seeds": SEEDS,
        "sentences": sum(len(batch["input_ids"]) for batch in batches),
        "data": "SST-2 validation",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "cut": measure_cut(folder, batches[0]),
        "errors": measure_errors(folder, batches),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in METHODS:
        errors = [row["output_error"] for row in result["errors"] if row["method"] == name]
        print(f"{name:18} mean {statistics.mean(errors):.3f}")


if __name__ == "__main__":
    main()

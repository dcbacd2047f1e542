"""What every method costs on a block of RoBERTa-base's size: seconds of compression and of the comparison's kernels.

    OMP_NUM_THREADS=1 python benchmarks/roberta_cost.py [--out benchmarks/results/roberta_cost.json]

A random RoBERTa of the base shape with two layers (768/3,072, GELU), layer 1 cut to 25 % by every method, as `mlpfusion
compare` does it. Its sentences are random tokens at the lengths of SST-2's, its errors mean nothing and are not kept.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from transformers import RobertaConfig, RobertaModel

from mlpfusion.measure.comparison import compare_methods
from mlpfusion.methods.table import ONE_SHOT
from mlpfusion.record import versions

SAMPLES, CALIBRATION, LENGTHS = 128, 256, (8, 40)


def batches(count: int, vocabulary: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random sentences, 32 of one length at a time, `LENGTHS` from the shortest to the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(*LENGTHS, count // 32).round().int().tolist()
    ids = [torch.randint(10, vocabulary, (32, length), generator=generator) for length in lengths]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/roberta_cost.json"))
    arguments = parser.parse_args()
    config = RobertaConfig(num_hidden_layers=2, vocab_size=5000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RobertaModel(config).eval()
    started, rows = time.perf_counter(), []
    for method in ONE_SHOT:
        begun = time.perf_counter()
        calibration = {0: batches(CALIBRATION, config.vocab_size, 1)}
        (row,) = compare_methods(
            model,
            [method()],
            batches(SAMPLES, config.vocab_size, 2),
            layers="1",
            keep_ratio=0.25,
            seeds=[0],
            calibration=calibration,
        )
        rows.append(
            {
                "method": row.method,
                "size": row.size,
                "parameters": row.parameters,
                "nonzero_parameters": row.nonzero_parameters,
                "compress_seconds": row.seconds,
                "compare_seconds": round(time.perf_counter() - begun, 3),
            }
        )
        print(rows[-1], flush=True)
    result = {
        "model": "random RoBERTa, 768/3,072, one layer to 25 %",
        "samples": SAMPLES,
        "calibration_samples": CALIBRATION,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

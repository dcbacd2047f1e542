"""What a cut saves on the real all-MiniLM-L6-v2: parameters, bytes, and forward time in turns with the original.

python benchmarks/cut.py [--out benchmarks/results/minilm_cut.json]
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from transformers import AutoModel

from mlpfusion.compression.compress import compress
from mlpfusion.demo.model import demo_batch, demo_checkpoint
from mlpfusion.measure.speed import forward_seconds
from mlpfusion.methods.data_free.fusion import Fusion
from mlpfusion.record import versions

LAYERS, KEEP_RATIO = "last:4", 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/minilm_cut.json"))
    arguments = parser.parse_args()
    folder = demo_checkpoint()
    original, fused = (AutoModel.from_pretrained(folder).eval() for _ in range(2))
    record = compress(fused, Fusion(), layers=LAYERS, keep_ratio=KEEP_RATIO)
    batch = demo_batch(folder)
    result = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "layers": LAYERS,
        "keep_ratio": KEEP_RATIO,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "parameters": [record.original.parameters, record.compressed.parameters],
        "bytes": [record.original.bytes, record.compressed.bytes],
        "compress_seconds": record.seconds,
        "batch_shape": list(batch["input_ids"].shape),
        "forward_seconds": forward_seconds([original, fused], batch, repeats=9),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""One optimiser step (forward, backward, AdamW) of a model against the same model fused: time, FLOPs, peak memory.

RoBERTa-base's shape, its last 8 of 12 layers at 25 %, and all-MiniLM-L6-v2's, its last 4 of 6, both with random
weights and a classification head; batches of 32 full sequences; with their dropout of 0.1, whose random numbers torch
draws on one thread of a CPU, and without. The two models take turns in one process, and seconds are medians. Every peak
is that of a process of its own that makes two steps. On the CPU in fp32; where there is a CUDA device, there too, in
fp32 and under bf16 autocast. A quarter of an hour on two cores:

    OMP_WAIT_POLICY=PASSIVE python benchmarks/training_step.py [--out benchmarks/results/training_step.json]
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from mlpfusion.compression.compress import compress
from mlpfusion.demo.model import demo_checkpoint
from mlpfusion.measure.speed import seconds_in_turns, training_step, training_step_flops
from mlpfusion.methods.data_free.fusion import Fusion
from mlpfusion.record import peak_bytes, versions

BATCH, SEQUENCES, DROPOUTS, KEEP_RATIO = 32, (32, 128), (0.1, 0.0), 0.25
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
MODELS = {
    "RoBERTa-base shape, last 8 of 12 layers": ("last:8", lambda: AutoConfig.for_model("roberta", **ROBERTA)),
    "all-MiniLM-L6-v2, last 4 of 6 layers": ("last:4", lambda: AutoConfig.from_pretrained(demo_checkpoint())),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_step.json"))
    parser.add_argument("--repeats", type=int, default=7, help="turns on the CPU; five times as many on a GPU")
    parser.add_argument(
        "--peak", nargs=5, metavar=("FOLDER", "DROPOUT", "SEQUENCE", "DEVICE", "PRECISION"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if arguments.peak:
        print(measure_peak(*arguments.peak))
        return
    settings = [("cpu", "fp32"), *([("cuda", "fp32"), ("cuda", "bf16")] if torch.cuda.is_available() else [])]
    rows = []
    for name, (layers, _) in MODELS.items():
        with checkpoints(name, layers) as folders:
            for device, precision in settings:
                for dropout, sequence in product(DROPOUTS, SEQUENCES):
                    row = measure(folders, dropout, sequence, device, precision, arguments.repeats)
                    rows.append(row | {"model": name})
                    print(json.dumps(rows[-1]), flush=True)
    result = {
        "batch_size": BATCH,
        "keep_ratio": KEEP_RATIO,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": versions(),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@contextmanager
def checkpoints(name: str, layers: str) -> Iterator[list[Path]]:
    """Folders of the model with random weights and of the same model fused; k-means without its slow refinement."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(MODELS[name][1]())
    with TemporaryDirectory() as scratch:
        folders = [Path(scratch) / one for one in ("full", "fused")]
        model.save_pretrained(folders[0])
        compress(model, Fusion(refine=False), layers=layers, keep_ratio=KEEP_RATIO)
        model.save_pretrained(folders[1])
        yield folders


def measure(
    folders: list[Path], dropout: float, sequence: int, device: str, precision: str, repeats: int
) -> dict[str, Any]:
    """One row: seconds, FLOPs and peaks of the full and the fused model, and what came of them."""
    models = [load(folder, dropout, device) for folder in folders]
    steps = [training_step(one, make_batch(sequence, device), autocast=AUTOCAST[precision]) for one in models]
    more = 5 if device == "cuda" else 1
    taken = seconds_in_turns(steps, more * repeats, warm_up=more)
    seconds, flops = [median(one) for one in taken], [count_flops(folder, sequence) for folder in folders]
    turns = [full / fused for full, fused in zip(*taken, strict=True)]
    own = ["--peak", "{}", str(dropout), str(sequence), device, precision]
    return {
        "device": device,
        "precision": precision,
        "dropout": dropout,
        "sequence": sequence,
        "seconds": seconds,
        "flops": flops,
        "allowed_speedup": flops[0] / flops[1],
        "measured_speedup": seconds[0] / seconds[1],
        "speedup_of_turns": [min(turns), max(turns)],
        "reached": (seconds[0] / seconds[1]) / (flops[0] / flops[1]),
        "peak_bytes": [run_itself([one.format(folder) for one in own]) for folder in folders],
    }


def load(folder: Path, dropout: float, device: str) -> PreTrainedModel:
    """The model as a user has it before training: in train mode, with this share of dropout everywhere."""
    shares = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return AutoModelForSequenceClassification.from_pretrained(folder, **shares).to(device).train()


def make_batch(sequence: int, device: str) -> dict[str, Tensor]:
    """Random tokens without padding, all of one class."""
    ids = torch.randint(5, 1000, (BATCH, sequence), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(BATCH, dtype=torch.long)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def count_flops(folder: Path, sequence: int) -> int:
    """FLOPs of forward and backward; shapes are enough, and transformers cannot look into a mask without values."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    batch = make_batch(sequence, "meta")
    del batch["attention_mask"]
    return training_step_flops(model, batch)


def measure_peak(folder: str, dropout: str, sequence: str, device: str, precision: str) -> int:
    """Peak memory of this process, which has done nothing else; from the second step on AdamW has its state."""
    model = load(Path(folder), float(dropout), device)
    step = training_step(model, make_batch(int(sequence), device), autocast=AUTOCAST[precision])
    for _ in range(2):
        step()
    return peak_bytes(torch.device(device))


def run_itself(arguments: list[str]) -> int:
    """What this script prints last when it is run with `arguments` in a fresh process."""
    found = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return int(found.stdout.split()[-1])


if __name__ == "__main__":
    main()

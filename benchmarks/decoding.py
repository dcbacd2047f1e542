"""Tokens per second of a language model against the same model with a quarter of its MLPs: writing and training.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/decoding.py MODEL [MODEL ...] [--out benchmarks/results/decoding.json]

Every MODEL is a folder with a causal language model in fp32 or bf16; all of its layers are cut, with P beside the
weights as it is trained, and folded as it is served. Written are 64 tokens after 64 random ones, greedily and with a
cache, one text at a time and 32; trained is on 8 windows of 128 tokens. The models take turns in one process, seconds
are medians. On the CPU in fp32; where there is a CUDA device, there instead, under bf16 autocast.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging

import mlpfusion
from mlpfusion.measure.speed import seconds_in_turns, training_step
from mlpfusion.record import versions

KEEP_RATIO = 0.25
PROMPT, NEW = 64, 64  # tokens
BATCHES = (1, 32)  # texts that are written together
WINDOWS, WINDOW = 8, 128
FORMS = ("full", "cut", "cut and folded")


def forms_of(folder: Path, device: str) -> list[PreTrainedModel]:
    """The model, the cut one and the folded one."""
    full: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    full.to(device)
    cut = copy.deepcopy(full)
    mlpfusion.compress(cut, mlpfusion.Fusion(refine=False), layers="all", keep_ratio=KEEP_RATIO)
    folded = copy.deepcopy(cut)
    mlpfusion.fold(folded)
    return [full, cut, folded]


def random_tokens(model: PreTrainedModel, shape: tuple[int, int]) -> Tensor:
    """Any tokens: time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def writing(model: Any, batch: int, autocast: torch.dtype | None) -> Callable[[], None]:
    """Writes `NEW` tokens after each of `batch` prompts; no token ends a text."""
    prompts = random_tokens(model, (batch, PROMPT))
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW, use_cache=True)

    @torch.no_grad()
    def write() -> None:
        model.eval()
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            written = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts))
        assert written.shape[1] == PROMPT + NEW

    return write


def training(model: PreTrainedModel, autocast: torch.dtype | None) -> Callable[[], Tensor]:
    """Makes one optimiser step."""
    ids = random_tokens(model, (WINDOWS, WINDOW))
    step = training_step(model.train(), {"input_ids": ids, "labels": ids}, autocast=autocast)

    def train() -> Tensor:
        model.train()
        return step()

    return train


def row(kind: str, tokens: int, seconds: list[list[float]], **more: int) -> dict[str, Any]:
    """Tokens per second of every form, and how many times those of the full model."""
    full = seconds[0]
    return {
        "kind": kind,
        **more,
        "tokens_per_second": {form: tokens / median(one) for form, one in zip(FORMS, seconds, strict=True)},
        "over_full": {form: median(full) / median(one) for form, one in zip(FORMS, seconds, strict=True)},
    }


def measured(folder: Path, device: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of one model."""
    models, autocast = forms_of(folder, device), torch.bfloat16 if device == "cuda" else None
    size = {"parameters": models[0].num_parameters(), "cut_parameters": models[1].num_parameters()}
    rows = []
    for batch in BATCHES:
        seconds = seconds_in_turns([writing(model, batch, autocast) for model in models], repeats)
        rows.append(row("writing", batch * NEW, seconds, batch=batch))
    seconds = seconds_in_turns([training(model, autocast) for model in models], repeats)
    rows.append(row("training", WINDOWS * WINDOW, seconds, batch=WINDOWS))
    return [{"model": folder.name} | size | one for one in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.json"))
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for folder in arguments.models:
        for one in measured(folder, device, arguments.repeats):
            rows.append(one)
            print(json.dumps(one), flush=True)
    result = {
        "keep_ratio": KEEP_RATIO,
        "prompt": PROMPT,
        "new": NEW,
        "window": WINDOW,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The perplexity of a checkpoint, with all that the number depends on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import texts_sha256
from mlpfusion.data.unlabelled.windows import token_windows
from mlpfusion.measure.language import LanguageLoss, language_loss
from mlpfusion.progress import Progress
from mlpfusion.record import Origin, versions


@dataclass(frozen=True)
class TextSource:
    """Where texts are from and how they are packed: `window`, `stride` and `max_tokens` of `token_windows`."""

    file: str
    column: str | None
    window: int
    stride: int | None
    max_tokens: int | None


@dataclass(frozen=True)
class Evaluation:
    """Perplexity of a checkpoint; `text.file` is the short name, `texts_sha256` the hash of all texts, one a line."""

    model: Origin
    text: TextSource
    texts_sha256: str
    result: LanguageLoss
    parameters: int
    dtype: str
    device: str
    threads: int
    seed: int
    seconds: float
    versions: dict[str, str]


def evaluate_checkpoint(
    source: Checkpoint, texts: Sequence[str], text: TextSource, *, device: str, seed: int, progress: Progress
) -> Evaluation:
    """Measures the perplexity of `source` on `texts`; its weights are read last.

    Raises `InputError` as `token_windows`, `Checkpoint.load` and `language_loss` do.
    """
    windows = token_windows(
        texts, source.tokenizer, source.config,
        window=text.window, stride=text.stride, max_tokens=text.max_tokens,
    )  # fmt: skip
    model = source.load()
    cast(nn.Module, model).to(device)
    started = time.perf_counter()
    result = language_loss(model, windows, seed=seed, progress=progress)
    return Evaluation(
        model=source.origin,
        text=replace(text, file=short_name(text.file)),
        texts_sha256=texts_sha256(texts),
        result=result,
        parameters=model.num_parameters(),
        dtype="float32" if device == "cpu" else str(model.dtype).removeprefix("torch."),
        device=device,
        threads=torch.get_num_threads(),
        seed=seed,
        seconds=round(time.perf_counter() - started, 3),
        versions=versions(),
    )

"""Perplexity of a causal language model on packed windows of text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mlpfusion.data.language.causal import check_causal, check_sees_no_future
from mlpfusion.data.unlabelled.windows import Window
from mlpfusion.errors import InputError
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.sites.recording import recording

_LOGITS = 2**26  # of a forward pass: 0.27 GB in fp32, and as much again for the loss; not tuned
_RESAMPLES = 2_000  # of the windows; the ends of the interval move by about 1 % of its length between seeds


@dataclass(frozen=True)
class LanguageLoss:
    """Loss of a language model on a text.

    `loss` is the mean over the predicted tokens, in nats; `perplexity` is its exponential; 95 % of the perplexities of
    resampled windows lie between `low` and `high` (None for a single window).
    """

    loss: float
    perplexity: float
    low: float | None
    high: float | None
    tokens: int
    windows: int


def language_loss(
    model: PreTrainedModel,
    windows: Sequence[Window],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> LanguageLoss:
    """Measures the loss of `model` on windows of text, with an interval by a bootstrap over the windows.

    On a CPU the arithmetic is in fp32, elsewhere in the dtype of the model. `seed` draws the bootstrap. Raises
    `InputError` for a model that is no causal language model or sees later tokens, and for a loss that is not finite.
    """
    check_causal(model)
    check_sees_no_future(model)
    losses, counts = window_losses(model, windows, progress), np.array([window.num_scored for window in windows])
    if not np.isfinite(losses).all():
        raise InputError("`model` must give finite losses on the texts, it gives NaN or Inf")
    loss = float(losses.sum() / counts.sum())
    low, high = _interval(losses, counts, seed) if len(windows) > 1 else (None, None)
    return LanguageLoss(loss, math.exp(loss), low, high, int(counts.sum()), len(windows))


@torch.no_grad()
def window_losses(
    model: PreTrainedModel, windows: Sequence[Window], progress: Progress | None = None
) -> Float[np.ndarray, " windows"]:
    """Sums, for every window, the losses of its predicted tokens. The model is not changed."""
    sums, progress = list[Tensor](), shown_progress(progress)
    vocabulary = model.config.get_text_config().vocab_size
    with recording(model, gradients=False):
        for length, group in groupby(windows, lambda window: len(window.input_ids)):
            same, size = list(group), max(1, _LOGITS // (length * vocabulary))
            for start in range(0, len(same), size):
                progress(len(sums), len(windows), "")
                sums += _sums(model, same[start : start + size])
    progress(len(windows), len(windows), "")
    return torch.stack(sums).cpu().numpy()


def _sums(model: PreTrainedModel, windows: Sequence[Window]) -> list[Tensor]:
    ids = torch.stack([window.input_ids for window in windows]).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
    return [loss[-window.num_scored :].sum() for loss, window in zip(losses, windows, strict=True)]


def _interval(losses: Float[np.ndarray, " windows"], counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the perplexity; windows are resampled, as tokens of one text are not independent."""

    def perplexity(losses: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.exp(losses.sum(axis) / counts.sum(axis))

    result = bootstrap(
        (losses, counts), perplexity, paired=True, vectorized=True, method="percentile",
        n_resamples=_RESAMPLES, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)

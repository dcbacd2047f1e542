"""How far the predictions of a language model are moved by a cut, on a few short texts."""

import math
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.sites.recording import recordable, recording

# Of 32 tokens at most: 512 tokens show whether a model is lost, at half a gigabyte for a vocabulary of 262,144.
NUM_TEXTS = 16
_LENGTH = 32
# Nats a token. SmolLM2-135M at 80 %: 0.07 to 0.7 for cuts with a perplexity of 34 (26 before), on text and on random
# tokens, 4.8 and more for those with a perplexity above 10,000 (LOG, 2026-11-29).
_FAR = 1.0


def short_texts(batches: Sequence[Batch]) -> list[Batch]:
    """Picks about `NUM_TEXTS` texts, the first of every batch, and their first tokens.

    >>> batch = {"input_ids": torch.ones(32, 128), "attention_mask": torch.ones(32, 128)}
    >>> [tuple(one["input_ids"].shape) for one in short_texts([batch, batch])]
    [(8, 32), (8, 32)]
    """
    each = math.ceil(NUM_TEXTS / len(batches))
    names = ("input_ids", "attention_mask")
    return [{name: batch[name][:each, :_LENGTH] for name in names if name in batch} for batch in batches[:NUM_TEXTS]]


@torch.no_grad()
def predictions(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Float[Tensor, "tokens vocabulary"]]:
    """Computes the log-probabilities of the next token after every token that no mask hides, batch by batch.

    In fp32 on a CPU, in the dtype of the model elsewhere. The model is not changed.
    """
    found = []
    with recording(model, gradients=False):
        for batch in batches:
            here = recordable(batch, model.device)
            logits = model(**here, use_cache=False).logits
            mask = here.get("attention_mask")
            visible = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
            found.append(visible.float().log_softmax(-1).cpu())
    return found


def divergence(
    before: Sequence[Float[Tensor, "tokens vocabulary"]], after: Sequence[Float[Tensor, "tokens vocabulary"]]
) -> float:
    """Computes the mean Kullback-Leibler divergence of two models' predictions, in nats a token.

    >>> fair, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> round(divergence([fair], [sure]), 4), divergence([fair], [fair])
    (0.1438, 0.0)
    """
    tokens = [
        torch.nn.functional.kl_div(small, full, reduction="none", log_target=True).sum(-1)
        for full, small in zip(before, after, strict=True)
    ]
    return float(torch.cat(tokens).double().mean())


def warn_if_lost(moved: float, texts: str) -> None:
    """Warns of a language model whose predictions on `texts` have moved by more than a nat a token."""
    if not moved <= _FAR:
        warnings.warn(
            f"the cut damaged the model: its predictions on {texts} moved by {moved:.1f} nats a token (above "
            f"{_FAR:g} is much). Calibrate (`--method ntk-match`, `--calibration FILE` or `--data-free`), or keep more "
            "neurons",
            stacklevel=2,
        )

"""Calibration without data for a language model: text that the model writes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.tokenizer import special_frame
from mlpfusion.data.unlabelled.random_tokens import common_tokens, ordinary_tokens
from mlpfusion.progress import Progress, shown_progress
from mlpfusion.seeds import seeded
from mlpfusion.sites.recording import recording

_TOGETHER = 64  # texts; their keys and values are 0.4 GB in a model of 135 million parameters


@torch.no_grad()
def own_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_texts: int,
    length: int,
    seed: int,
    progress: Progress | bool | None = None,
) -> Int[Tensor, "num_texts length"]:
    """Lets `model` write texts of `length` tokens, each token drawn by its probability.

    A text begins with what the tokenizer puts before every text and one random token. Special tokens are not drawn, so
    that no text ends early. The model is not changed, and its own settings of generation do not count.
    """
    progress = shown_progress(progress)
    ordinary = ordinary_tokens(tokenizer, model.config)
    first = common_tokens(ordinary, num_texts, torch.Generator().manual_seed(seed))
    frame = torch.tensor(special_frame(tokenizer)[0], dtype=torch.long).expand(num_texts, -1)
    starts = torch.cat([frame, first[:, None]], dim=1)
    special = sorted({*range(model.config.get_text_config().vocab_size)} - {*ordinary.tolist()})
    new = length - starts.shape[1]
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=new,
        min_new_tokens=new,
        suppress_tokens=special or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = list[Tensor]()
    generate = cast("Callable[..., Tensor]", model.generate)
    with recording(model), _generating_by(model, settings), seeded(seed):
        for start in starts.split(_TOGETHER):
            progress(sum(map(len, written)), num_texts, "writing texts to calibrate on")
            ids = start.to(model.device)
            written.append(generate(ids, attention_mask=torch.ones_like(ids)).cpu())
    progress(num_texts, num_texts, "")
    return torch.cat(written)


@contextmanager
def _generating_by(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """`model` with other settings of generation while the context is open."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own

"""Which models are causal language models, and have all that it takes."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import model_class
from mlpfusion.data.labelled.heads import has_trained_head, head_tensors
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.errors import InputError
from mlpfusion.sites.recording import recording

_SOME_TOKENS = range(8, 16)  # any will do; the first few ids are often padding


def check_causal(model: PreTrainedModel) -> None:
    """Raises `InputError` unless `model` predicts the next token, by its class."""
    if not is_causal(model):
        raise InputError(
            f"`model` must be a causal language model, such as a LlamaForCausalLM, got a {type(model).__name__}"
        )


def check_head_stored(checkpoint: Checkpoint) -> None:
    """Raises `InputError` if the head that predicts tokens is not in the weight files."""
    config = checkpoint.training_config
    kind = model_class(config)
    if head_tensors(config, kind) and not has_trained_head(config, kind, checkpoint.tensors):
        files = f"its weight files, got none in {checkpoint.name}"
        raise InputError(f"`model` must have the head of a language model in {files}")


@torch.no_grad()
def check_sees_no_future(model: PreTrainedModel) -> None:
    """Raises `InputError` for a model that sees the tokens it predicts.

    Changes the last of a few tokens: in a BERT whose config is no decoder's the logits before it change too.
    """
    tokens = _some_tokens(model)
    with recording(model, gradients=False):
        logits = model(input_ids=tokens, use_cache=False).logits
    first, second = logits[:, :-1].float()
    if (first - second).norm() > 0.01 * first.norm():  # far above rounding, in bf16 too
        raise InputError(
            "`model` must predict a token from those before it, in this "
            f"{type(model).__name__} the tokens after it count too"
        )


@torch.no_grad()
def check_loss_is_of_the_next(model: PreTrainedModel) -> None:
    """Raises `InputError` unless the loss of `model` compares the logits of a token with the next token.

    That of some classes, such as BartForCausalLM, asks a token for itself.
    """
    tokens, losses = _some_tokens(model), []
    batch = {"input_ids": tokens, "labels": tokens}
    with recording(model, gradients=False):
        losses.append(model(**batch, use_cache=False).loss)
        with head_at_predicted(model, batch) as inputs:
            losses.append(model(**inputs, use_cache=False).loss)
    if (losses[0] - losses[1]).abs() > 0.01 * losses[0].abs():  # far above rounding, in bf16 too
        raise InputError(
            "`model` must have a loss that compares the logits of a token with the next token, "
            f"that of this {type(model).__name__} compares other tokens"
        )


def _some_tokens(model: PreTrainedModel) -> Tensor:
    """Two texts that differ in their last token."""
    tokens = torch.tensor([_SOME_TOKENS, _SOME_TOKENS])
    tokens[1, -1] += 1
    return (tokens % model.config.get_text_config().vocab_size).to(model.device)

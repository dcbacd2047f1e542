"""Which models are causal language models, and have all that it takes."""

import torch
from transformers import PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import model_class
from mlpfusion.data.labelled.heads import has_trained_head, head_tensors
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
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.tensor([_SOME_TOKENS, _SOME_TOKENS])
    tokens[1, -1] += 1
    with recording(model, gradients=False):
        logits = model(input_ids=(tokens % vocabulary).to(model.device), use_cache=False).logits
    first, second = logits[:, :-1].float()
    if (first - second).norm() > 0.01 * first.norm():  # far above rounding, in bf16 too
        raise InputError(
            "`model` must predict a token from those before it, in this "
            f"{type(model).__name__} the tokens after it count too"
        )

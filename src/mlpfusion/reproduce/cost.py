"""What a trained model costs: its size, and the FLOPs of a forward pass."""

from dataclasses import dataclass
from typing import Any

from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import longest_text, text_length
from mlpfusion.kinds.routed import RoutedLinear
from mlpfusion.measure.flops import Flops, forward_flops
from mlpfusion.record import model_size
from mlpfusion.sites.mixtures.routers import router_parameters


@dataclass(frozen=True)
class Cost:
    """The cost of a model as a run leaves it.

    An adapter that was merged costs nothing; one that stays beside the weights, as after a second stage, counts in
    every field. `flops` are those of one text of `tokens`, zeros multiplied too; `flops_without_zeros` those of an
    engine that skips zeros. Both are None where they depend on the text: tokens go to experts, or XLM looks at lengths.
    `nonzero_parameters` counts the numbers that are not 0, `bytes` is the size when saved.
    """

    tokens: int
    flops: int | None
    flops_without_zeros: int | None
    parameters: int
    nonzero_parameters: int
    bytes: int


def cost_of(model: Any, tokens: int) -> Cost:
    """Returns the cost of a model, or of a `PeftModel` with its adapter unmerged."""
    # PEFT keeps the head as it was beside the one that trained: it is saved, but computes nothing
    parameters = [value for name, value in model.named_parameters() if ".original_module." not in name]
    flops = _flops(model, tokens)
    return Cost(
        tokens=tokens,
        flops=None if flops is None else flops.dense,
        flops_without_zeros=None if flops is None else flops.without_zeros,
        parameters=sum(value.numel() for value in parameters),
        nonzero_parameters=sum(int(value.count_nonzero()) for value in parameters),
        bytes=model_size(model).bytes,
    )


def counted_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Returns the length of the text that FLOPs are counted for: 128, or what the model takes."""
    return text_length(None, longest_text(tokenizer, config))


def _flops(model: Any, tokens: int) -> Flops | None:
    if router_parameters(model) or any(isinstance(module, RoutedLinear) for module in model.modules()):
        return None
    try:
        return forward_flops(model, tokens)
    except DataDependentOutputException:
        return None

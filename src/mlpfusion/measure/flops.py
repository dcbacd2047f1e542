"""FLOPs of a forward pass, counted on the meta device: nothing is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.update import Update
from mlpfusion.errors import InputError, shown
from mlpfusion.sites.recording import hooks


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sequence; `without_zeros` are those of an engine that skips zeros in the weights of linear maps."""

    dense: int
    without_zeros: int


def forward_flops(model: nn.Module, tokens: int) -> Flops:
    """Counts the FLOPs of a forward pass over one sequence of `tokens` ids.

    A multiplication and an addition are two FLOPs. Counted are matrix products and convolutions: linear maps, scores
    and contexts of attention (of all pairs of tokens, under a causal mask too), the head; and A, B and every entry of S
    of adapters that are not merged. Not counted are softmax, norms, activations, additions of biases, and look-ups of
    embeddings. The model is not changed. It may be on the meta device, where nothing is known to be zero. Raises
    `InputError` for a model that takes no ids.

    >>> from transformers import BertConfig, BertModel
    >>> forward_flops(BertModel(BertConfig(hidden_size=12, num_hidden_layers=0)), 5).dense  # the pooler, on one token
    288
    """
    config: Any = model.config
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise InputError(f"`model` must be a model of text for its FLOPs to be counted, got {shown(config.model_type)}")
    # Fake tensors, since transformers asks masks and ids on the meta device for numbers; and on the meta device, since
    # the counter does not know the attention that torch has for CPUs.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tensors: dict[str, Tensor] = {
        name: fake.from_tensor(tensor.detach().to("meta")) for name, tensor in _tensors(model)
    }
    inputs = {"input_ids": fake.from_tensor(torch.zeros(1, tokens, dtype=torch.long, device="meta"))}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with _counted(model) as seen, fake, FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, tensors, kwargs=inputs)
    dense = counter.get_total_flops() + seen.entries
    return Flops(dense, dense - seen.zeros)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@dataclass
class _Seen:
    """FLOPs that the counter does not tell: of single entries, and of zeros."""

    entries: int = 0
    zeros: int = 0


@contextmanager
def _counted(model: nn.Module) -> Iterator[_Seen]:
    """Inside, a forward pass adds to what was seen."""
    seen = _Seen()
    with hooks() as handles:
        for module in model.modules():
            if isinstance(module, Update):
                handles.append(module.register_forward_pre_hook(_counter_of_entries(seen, module.S.numel())))
            elif isinstance(module, nn.Linear | Conv1D) and not module.weight.is_meta:
                zeros = module.weight.numel() - int(module.weight.count_nonzero())
                handles.append(module.register_forward_pre_hook(_counter_of_zeros(seen, zeros)))
        yield seen


def _counter_of_entries(seen: _Seen, count: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.entries += 2 * count * inputs[0].shape[:-1].numel()

    return hook


def _counter_of_zeros(seen: _Seen, count: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.zeros += 2 * count * inputs[0].shape[:-1].numel()

    return hook

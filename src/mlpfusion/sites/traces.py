"""What enters every MLP of a model and the gradient of a scalar at what leaves it: the input of `mlpfusion.kernel`."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import BlockTrace, NextTokens, PeakHead, RandomHead, Scalar, random_trace
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.mixtures.routing import Routing, called_routing, output_instead, watch_mixtures
from mlpfusion.sites.mixtures.traces import RecordedTraces, check_mixtures_ran, routed_tokens
from mlpfusion.sites.over_batches import joined_over_batches
from mlpfusion.sites.parts import text_config
from mlpfusion.sites.recording import differentiable, hooks
from mlpfusion.sites.sites import Site, base_model, site_module

Head = RandomHead | PeakHead | NextTokens


@dataclass(frozen=True)
class Seen:
    """What one site took in and gave in one forward pass: lists of one tensor each."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def recorded_traces(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Iterable[Batch],
    scalar: Scalar,
    head: Head | None = None,
    keep: Callable[[Tensor], Tensor] = Tensor.detach,
) -> RecordedTraces:
    """The traces of all sites for f = `scalar` of the logits; of experts one record a mixture.

    The samples are those of all batches in order. D is the gradient at the output of the linear map `down`; f of one
    sample does not depend on the others, so the gradient of the sum over the batch holds that of every sample. Of a
    mixture D is the gradient at the output of its module, the weighted sum of what its experts give. Tokens
    that `attention_mask` hides (in a decoder `decoder_attention_mask`) are left out. The logits are those of the model
    at the samples, or of a `RandomHead` on its last hidden states, or of a `PeakHead` on its logits at every token (on
    the last hidden states where it has no language-modelling head), or `NextTokens` of a causal language model. `keep`
    keeps what enters a site until the end of a batch. `labels` of a batch go to `scalar`, not to the model. No
    parameter gets a gradient and no flag changes. Raises `InputError` if the model is in training mode, there is no
    batch, the model gives no logits of shape (samples, classes) and there is no head, or a site runs not once a batch.
    """
    _check_mode(model)
    alone = [site for site in sites if site.mixture is None]
    mixtures = {site.mixture: site for site in sites if site.mixture is not None}

    def recorded_in(batch: Batch) -> list[list[Tensor]]:
        watched = watch_sites(model, alone, keep), watch_mixtures(base_model(model), mixtures, keep)
        with torch.enable_grad(), watched[0] as seen, watched[1] as mixed:
            values = scalar(_logits(model, batch, head), batch.get("labels"))
            check_runs(alone, seen)
            check_mixtures_ran(mixtures, mixed)
            outputs = [*(one.outputs[0] for one in seen), *(mixed[path].output for path in mixtures)]
            gradients = torch.autograd.grad(values.sum(), outputs, allow_unused=True, materialize_grads=True)
        found = list[list[Tensor]]()
        for site, one, gradient in zip(alone, seen, gradients, strict=False):
            inputs, lengths = visible_inputs(model, site, batch, one.inputs[0].detach())
            found.append([inputs, visible_tokens(model, site, batch, gradient), lengths])
        for path, gradient in zip(mixtures, gradients[len(alone) :], strict=True):
            found.append(visible_rows(model, mixtures[path], batch, mixed[path].routing, gradient))
        return found

    recorded = joined_over_batches(list(batches), recorded_in)
    _forget_graphs(model)
    blocks = {site.path: BlockTrace(*one) for site, one in zip(alone, recorded, strict=False)}
    return RecordedTraces(blocks, dict(zip(mixtures, map(routed_tokens, recorded[len(alone) :]), strict=True)))


@torch.no_grad()
def random_traces(
    model: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Batch], generator: torch.Generator
) -> dict[str, BlockTrace]:
    """The trace of every site, by path, with standard normal cotangents: no labels, no head, forward passes only.

    The cotangents are drawn site by site after the last batch, so they do not depend on how samples are batched. Raises
    `InputError` if the model is in training mode, there is no batch, or a site runs not once a batch.
    """
    _check_mode(model)
    found = _visible_inputs(model, sites, batches)
    return {path: random_trace(inputs, lengths, generator) for path, (inputs, lengths) in found.items()}


@torch.no_grad()
def mlp_inputs(
    model: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Batch]
) -> dict[str, Float[Tensor, "tokens hidden"]]:
    """What enters the MLP at each site (by path), for every token of `batches` that no mask hides.

    One forward pass of the model a batch, in the mode that the model is in: call `model.eval()` first. Raises
    `InputError` if a site runs not once a batch.
    """
    return {path: inputs for path, (inputs, _) in _visible_inputs(model, sites, batches).items()}


def random_head(
    model: PreTrainedModel, generator: torch.Generator, num_classes: int = 2, pooling: str = "mean"
) -> RandomHead:
    """A random head for the base model of `model`, the same for the same state of `generator`.

    Raises `InputError` for a model without hidden states of one size, such as one of two towers.
    """
    hidden_size = getattr(text_config(base_model(model).config), "hidden_size", None)
    if not isinstance(hidden_size, int):
        raise InputError(_no_states(model, f"`hidden_size` {shown(hidden_size)}"))
    return RandomHead.draw(hidden_size, generator, num_classes, pooling)


def _no_states(model: PreTrainedModel, got: str) -> str:
    return (
        f"`model` must give last hidden states of one size, for the head of the kernel, a {type(model).__name__} has "
        f"{got}: leave the kernel out (ntk-match without `match`)"
    )


def _visible_inputs(
    model: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Batch]
) -> dict[str, tuple[Float[Tensor, "visible hidden"], Int[Tensor, " samples"]]]:
    """For every site, by path, the tokens that no mask hides, and how many there are a sample."""

    def recorded_in(batch: Batch) -> list[list[Tensor]]:
        with watch_sites(model, sites) as seen:
            run_base(model, batch)
            check_runs(sites, seen)
        return [list(visible_inputs(model, site, batch, one.inputs[0])) for site, one in zip(sites, seen, strict=True)]

    recorded = joined_over_batches(list(batches), recorded_in)
    return {site.path: (inputs, lengths) for site, (inputs, lengths) in zip(sites, recorded, strict=True)}


def _check_mode(model: PreTrainedModel) -> None:
    if model.training:
        raise InputError("`model` must be in eval mode, got one in training mode; call model.eval() first")


def check_runs(sites: Sequence[Site], seen: Sequence[Seen]) -> None:
    """Raises `InputError` unless every site ran once."""
    for site, one in zip(sites, seen, strict=True):
        if len(one.inputs) != 1 or len(one.outputs) != 1:
            raise InputError(f"`sites` must run once a forward pass, got {len(one.outputs)} runs of {site.path}")


@contextmanager
def watch_sites(
    model: PreTrainedModel, sites: Sequence[Site], keep: Callable[[Tensor], Tensor] = Tensor.detach
) -> Iterator[list[Seen]]:
    """Records what enters and what leaves the sites while the context is open; `keep` keeps what enters.

    Raises `InputError` for an expert.
    """
    experts = [site.path for site in sites if site.expert is not None]
    if experts:
        raise InputError(f"`sites` must be MLPs that every token goes through, got the expert {experts[0]}")
    seen = [Seen([], []) for _ in sites]
    with hooks() as handles:
        for site, one in zip(sites, seen, strict=True):
            handles.append(site_module(model, site, "up").register_forward_pre_hook(_keep_input(one, keep)))
            handles.append(site_module(model, site, "down").register_forward_hook(_keep_output(one)))
        yield seen


def _keep_input(seen: Seen, keep: Callable[[Tensor], Tensor] = Tensor.detach) -> Any:
    return lambda _module, args: _add(seen.inputs, args[0], keep)


def _keep_output(seen: Seen) -> Any:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = differentiable(output)
        _add(seen.outputs, kept, lambda one: one)
        return kept.clone()  # whoever adds to it in place does not change what is kept

    return hook


def _add(kept: list[Tensor], tensor: Tensor, keep: Callable[[Tensor], Tensor]) -> None:
    """Keeps the tensor of the first run. Others are counted: the graph of a layer that runs again is to go with it."""
    kept.append(tensor.new_empty(0) if kept else keep(tensor))


def _model_inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _logits(model: PreTrainedModel, batch: Batch, head: Head | None) -> Float[Tensor, "samples classes"]:
    if isinstance(head, NextTokens):
        if "input_ids" not in batch:
            raise InputError(f"`batches` must hold input_ids, whose likelihood is f, got {', '.join(batch)}")
        return head.logits(_outputs(model, batch)[0], batch["input_ids"], _mask(batch, decoder=False))
    if head is not None:
        predicts_tokens = isinstance(head, PeakHead) and model.get_output_embeddings() is not None
        read = _outputs(model, batch)[0] if predicts_tokens else _last_hidden_states(model, batch)
        return head.logits(read, _mask(batch, model.config.is_encoder_decoder))
    outputs = _outputs(model, batch)
    logits = outputs.get("logits")
    if logits is None or logits.ndim != 2:
        found = "none" if logits is None else f"shape {tuple(logits.shape)}"
        raise InputError(f"the logits of `model` must have shape (samples, classes), got {found}; hand over a `head`")
    return logits


def _mask(batch: Batch, decoder: bool) -> Tensor | None:
    return batch.get("decoder_attention_mask" if decoder else "attention_mask")


def visible_inputs(
    model: PreTrainedModel, site: Site, batch: Batch, values: Tensor
) -> tuple[Float[Tensor, "visible hidden"], Int[Tensor, " samples"]]:
    """The tokens of one site that no mask hides, and how many there are a sample.

    `values` is (samples, tokens, hidden), or flat, sample by sample, in models like OPT.
    """
    in_decoder = bool(model.config.is_encoder_decoder) and site.path.startswith("decoder")
    mask = _mask(batch, in_decoder)
    flat = values.reshape(-1, values.shape[-1])
    if mask is not None:
        return flat[mask.reshape(-1).bool()], mask.bool().sum(1)
    num_samples = len(next(iter(batch.values())))
    return flat, torch.full((num_samples,), len(flat) // num_samples, device=flat.device)


def visible_rows(
    model: PreTrainedModel, site: Site, batch: Batch, routing: Routing, *beside: Shaped[Tensor, "rows width"]
) -> list[Tensor]:
    """The rows of a mixture that no mask hides, as `routed_tokens` takes them.

    `site` is one of its experts; `beside` has a row for each of those of `routing`. Of tokens that enter several times
    only the rows of an expert are taken.
    """
    rows, lengths = visible_inputs(model, site, batch, routing.rows_of_tokens())
    is_taken = routing.is_of_expert(rows)
    taken = [values.detach()[rows[is_taken]] for values in (*routing.tensors(), *beside)]
    return [*taken, is_taken.sum(1), lengths]


def joined_inputs(
    found: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Float[Tensor, "visible hidden"], Int[Tensor, " samples"]]:
    """The tokens of all batches, and how many there are a sample."""
    if not found:
        raise InputError("`batches` must hold at least one batch, got none")
    inputs, lengths = zip(*found, strict=True)
    return torch.cat(inputs), torch.cat(lengths)


def visible_tokens(model: PreTrainedModel, site: Site, batch: Batch, values: Tensor) -> Float[Tensor, "visible hidden"]:
    """Those tokens of `values`, which enter or leave `site` or its layer, that no mask of `batch` hides."""
    return visible_inputs(model, site, batch, values)[0]


def last_hidden_tokens(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "visible hidden"]:
    """The last hidden states of the base model (of its decoder, where it has one) at the tokens that no mask hides."""
    hidden, mask = _last_hidden_states(model, batch), _mask(batch, model.config.is_encoder_decoder)
    return hidden.reshape(-1, hidden.shape[-1]) if mask is None else hidden[mask.bool()]


def _last_hidden_states(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "samples tokens hidden"]:
    base = base_model(model)
    if base.get_output_embeddings() is None:
        states = _outputs(base, batch)[0]
    else:  # a T5 with a language-modelling head is its own base model, and its first output are logits
        outputs = _outputs(base, batch, output_hidden_states=True)
        every = outputs.get("decoder_hidden_states") or outputs.get("hidden_states") or [None]
        states = every[-1]
    if not (isinstance(states, Tensor) and states.ndim == 3):
        raise InputError(_no_states(model, f"outputs of shape {tuple(getattr(states, 'shape', ()))}"))
    return states


def _forget_graphs(model: PreTrainedModel) -> None:
    """Cuts what some models keep from pass to pass, such as RecurrentGemma's states, from the graph it came from.

    The graph would stay in memory, and a model that holds one cannot be copied.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(module, name, value.detach())


@contextmanager
def replaced_block(model: PreTrainedModel, site: Site, mlp: MLP) -> Iterator[None]:
    """`model` with what `mlp` computes at `site` while the context is open; no weight of it changes."""
    entered = Seen([], [])

    def compute(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return forward(mlp, entered.inputs.pop().to(mlp.up.dtype)).to(output.dtype)

    with hooks() as handles:
        handles.append(site_module(model, site, "up").register_forward_pre_hook(_keep_input(entered)))
        handles.append(site_module(model, site, "down").register_forward_hook(compute))
        yield


@contextmanager
def replaced_mixture(model: PreTrainedModel, path: str, experts: Sequence[MLP]) -> Iterator[None]:
    """`model` with what `experts` give together in the mixture at `path` while the context is open."""

    def compute(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return output_instead(experts, called_routing(path, module, args, kwargs), output)

    with hooks() as handles:
        handles.append(base_model(model).get_submodule(path).register_forward_hook(compute, with_kwargs=True))
        yield


def run_base(model: PreTrainedModel, batch: Batch) -> None:
    """One forward pass of the base model on a batch, for what hooks see of it."""
    _outputs(base_model(model), batch)


def _outputs(model: PreTrainedModel, batch: Batch, **options: bool) -> Any:
    """What the model gives for a batch, whose `labels` it does not get.

    Without a cache of keys and values, which would be in memory as long as the pass.
    """
    takes_cache = "use_cache" in inspect.signature(type(model).forward).parameters
    return model(**_model_inputs(batch), **options, **({"use_cache": False} if takes_cache else {}))

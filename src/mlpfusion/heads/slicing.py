"""Takes heads out of a model: rows of query, key and value, columns of the output, and what counts them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.heads.key import KEY, HeadsKey, heads_key, key_to_dict
from mlpfusion.heads.sites import Cut, HeadSite, find_heads
from mlpfusion.sites.sites import base_model, check_in_memory, check_transformers_model, has_module
from mlpfusion.sites.weights import linear_bias, linear_weight, resized
from mlpfusion.storage.raw import raw_bytes


def slice_heads(model: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> PreTrainedModel:
    """Keeps the heads `kept`, by the path of their attention, and no others. Changes `model` and returns it.

    The outputs are those of the model with zeros in the columns of the output maps that read the other heads. The
    config gets the key `mlp_fusion_heads`, by which `from_pretrained` builds the model again. Raises `InputError`,
    before anything is changed, for paths and heads that are not there, and a model that lost heads before.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=3, intermediate_size=4))
    >>> slice_heads(model, {"encoder.layer.0.attention.self": [0, 2]}).encoder.layer[0].attention.self.query
    Linear(in_features=24, out_features=16, bias=True)
    """
    check_transformers_model(model)
    check_in_memory(model)
    check_whole(model)
    sites = {site.path: site for site in find_heads(model)}
    for path, heads in kept.items():
        if path not in sites:
            raise InputError(f"`kept` must name attentions of the model, {', '.join(sites)}, got {path}")
        known = range(sites[path].num_heads)
        if not heads or any(head not in known for head in heads) or sorted(set(heads)) != list(heads):
            raise InputError(f"`kept` must hold rising numbers from 0 to {known[-1]} for {path}, got {list(heads)}")
    base, digest = base_model(model), attention_sha256(model, [sites[path] for path in kept])
    for path, heads in kept.items():
        _slice(base, sites[path], heads)
    set_heads_key(model, HeadsKey({path: list(heads) for path, heads in kept.items()}, digest))
    return model


def check_whole(model: PreTrainedModel) -> None:
    """Raises `InputError` for a model that lost heads before."""
    if heads_key(model.config) is not None:
        raise InputError(f"`model` must have all its heads, got one with the config key `{KEY}`")


def rebuild_heads(model: PreTrainedModel, key: HeadsKey) -> None:
    """Gives an uninitialised model the shapes of the heads that are left. Idempotent.

    Paths are relative to the base model, so a nested stack, in which they lead nowhere, is passed over. Raises
    `InputError` where key and model disagree.
    """
    base = base_model(model)
    if not any(has_module(base, path) for path in key.kept):
        return
    if (getattr(getattr(model.config, "distributed_config", None), "tp_size", None) or 1) > 1:
        raise InputError("`tp_plan` must be left out for a model that lost heads")
    sites = {site.path: site for site in find_heads(model)}
    starts = {site.path.partition(f".{site.layer}.")[0] for site in sites.values()}
    missing = [path for path in key.kept if path not in sites and path.startswith(tuple(starts))]
    if missing:
        raise InputError(f"`{KEY}` must name attentions of the model, got {missing[0]}")
    for path, heads in key.kept.items():
        if path in sites and sites[path].num_heads != len(heads):
            if heads[-1] >= sites[path].num_heads:
                there = sites[path].num_heads
                raise InputError(f"`{KEY}` wants head {heads[-1]} of {path}, the config gives it {there}")
            _slice(base, sites[path], heads)


def set_heads_key(model: PreTrainedModel, key: HeadsKey | None) -> None:
    """Writes the key, or no key, into the config of a model and of its base model. Changes the config."""
    for config in (model.config, base_model(model).config):
        if key is not None:
            setattr(config, KEY, key_to_dict(key))
        elif hasattr(config, KEY):
            delattr(config, KEY)


def attention_sha256(model: PreTrainedModel, sites: Iterable[HeadSite]) -> str:
    """Returns the SHA-256 of the maps of attentions: name, dtype, shape, bytes; the same under every head."""
    base, digest = base_model(model), hashlib.sha256()
    for path in dict.fromkeys(path for site in sites for path in site.maps):
        for name, parameter in base.get_submodule(path).named_parameters():
            digest.update(f"{path}.{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            digest.update(raw_bytes(parameter))
    return digest.hexdigest()


def _slice(base: PreTrainedModel, site: HeadSite, kept: Sequence[int]) -> None:
    for path, cut in site.cuts(kept).items():
        parent, _, name = path.rpartition(".")
        setattr(base.get_submodule(parent), name, _cut(base.get_submodule(path), cut))
    module: Any = base.get_submodule(site.path)
    for name in site.row.counts:
        setattr(module, name, len(kept) * site.shared)
    for name in site.row.widths:
        setattr(module, name, len(kept) * site.shared * site.head_size)
    if site.row.bias_place is not None:
        module.register_forward_pre_hook(partial(_own_bias, site.row.bias_place, list(kept)))


@torch.no_grad()
def _cut(linear: nn.Module, cut: Cut) -> nn.Module:
    """The part of a linear map that stays, as a new map."""
    outputs, inputs = (None if one is None else len(one) for one in (cut.rows, cut.columns))
    new = resized(linear, out_features=outputs, in_features=inputs)
    weight, bias = linear_weight(linear), linear_bias(linear)
    if cut.rows is not None:
        rows = torch.tensor(cut.rows, device=weight.device)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if cut.columns is not None:
        weight = weight[:, torch.tensor(cut.columns, device=weight.device)]
    linear_weight(new).copy_(weight)
    if bias is not None:
        own = linear_bias(new)
        assert own is not None
        own.copy_(bias)
    return new


def _own_bias(place: int, kept: list[int], _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of an attention with the bias of its own heads alone."""
    bias: Tensor = inputs[place]
    return (*inputs[:place], bias[:, kept], *inputs[place + 1 :])

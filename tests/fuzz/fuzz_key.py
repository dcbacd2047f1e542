"""Random edits of the key of a saved model: it is refused in a typed error, or the model is the same, folded too."""

import copy
import random
import warnings
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from fuzzing import unreadable
from pico import pico_inputs, pico_model, pico_outputs
from task_job import HALF
from transformers import AutoModel, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import checksum
from mlpfusion.methods.on_task.moefication import MoEfication

NAMES = ("gpt2", "llama", "t5-gated")
METHODS = {
    "fusion": mlpfusion.Fusion(),
    "ntk-match": mlpfusion.NTKMatch(),
    "svd": mlpfusion.SVD(),
    "magnitude": mlpfusion.Magnitude(),
}
_VALUES: tuple[Any, ...] = (
    None, True, 0, 1, 2, -1, 3, 14, 32, 56, 57, 2**40, 10**400, 0.5, float("nan"), "", "x", "none", "matched",
    "cluster-sizes", "narrow", "masked", "routed", "low-rank", "vocab_size", "hidden_size", "to_dict", "__class__",
    "layers.{}", "layers.{}{}", "{}{", "{}{0}", "{}{:d}", "mlp", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
    "output.dense", "encoder.layer.{}", "\x1b]0;owned\x07\x1b[2J", "[/x]", "a\nb", "\x00", "x" * 100_000, [], {}, [[]],
    {"up": 1}, {"{}": {}},
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A compressed model: its class, config and state, what it computes, and what it computes when it is folded."""

    name: str
    auto_class: Any
    config: Any
    state: dict[str, torch.Tensor]
    expected: torch.Tensor
    folded: torch.Tensor | None


@cache
def cases() -> tuple[Case, ...]:
    """One model a kind of outcome and architecture."""
    found = []
    for name in NAMES:
        for method in METHODS.values():
            model = pico_model(name)
            small: dict[str, Any] = {"keep_ratio": 0.25, "layers": "last:2"}
            data_free = _random_calibration(name) if isinstance(method, mlpfusion.NTKMatch) else None
            mlpfusion.compress(model, method, calibration=data_free, **small)
            found.append(_case(name, AutoModel, model))
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, MoEfication(epochs=1, batch_size=64), data=HALF, layers="last:2", keep_ratio=0.5)
    return (*found, _case("bert", AutoModelForSequenceClassification, model))


def check_key(generator: random.Random) -> str:
    """Edits the key of one model at random, loads it and folds it. The outcome in words; raises where it is wrong."""
    case = generator.choice(cases())
    config = copy.deepcopy(case.config)
    if generator.random() < 0.3:  # as the first version wrote it
        config.mlp_fusion = {name: value for name, value in config.mlp_fusion.items() if name != "checksum"}
        config.mlp_fusion["version"] = 1
    before = copy.deepcopy(config.mlp_fusion)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        config.mlp_fusion = _edited(config.mlp_fusion, generator)
    sealed = generator.random() < 0.8
    if sealed and isinstance(config.mlp_fusion, dict) and "checksum" in config.mlp_fusion:
        try:
            config.mlp_fusion["checksum"] = checksum(config.mlp_fusion)
        except TypeError:  # keys of several types, which JSON has not
            return "no JSON"
    unchanged = repr(config.mlp_fusion) == repr(before)  # 1 is not True here
    try:
        model = loaded(case, config)
        outputs = pico_outputs(model, case.name)
    except InputError as error:
        assert not unchanged, "an unchanged key was refused"
        problem = unreadable(str(error))
        assert problem is None, problem
        return "refused"
    except ShapeError:
        return "refused for its shapes"
    assert torch.equal(outputs, case.expected), config.mlp_fusion
    if case.folded is None:
        return "the same, not to be folded"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if hasattr(config, "mlp_fusion") and config.mlp_fusion is not None:
            try:
                mlpfusion.fold(model)
            except InputError:
                assert torch.equal(pico_outputs(model, case.name), case.expected), "changed before it was refused"
                return "the same, folding refused"
    torch.testing.assert_close(pico_outputs(model, case.name), case.folded, rtol=1e-4, atol=1e-5)
    again = loaded(_case(case.name, case.auto_class, model, expected=case.folded), model.config)
    torch.testing.assert_close(pico_outputs(again, case.name), case.folded, rtol=1e-4, atol=1e-5)
    return "unchanged" if unchanged else "the same"


class ShapeError(Exception):
    """Transformers would refuse the weights: they have no place in the model, or another shape."""


def loaded(case: Case, config: Any) -> Any:
    """What `from_pretrained` makes of the state and the config, its checks included, without a file."""
    config = copy.deepcopy(config)
    model: Any = case.auto_class.from_config(config)
    expected = model.state_dict()
    wrong = [name for name in {*expected} & {*case.state} if expected[name].shape != case.state[name].shape]
    if wrong:
        raise ShapeError(wrong[0])
    found = model.load_state_dict(case.state, strict=False)
    info = SimpleNamespace(missing_keys=set(found.missing_keys), unexpected_keys=set(found.unexpected_keys))
    model._adjust_missing_and_unexpected_keys(info)
    if info.missing_keys or info.unexpected_keys:
        raise ShapeError(str(found))
    return model.eval()


def _case(name: str, auto_class: Any, model: Any, expected: torch.Tensor | None = None) -> Case:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if expected is not None:
        return Case(name, auto_class, model.config, state, expected, expected)
    folded, copied = None, copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if auto_class is AutoModel:
            folded = pico_outputs(mlpfusion.fold(copied), name)
    return Case(name, auto_class, model.config, state, pico_outputs(model, name), folded)


def _random_calibration(name: str) -> list[dict[str, torch.Tensor]]:
    return [pico_inputs(name, seed) for seed in range(2)]


def _edited(key: Any, generator: random.Random) -> Any:
    """The key with one edit: an entry replaced, removed, renamed, added or swapped with another."""
    key = copy.deepcopy(key)
    places = list(_places(key))
    if not places or generator.random() < 0.01:
        return generator.choice(_VALUES)
    if generator.random() < 0.05 and isinstance(key, dict):  # one that changes nothing that is loaded
        return key | generator.choice(({"seed": 7}, {"method": "another-name"}, {"source_sha256": "0" * 64}))
    holder, name = generator.choice(places)
    action = generator.choice(("replace", "replace", "replace", "remove", "rename", "add", "swap", "near"))
    if action == "replace":
        holder[name] = generator.choice(_VALUES)
    elif action == "remove":
        del holder[name]
    elif action == "near" and type(holder[name]) is int:
        holder[name] += generator.choice((-1, 1, 2))
    elif action == "swap":
        other_holder, other = generator.choice([place for place in places if place[0] is holder])
        holder[name], other_holder[other] = other_holder[other], holder[name]
    elif action == "rename" and isinstance(holder, dict):
        value = holder.pop(name)
        holder[generator.choice((f"{name}x", "layers.9", "layers.01", "layers.x", "kind", "rank", "foo.0"))] = value
    elif isinstance(holder, dict):
        holder[generator.choice(("extra", "rank", "layers.0", "layers.1"))] = copy.deepcopy(holder[name])
    return key


def _places(value: Any) -> Any:
    names = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield value, name
        yield from _places(value[name])

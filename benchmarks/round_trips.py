"""Which model types go through the whole pipeline: a tiny model of each, derived from its default config.

    python benchmarks/round_trips.py [TYPE ...] [--out FILE]

Takes every type that benchmarks/census.py finds. Sizes of its default config are divided by a number that leaves whole
heads, layers are two, four or eight; the first such model that is built and runs on made-up inputs is cut to half by
Fusion, and where it runs on them as a whole by NTKMatch too, saved, loaded and run again: all MLPs must give what they
gave before it was saved. It is folded too; where the config can say the new width, the stock model must give the same.
A model of several parts, or with MLPs beside its experts, is also cut with `stacks="all"`. The record says what each
type did, or why it was not done. Some 40 minutes of processor time.
"""

import copy
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from by_type import record_by_type
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mlpfusion
from mlpfusion.checkpoint.read import CONFIG_ERRORS, empty_model, model_class
from mlpfusion.errors import InputError, one_line
from mlpfusion.kinds.key import model_key
from mlpfusion.sites.detect import find_architecture, left_out
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs
from mlpfusion.sites.proof.row_check import made_up_runs
from mlpfusion.sites.sites import Site, base_model, by_block, find_sites
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.traces import watch_sites

CENSUS = Path("benchmarks/results/census.json")
OUT = Path("benchmarks/results/round_trips.json")
FACTORS = (16, 12, 8, 6, 4, 3, 2, 1)  # beside the numbers of heads, the first of all
MOST_PARAMETERS = 4 * 10**8
NTK_MATCH = mlpfusion.NTKMatch(refine_epochs=1)
FOR_EXPERTS = mlpfusion.NTKMatch(refine_epochs=1, match="none")
VOCABULARY = 512
SMALLEST = 4  # a smaller size, as three colours, is not divided
LEAST_WIDTH = 8  # of hidden states and MLPs: a cut to half must change something
LEAST_EXPERT = 16  # of experts that share their tensors, whose widths are multiples of 8
LONGEST_REASON = 300
# Entries that name layers which are gone; the class works them out from the others.
OF_LAYERS = ("per_layer_config", "stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
# Words in the names of entries that are sizes, and in those of entries that are not although such a word is in them.
SIZES = ("hidden", "dim", "heads", "width", "inner", "ffn", "d_model", "d_ff", "embd", "intermediate", "embed", "rank")
SIZES += ("n_head", "channels", "groups", "bottleneck", "mlp_size", "planes", "d_ssm", "pos_feats", "channel_list")
SIZES += ("d_latents",)
NO_SIZES = ("num_channels", "hidden_layers", "image_size", "patch", "kernel", "stride", "window", "position", "token")
NO_SIZES += ("vocab", "mel", "length", "head_dim", "dropout", "d_head", "key_dim", "head_size", "d_kv")
NO_SIZES += ("act", "input_dim", "image_embedding", "indices")
# What no rule derives: entries of the default config that it must have to run at all, or of the tiny one.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [22, 21, 21]}}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "llama4": {"vision_config": {"hidden_size": 1408, "projector_input_dim": 256}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "xmod": {"default_language": "en_XX"},
    **dict.fromkeys(("glm4v_text", "glm4v_moe_text", "glm_image_text"), MROPE),
    **{name: {"text_config": MROPE} for name in ("glm46v", "glm4v", "glm4v_moe", "glm_image", "glmga")},
}
_REFUSALS = (InputError, StrictDataclassError, *CONFIG_ERRORS, ArithmeticError, LookupError)


@dataclass(frozen=True)
class RoundTrip:
    """What one type did. `status` is done, refused (by the proof of its row), or unbuilt; `reason` is for the others.

    `experts`: it is a mixture of experts, and they were cut. `sites` counts a mixture as one.

    `calibrated`, `folded` and `other_stacks` are None where the type offers no such thing, else whether it was right.
    """

    model_type: str
    status: str
    factor: int | None = None
    layers: int | None = None
    parameters: int | None = None
    experts: bool = False
    sites: int = 0
    calibrated: bool | None = None
    folded: bool | None = None
    other_stacks: bool | None = None
    reason: str | None = None


class Tiny(NamedTuple):
    """A model of a derived config, and how the config was derived."""

    model: PreTrainedModel
    factor: int
    layers: int


def tiny_model(model_type: str) -> Tiny:
    """The smallest model that is built, has the stacks of the default one, and runs.

    Raises `InputError` with the most frequent reason why none does.
    """
    default = CONFIG_MAPPING[model_type]()
    wanted = _layers(find_architecture(empty_model(default)))
    whole, reasons = _merged(default.to_dict(), EXCEPTIONS.get(model_type, {})), Counter[str]()
    for factor in sorted({*FACTORS, *_heads(whole)}, key=lambda number: (number > max(FACTORS) * 2, -number)):
        for layers in (2, 4, 8):
            try:
                model = _built(type(default).from_dict(_shrunk(whole, factor, layers)), wanted)
            except _REFUSALS as error:
                reasons[one_line(error)] += 1
            else:
                return Tiny(model, factor, layers)
    raise InputError(reasons.most_common(1)[0][0])


def _built(config: PreTrainedConfig, wanted: set[str]) -> PreTrainedModel:
    """A model of random weights in fp32. Raises `InputError` for one that is not wanted."""
    empty = empty_model(config)
    row = find_architecture(empty)
    sites = find_sites(empty, row)
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    if parameters > MOST_PARAMETERS:
        raise InputError(f"{parameters:,} parameters are too many")
    if min(min(site.hidden_size, site.intermediate_size) for site in sites) < LEAST_WIDTH:
        raise InputError("the MLPs are too narrow")
    if min((site.intermediate_size for site in sites if site.stack.layout), default=LEAST_EXPERT) < LEAST_EXPERT:
        raise InputError("the experts are too narrow")
    if _layers(row) != wanted:
        raise InputError(f"the stacks must be {', '.join(sorted(wanted))}, got {', '.join(sorted(_layers(row)))}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)(config).eval()
    outputs(model, sites)
    return model


def _layers(row: Architecture) -> set[str]:
    return {stack.layer for stack in row.stacks}


def _merged(entries: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    inner = {name: _merged(entries[name], new) for name, new in changes.items() if isinstance(entries.get(name), dict)}
    return entries | changes | inner


def _shrunk(entries: dict[str, Any], factor: int, layers: int) -> dict[str, Any]:
    """The entries of a config with sizes divided by `factor`, at most `layers` layers and a small vocabulary."""
    counts = {value for name, value in entries.items() if type(value) is int and _is_count(name)}
    shrunk: dict[str, Any] = {}
    for name, value in entries.items():
        is_list = isinstance(value, list | tuple) and value != []
        if name == "architectures" or (name in OF_LAYERS and max(counts, default=0) > layers):
            continue
        if isinstance(value, dict):
            is_table = name.startswith(("rope", "id2", "label2")) or any(type(key) is int for key in value)
            shrunk[name] = value if is_table else _shrunk(value, factor, layers)
        elif is_list and len(value) in counts and len(value) > layers:
            kinds = list(dict.fromkeys(value)) if isinstance(value[0], str) else list(value)
            shrunk[name] = (layers * kinds)[:layers]  # every kind of layer, as far as there is room
        elif is_list and all(type(one) is int for one in value):
            shrunk[name] = value if _is_count(name) else [_smaller(name, one, factor, layers) for one in value]
        elif type(value) is int:
            shrunk[name] = _smaller(name, value, factor, layers)
        else:
            shrunk[name] = value
    return _with_known_ids(_with_sections(shrunk))


def _with_sections(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with the sections of a rotary embedding in three dimensions adding up to what is rotated."""
    rope, heads = entries.get("rope_parameters"), entries.get("num_attention_heads")
    if not (isinstance(rope, dict) and rope.get("mrope_section") and heads):
        return entries
    size = entries.get("head_dim") or entries["hidden_size"] // heads
    half = int(size * rope.get("partial_rotary_factor", 1)) // 2
    return entries | {"rope_parameters": rope | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}}


def _smaller(name: str, value: int, factor: int, layers: int) -> int:
    if _is_count(name):
        return min(value, layers)
    if "vocab" in name or name == "n_words":
        return min(value, VOCABULARY)
    is_size = any(word in name for word in SIZES) and not any(word in name for word in NO_SIZES)
    is_small = value < SMALLEST and "head" not in name
    return max(1, value // factor) if is_size and not is_small else value


def _is_count(name: str) -> bool:
    """Whether an entry of this name is a number of layers."""
    first, *rest = name.split("_")
    telling = {*rest} if first == "num" else {*rest[-1:]} or {first}
    return bool(telling & {"layers", "layer", "depth", "depths", "blocks"})


def _with_known_ids(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with ids of special tokens that the small vocabulary has, different ones for different tokens."""
    names = [name for name in entries if name.endswith(("_id", "_index"))]
    large = sorted({entries[name] for name in names if type(entries[name]) is int and entries[name] >= VOCABULARY})
    moved = {value: VOCABULARY - 1 - place for place, value in enumerate(large)}
    return entries | {name: moved.get(entries[name], entries[name]) for name in names if type(entries[name]) is int}


def _heads(entries: dict[str, Any]) -> set[int]:
    inside = [_heads(value) for value in entries.values() if isinstance(value, dict)]
    own = {value for name, value in entries.items() if type(value) is int and "heads" in str(name) and value > 1}
    return own.union(*inside)


def outputs(model: PreTrainedModel, sites: list[Site]) -> Tensor:
    """What all MLPs and mixtures give on made-up inputs. Raises `InputError` where it is not finite."""
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # some draw the patches that they read
        for run in made_up_runs(model, sites):
            found = {path: seen.outputs[0] for path, seen in run.seen.items()} | found
            found = {path: seen.output for path, seen in run.mixtures.items()} | found
    values = torch.cat([found[path].flatten() for path in by_block(sites)])
    if not bool(values.isfinite().all()):
        raise InputError("what the model gives is not finite")
    return values


def round_trip(model_type: str) -> RoundTrip:
    """Makes a tiny model of the type, and cuts, saves, loads and folds it."""
    try:
        tiny = tiny_model(model_type)
    except InputError as error:
        return RoundTrip(model_type, "unbuilt", reason=_short(error))
    size = sum(parameter.numel() for parameter in tiny.model.parameters())
    done = RoundTrip(model_type, "done", tiny.factor, tiny.layers, size)
    try:
        row = cut_and_reload(tiny.model, mlpfusion.Fusion())
    except InputError as error:
        return replace(done, status="refused", reason=_short(error))
    batches = calibration_of(tiny.model, row)
    others = left_out(tiny.model, row)
    experts = any(stack.is_of_experts for stack in row.stacks)
    method = FOR_EXPERTS if experts else NTK_MATCH
    return replace(
        done,
        experts=experts,
        sites=len(by_block(find_sites(tiny.model, row))),
        calibrated=_works(tiny.model, method, calibration=batches) if batches else None,
        folded=folds(tiny.model, row),
        other_stacks=_works(tiny.model, mlpfusion.Fusion(), stacks="all") if others else None,
    )


def cut_and_reload(model: PreTrainedModel, method: object, **chosen: Any) -> Architecture:
    """Cuts a copy, saves it and loads it back; returns the row that was found.

    Raises `InputError` where the cut is refused, and where the model that is loaded gives anything else.
    """
    cut = copy.deepcopy(model)
    mlpfusion.compress(cut, method, keep_ratio=0.5, **chosen)
    key = model_key(cut.config)
    assert key is not None
    sites = find_sites(cut, key.architecture)
    before, after = outputs(model, find_sites(model, key.architecture)), outputs(cut, sites)
    if torch.equal(before, after):
        raise InputError("the cut changed nothing")
    _check_equal(after, outputs(_reloaded(cut), sites), "the model that was saved and loaded")
    return key.architecture


def folds(model: PreTrainedModel, row: Architecture) -> bool | None:
    """Whether the folded model loads without the key and gives the same; None where the config can say no width."""
    if any(stack.width_key is None for stack in row.stacks):
        return None
    cut = copy.deepcopy(model)
    mlpfusion.compress(cut, mlpfusion.Fusion(), keep_ratio=0.5)
    sites = find_sites(cut, row)
    after = outputs(cut, sites)
    mlpfusion.fold(cut)
    if model_key(cut.config) is not None:
        return False
    stock = _reloaded(cut)
    try:
        _check_equal(after, outputs(stock, sites), "the folded model")
    except InputError:
        return False
    return True


def calibration_of(model: PreTrainedModel, row: Architecture) -> list[dict[str, Tensor]]:
    """Made-up inputs on which the whole model runs, and with it every MLP once; none if there are none."""
    sites = [site for site in find_sites(model, row) if site.expert is None]
    for inputs in made_up_inputs(base_model(model)):
        try:
            with torch.no_grad(), watch_sites(model, sites) as seen:
                base_model(model)(**inputs)
        except _REFUSALS:
            continue
        if all(len(one.inputs) == 1 for one in seen):
            return [inputs]
    return []


def _works(model: PreTrainedModel, method: object, **chosen: Any) -> bool:
    try:
        cut_and_reload(model, method, **chosen)
    except InputError:
        return False
    return True


def _reloaded(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            return type(model).from_pretrained(folder).eval()
        except OSError as error:  # Qwen2.5 Omni's class wants a file of voices
            told = one_line(error).replace(folder, "FOLDER")  # the same in every run
            raise InputError(f"its class does not load what it saved: {told}") from error


def _check_equal(expected: Tensor, got: Tensor, what: str) -> None:
    if not torch.allclose(expected, got, rtol=1e-4, atol=1e-6):
        raise InputError(f"{what} must give the same, got a difference of {float((expected - got).abs().max()):.1e}")


def _short(error: InputError) -> str:
    return one_line(error)[:LONGEST_REASON]


def _found() -> list[str]:
    census = json.loads(CENSUS.read_text(encoding="utf-8"))["types"]
    return [
        row["model_type"]
        for row in census
        if row["stacks"]
        and row["share"] == 1
        # a mixture whose experts no stack names is refused whole
        and (not row["experts"] or any(layer.count("{}") > 1 for layer in row["stacks"]))
    ]


def main() -> None:
    record_by_type(__doc__, OUT, _found, round_trip, json.dumps)


if __name__ == "__main__":
    main()

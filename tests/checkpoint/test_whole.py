"""A checkpoint goes through `compress` whole: all that the cut does not touch is there, and nothing else is."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pico import PICO, pico_config, pico_inputs
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto import modeling_auto

import mlpfusion
from mlpfusion.checkpoint.read import empty_model, load_model, read_config
from mlpfusion.checkpoint.save import save_compressed
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.kinds.outcome import Routed
from mlpfusion.options.selection import Selection
from mlpfusion.sites.detect import detect_architecture
from mlpfusion.sites.sites import find_sites, read_mlp
from mlpfusion.sites.table import ARCHITECTURES, Architecture

_USUAL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
_TEXT = {"vocab_size": 67, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 56, "vocab_size": 67, "n_positions": 64}
# Model types without a row, whose row is detected.
DETECTED: dict[str, dict[str, Any]] = {
    "camembert": _USUAL | _TEXT,
    "mpnet": _USUAL | _TEXT,
    "ernie": _USUAL | _TEXT,
    "data2vec-text": _USUAL | _TEXT,
    "megatron-bert": _USUAL | _TEXT,
    "gemma": _USUAL | _TEXT | {"num_key_value_heads": 2, "head_dim": 8},
    "granite": _USUAL | _TEXT | {"num_key_value_heads": 2},
    "stablelm": _USUAL | _TEXT | {"num_key_value_heads": 2},
    "starcoder2": _USUAL | _TEXT | {"num_key_value_heads": 2},
    "phi3": _USUAL | _TEXT | {"num_key_value_heads": 2},
    "gptj": _GPT | {"rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2},
    "codegen": _GPT | {"rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2},
    "dinov2": _USUAL | {"image_size": 8, "patch_size": 4, "mlp_ratio": 2},
}
HEADS = (
    "_PRETRAINING_",
    "_SEQ_TO_SEQ",
    "_MASKED_LM_",
    "_CAUSAL_LM_",
    "_TOKEN_CLASS",
    "_IMAGE_CLASS",
    "_SEQUENCE_CLASS",
)


def config_of(name: str) -> PreTrainedConfig:
    return pico_config(name) if name in PICO else AutoConfig.for_model(name, **DETECTED[name])


def head_classes(model_type: str) -> list[str]:
    """Classes with a head, that for pretraining first."""
    tables = {name: table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")}
    found = [
        table[model_type] for word in HEADS for name, table in tables.items() if word in name and model_type in table
    ]
    return list(dict.fromkeys(one for one in found if isinstance(one, str)))


def row_of(config: PreTrainedConfig) -> Architecture:
    row = ARCHITECTURES.get(config.model_type) or detect_architecture(empty_model(config))
    assert row is not None
    return row


def make_source(folder: Path, name: str, *, half: bool = False) -> Path:
    """A checkpoint of the first class with a head; with a head of another class and a buffer of old versions beside it,
    and with `half` some of its tensors in bf16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_of(name)
        model = getattr(transformers, head_classes(config.model_type)[0])(config)
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
        model.save_pretrained(folder)
        tensors = read_file(folder / "model.safetensors")
        if half:
            tensors = {n: t.bfloat16() if number % 3 == 0 else t for number, (n, t) in enumerate(tensors.items())}
        extra = {"another_head.weight": torch.randn(3, 5).half(), "embeddings.position_ids": torch.arange(7)[None]}
        save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    return folder


def read_file(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def with_architectures(folder: Path, names: list[str] | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures", None)
    (folder / "config.json").write_text(json.dumps(config | ({} if names is None else {"architectures": names})))


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Dtype, shape and bytes."""
    return first.dtype == second.dtype and first.shape == second.shape and bytes_of(first) == bytes_of(second)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


METHODS = {
    "fusion": mlpfusion.Fusion(),
    "ntk-match": mlpfusion.NTKMatch(),
    "low-rank": mlpfusion.SVD(),
    "masked": mlpfusion.Magnitude(),
    "routed": None,
}


def compress_whole(source: Path, out: Path, kind: str) -> Any:
    """What `compress` does between reading and writing; the model that it wrote."""
    config = read_config(source)
    model, row = load_model(source, config), row_of(config)
    if kind == "routed":
        plan = make_plan(find_sites(model, row), Selection(layers="last:1", keep_ratio=1.0))
        blocks = [read_mlp(model, site) for site, _ in plan.entries]
        draws = torch.Generator().manual_seed(0)
        routers = torch.randn(4, blocks[0].hidden_size, generator=draws), torch.randn(4, 4, generator=draws)
        settings = Settings(mlpfusion.MoEfication(), Selection(layers="last:1", keep_ratio=1.0), 0)
        with torch.no_grad():
            outcomes = [Routed(block, *routers, 2) for block in blocks]
            record = install_outcomes(model, plan, outcomes, row, settings, torch.device("cpu"))
    else:
        given = None if config.model_type in ARCHITECTURES else row
        batches = [pico_inputs(config.model_type)] if kind == "ntk-match" else None
        size = {"layers": "last:1", "keep_ratio": 0.25}
        record = mlpfusion.compress(model, METHODS[kind], **size, calibration=batches, architecture=given)
    out.mkdir()
    record = save_compressed(model, source, config, record, out)
    return model, record


def cut_names(source: dict[str, torch.Tensor], folder: Path) -> set[str]:
    """The tensors of the file that hold the weights of the cut MLPs, found by their values, not by their names."""
    config = read_config(folder)
    model = AutoModel.from_pretrained(folder)
    sites = find_sites(model, row_of(config))
    last = max(site.layer for site in sites)
    found = set()
    for site in [site for site in sites if site.layer == last]:
        for part in {site.stack.up, site.stack.gate, site.stack.down} - {None}:
            for parameter in model.get_submodule(f"{site.path}.{part}").parameters():
                names = [n for n, t in source.items() if is_same_values(t, parameter)]
                assert len(names) == 1
                found.add(names[0])
    return found


def is_same_values(stored: torch.Tensor, loaded: torch.Tensor) -> bool:
    return stored.shape == loaded.shape and torch.equal(stored.to(loaded.dtype), loaded)


def check(name: str, kind: str, tmp_path: Path, *, half: bool = False) -> int:
    source = make_source(tmp_path / "source", name, half=half)
    tensors = read_file(source / "model.safetensors")
    model_type = read_config(source).model_type
    heads, count, hashes = head_classes(model_type), 0, set()
    cut = cut_names(tensors, source)
    for number, names in enumerate([[heads[0]], [heads[-1]], None]):
        with_architectures(source, names)
        out = tmp_path / f"out-{number}"
        model, record = compress_whole(source, out, kind)
        written = read_file(out / "model.safetensors")
        for kept in tensors.keys() - cut:
            assert same(written[kept], tensors[kept]), kept
        layers = {re.sub(r"(\.\d+\.).*", r"\1", path, count=1) for path in cut}
        for new in written.keys() - tensors.keys():
            assert new.startswith(tuple(layers)), new
        config = json.loads((out / "config.json").read_text())
        assert config.pop("mlp_fusion")
        assert config == json.loads((source / "config.json").read_text())
        loaded, info = AutoModel.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
        assert not [lost for lost in info["missing_keys"] if "pooler" not in lost]
        mine = model.base_model.state_dict()
        for key, tensor in loaded.state_dict().items():
            if key not in info["missing_keys"]:
                forms = (mine[key], mine[key].bfloat16()) if half else (mine[key],)
                assert any(torch.equal(tensor, form.to(tensor.dtype)) for form in forms), key
        hashes.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
        assert record.compressed.bytes == sum(t.numel() * t.element_size() for t in written.values())
        count += 1
    assert len(hashes) == 1
    return count


# Each kind, each way of naming: without and with a prefix, other names in files than in modules, two stacks, one map.
SLICE = [
    ("bert", "fusion"),
    ("vit", "low-rank"),
    ("gpt2", "masked"),
    ("bart", "fusion"),
    ("modernbert", "routed"),
    ("mpnet", "ntk-match"),
]


@pytest.mark.parametrize(("name", "kind"), SLICE)
def test_all_outside_the_cut_is_that_of_the_source_whatever_class_it_names(name, kind, tmp_path):
    check(name, kind, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("half", [False, True], ids=["one dtype", "two dtypes"])
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", [*PICO, *DETECTED])
def test_every_architecture_goes_through_whole_in_every_kind(name, kind, half, tmp_path):
    check(name, kind, tmp_path, half=half)

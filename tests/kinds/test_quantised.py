"""Compressed checkpoints loaded by quantisers, trained by QLoRA; and what refuses quantised weights."""

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from pico import pico_inputs, pico_model, pico_outputs, sites_of
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    QuantoConfig,
    TorchAoConfig,
)

import mlpfusion
from mlpfusion.cli import main
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.errors import InputError
from mlpfusion.kinds.masked import MaskedLinear
from mlpfusion.kinds.outcome import Routed
from mlpfusion.methods.needs import needs_batches
from mlpfusion.options.selection import Selection
from mlpfusion.sites.sites import read_mlp
from mlpfusion.sites.table import ARCHITECTURES

# bitsandbytes says that it computes in half precision, PEFT asks a question of the past.
pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def torchao_int8() -> TorchAoConfig:
    quantization: Any = importlib.import_module("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


# name -> (package, config, relative error that quantising a model of this size may bring)
QUANTISERS: dict[str, tuple[str, Callable[[], Any], float]] = {
    "bitsandbytes-8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True), 0.05),
    "bitsandbytes-nf4": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), 0.6),
    "quanto-int8": ("optimum", lambda: QuantoConfig(weights="int8"), 0.05),
    "torchao-int8": ("torchao", torchao_int8, 0.05),
}


def needs(package: str) -> Any:
    """The mark of a test that is skipped where `package` is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


every_quantiser = pytest.mark.parametrize(
    "quantiser", [pytest.param(name, marks=needs(package)) for name, (package, _, _) in QUANTISERS.items()]
)


def routed(model: PreTrainedModel) -> None:
    """Splits the neurons of two layers into four experts by hand; the first two of equal scores compute."""
    row = ARCHITECTURES[model.config.model_type]
    selection = Selection(layers="last:2", keep_ratio=0.5)
    plan = make_plan(sites_of(model), selection)
    outcomes = [
        Routed(read_mlp(model, site), torch.zeros(4, site.hidden_size), torch.zeros(4, 4), 2, metrics={})
        for site, _ in plan.entries
    ]
    settings = Settings(mlpfusion.MoEfication(), selection, 0)
    install_outcomes(model, plan, outcomes, row, settings, torch.device("cpu"))


def by_method(method: Any) -> Callable[[PreTrainedModel], None]:
    def change(model: PreTrainedModel) -> None:
        calibration = [pico_inputs(model.config.model_type)] if needs_batches(method) else None
        mlpfusion.compress(model, method, layers="last:2", keep_ratio=0.5, calibration=calibration)

    return change


OUTCOMES: dict[str, Callable[[PreTrainedModel], None]] = {
    "fusion": by_method(mlpfusion.Fusion()),
    "ntk-match": by_method(mlpfusion.NTKMatch()),
    "folded": by_method(mlpfusion.FoldedFusion()),
    "low-rank": by_method(mlpfusion.SVD()),
    "masked": by_method(mlpfusion.Magnitude()),
    "routed": routed,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Folders of compressed models, by architecture and outcome."""
    root, folders = tmp_path_factory.mktemp("checkpoints"), {}
    for name in ("bert", "llama"):
        for outcome, change in OUTCOMES.items():
            if outcome == "routed" and name == "bert":
                continue  # GELU(0) = 0 as well, but one architecture will do
            model = pico_model(name, AutoModelForCausalLM if name == "llama" else AutoModel)
            change(model)
            folders[name, outcome] = root / f"{name}-{outcome}"
            model.save_pretrained(folders[name, outcome])
    return folders


def plainly_computed(model: Any) -> Any:
    """The model without bitsandbytes' fast path for CPUs with bf16, which fails for rows shorter than its blocks."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_quantised(folder: Path, quantiser: str, auto_class: Any = AutoModel) -> tuple[Any, list[str]]:
    """The model as `quantiser` loads it, and the warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = auto_class.from_pretrained(folder, quantization_config=QUANTISERS[quantiser][1]())
    return plainly_computed(model), [str(one.message) for one in caught if "mlpfusion" in str(one.message)]


@every_quantiser
def test_every_kind_of_outcome_loads_quantised_with_nearly_the_same_outputs(quantiser, checkpoints):
    tolerance = QUANTISERS[quantiser][2]
    for (name, outcome), folder in checkpoints.items():
        quantised, warned = load_quantised(folder, quantiser)
        whole = AutoModel.from_pretrained(folder)
        expected, found = pico_outputs(whole, name), pico_outputs(quantised, name).float()
        assert 0 < float((found - expected).norm() / expected.norm()) < tolerance, (name, outcome)
        assert len(warned) == (outcome in ("fusion", "ntk-match")), (name, outcome)
        buffers = dict(quantised.named_buffers())
        for path, buffer in whole.named_buffers():
            if buffer.dtype == torch.int32:
                assert torch.equal(buffers[path], buffer), (name, outcome, path)


@every_quantiser
def test_the_zeros_of_a_masked_model_are_zeros_quantised(quantiser, checkpoints):
    quantised, _ = load_quantised(checkpoints["llama", "masked"], quantiser)
    whole = AutoModel.from_pretrained(checkpoints["llama", "masked"])
    masked = {path: module for path, module in whole.named_modules() if isinstance(module, MaskedLinear)}
    assert masked
    for path, linear in masked.items():
        with torch.no_grad():
            weight = quantised.get_submodule(path)(torch.eye(linear.in_features)).T
        assert torch.all(weight[linear.weight == 0] == 0)


@needs("bitsandbytes")
@pytest.mark.parametrize("outcome", ["fusion", "ntk-match"])
def test_a_quantised_model_is_saved_and_loaded_again(outcome, checkpoints, tmp_path):
    quantised, _ = load_quantised(checkpoints["llama", outcome], "bitsandbytes-nf4")
    quantised.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="stand-alone scales"):
        loaded = plainly_computed(AutoModel.from_pretrained(tmp_path))
    assert torch.equal(pico_outputs(loaded, "llama"), pico_outputs(quantised, "llama"))


@needs("bitsandbytes")
@pytest.mark.parametrize("outcome", ["fusion", "folded", "ntk-match", "low-rank"])
def test_qlora_trains_and_leaves_scales_and_weights_alone(outcome, checkpoints):
    base, _ = load_quantised(checkpoints["llama", outcome], "bitsandbytes-nf4", AutoModelForCausalLM)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(prepare_model_for_kbit_training(base, use_gradient_checkpointing=False), config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora" not in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs, losses = pico_inputs("llama"), []
    for _ in range(8):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any("scale" in name for name in before) == (outcome in ("fusion", "ntk-match"))


@needs("bitsandbytes")
def test_there_is_no_warning_where_down_is_left_as_it_is(checkpoints):
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["down_proj"])
    loaded = AutoModel.from_pretrained(checkpoints["llama", "ntk-match"], quantization_config=config)
    assert loaded.is_quantized


@every_quantiser
def test_compress_and_fold_refuse_a_quantised_model_before_anything_is_changed(quantiser, checkpoints, tmp_path):
    pico_model("llama").save_pretrained(tmp_path)
    plain, _ = load_quantised(tmp_path, quantiser)
    del plain.config.quantization_config  # as after `quantize_` of torchao or `quantize` of quanto
    fused, _ = load_quantised(checkpoints["llama", "fusion"], quantiser)
    modules = [dict(model.named_modules()) for model in (plain, fused)]
    with pytest.raises(InputError, match="before it was quantised"):
        mlpfusion.compress(plain, mlpfusion.Fusion(), width=14)
    with pytest.raises(InputError, match="before it was quantised"):
        mlpfusion.fold(fused)
    assert [dict(model.named_modules()) for model in (plain, fused)] == modules


QUANTIZATION_CONFIGS = {
    "bitsandbytes in 4 bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes in 8 bit": {"load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    "fp8": {"quant_method": "fp8"},
    "mxfp4": {"quant_method": "mxfp4"},
    "nosuch": {"quant_method": "nosuch"},
    "an unknown method": {"quant_method": "\x1b[31m"},
}


@pytest.mark.parametrize("method", QUANTIZATION_CONFIGS)
def test_commands_refuse_a_quantised_checkpoint_in_one_line_and_inspect_tells(method, tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": QUANTIZATION_CONFIGS[method]}
    file.write_text(json.dumps(config))
    source, out = str(tmp_path / "source"), str(tmp_path / "out")
    for command in (["compress", source, out, "--keep-ratio", "0.5"], ["tune", source, out, "--task", "sst2"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert f"got weights in {source} quantised by {method}: start from" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    shown = CliRunner().invoke(main, ["inspect", source])
    assert shown.exit_code == 0
    assert f"The weights are quantised by {method}" in shown.stdout
    assert json.loads(CliRunner().invoke(main, ["inspect", source, "--json"]).stdout)["quantised"] == method


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_weights_in_a_type_of_quantisers_are_refused_without_a_word_in_the_config(dtype, tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.0.output.dense.weight"] = weights["encoder.layer.0.output.dense.weight"].to(dtype)
    save_file(weights, file, metadata={"format": "pt"})
    command = ["compress", str(tmp_path / "source"), str(tmp_path / "out"), "--keep-ratio", "0.5"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "must hold plain weights (F64, F32, F16, BF16), got" in result.stderr
    assert "encoder.layer.0.output.dense.weight" in result.stderr


def adapted_model() -> Any:
    lora: Any = get_peft_model(pico_model("bert"), LoraConfig(target_modules=["output.dense"]))
    return lora.base_model.model


def test_compress_refuses_a_model_with_an_adapter():
    model = adapted_model()
    modules = dict(model.named_modules())
    with pytest.raises(InputError, match="merge adapters"):
        mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    assert dict(model.named_modules()) == modules

"""With `freeze_router` the routers of a mixture keep their bytes, and all that should train does."""

import copy
import json
from typing import Any

import pytest
import torch
from command import call, refused
from detected import detected_config
from tiny_task import make_task, sentences, tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, DataCollatorWithPadding

import mlpfusion
from mlpfusion.data.encode import encode_texts
from mlpfusion.options.adapters.dsee import Dsee, Support
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.distill import Distill
from mlpfusion.options.training import Finetune
from mlpfusion.sites.mixtures.routers import router_parameters
from mlpfusion.tune.distill import distill
from mlpfusion.tune.finetune import finetune

FAST = {"learning_rate": 2e-3, "batch_size": 16, "device": "cpu", "freeze_router": True}
JETMOE = {"hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 8, "vocab_size": 67}
JETMOE |= {"intermediate_size": 24, "num_local_experts": 4, "pad_token_id": 0}


def classifier(name: str) -> Any:
    config = AutoConfig.for_model("jetmoe", **JETMOE) if name == "jetmoe" else detected_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_all_but_the_routers_is_fine_tuned_and_counted(name):
    model = classifier(name)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    routers = router_parameters(model)
    _, record = finetune(model, make_task(), Finetune(epochs=2, **FAST))
    assert routers
    assert moved(model, before) == before.keys() - routers.keys()
    assert record.trained_parameters == model.num_parameters() - sum(value.numel() for value in routers.values())
    assert all(value.requires_grad for value in model.parameters())


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": Lora(targets="all-linear")},
    "dsee": {"dsee": Dsee(2, targets="all-linear", support=Support(4, "random"))},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_with_an_adapter_no_router_is_adapted(adapter):
    """Those of JetMoe are linear maps, which `all-linear` names; that of its mixture in attention trains."""
    model = classifier("jetmoe")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    tuned, _ = finetune(model, make_task(), Finetune(epochs=1, **ADAPTERS[adapter], **FAST))
    linear = {name for name in before if "_proj.weight" in name or "router.layer" in name}
    assert moved(tuned, before) == {*linear, "score.weight"} - router_parameters(model).keys()


def test_all_but_the_routers_of_switch_learns_from_the_original():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = AutoModel.from_config(detected_config("switch_transformers"))
    student = copy.deepcopy(teacher)
    mlpfusion.compress(student, mlpfusion.Fusion(), keep_ratio=0.5)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    examples = encode_texts([(text,) for text in sentences(64, 0)[0]], tiny_tokenizer(), max_length=16)
    config = Distill(objective="hidden", **FAST)
    distill(student, teacher, examples, DataCollatorWithPadding(tiny_tokenizer()), config)
    assert moved(student, before) == before.keys() - router_parameters(student).keys()


def test_the_record_says_it_and_the_files_keep_the_routers(data, tmp_path):
    model, out = classifier("mixtral"), tmp_path / "tuned"
    model.save_pretrained(tmp_path / "mixture")
    tiny_tokenizer().save_pretrained(tmp_path / "mixture")
    result = call("tune", tmp_path / "mixture", out, *data, "--freeze-router")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "mlp_fusion_tune_record.json").read_text())["recipe"]["freeze_router"] is True
    tuned = AutoModelForSequenceClassification.from_pretrained(out)
    before = dict(model.named_parameters())
    assert moved(tuned, before) == before.keys() - router_parameters(model).keys()


def test_without_a_mixture_it_is_refused_before_any_work(data, checkpoint, fused, files, tmp_path):
    message = "`--freeze-router` must be left out for bert, which has no mixture of experts"
    assert message in refused("tune", fused, tmp_path / "out", *data, "--freeze-router")
    flags = ["--data", files[0], "--column", "sentence", "--max-length", 16, "--freeze-router"]
    assert message in refused("distill", checkpoint, fused, tmp_path / "out", *flags, "--objective", "hidden")
    line = refused("distill", checkpoint, fused, tmp_path / "out", *flags)
    assert "`--freeze-router` must be left out for layerwise, which trains compressed blocks only" in line
    assert not list(tmp_path.glob("out*"))

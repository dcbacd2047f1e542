"""DSEE as an adapter of PEFT: what it computes, and that PEFT's own functions work on it."""

import inspect
import re
import subprocess
import sys
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging import version
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel, get_peft_model
from peft.tuners import tuners_utils
from pico import HIDDEN, pico_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

import mlpfusion
from mlpfusion.dsee.adapter.config import DseeConfig, DseeType
from mlpfusion.dsee.adapter.describe import describe
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Support

IDS = torch.tensor([[1, 5, 9, 33, 2], [1, 7, 60, 2, 0]])
MODELS = ["bert", "roberta", "gpt2", "llama", "distilbert", "deberta-v2"]


def config(**changes: Any) -> DseeConfig:
    return DseeConfig(**{"r": 4, "support": Support(sparse=8, omega="random"), "task_type": "SEQ_CLS"} | changes)


def classifier(name: str = "bert", dtype: torch.dtype = torch.float32) -> Any:
    return pico_model(name, AutoModelForSequenceClassification).to(dtype).eval()


def adapted(name: str = "bert", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return get_peft_model(classifier(name, dtype), config(**changes)).eval()


def trained(model: Any, seed: int = 0) -> Any:
    """The model with other numbers in all that trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=(IDS != 0).long()).logits


def layers(model: nn.Module) -> dict[str, DseeLayer]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, DseeLayer)}


@pytest.mark.parametrize(
    ("sparse", "trained", "whole"), [(64, "592,898", "110,076,676"), (16, "591,746", "110,075,524")]
)
def test_the_trained_parameters_of_bert_base(sparse, trained, whole, capsys):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
        get_peft_model(model, config(r=16, support=Support(sparse=sparse))).print_trainable_parameters()
    assert f"trainable params: {trained} || all params: {whole} ||" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_update_is_nothing_at_the_start(name, dtype):
    model = adapted(name, dtype)
    assert len(layers(model)) == (3 if name == "gpt2" else 6)
    inputs = torch.randn(2, 5, HIDDEN).to(dtype)
    for layer in layers(model).values():
        assert torch.equal(layer(inputs), layer.base_layer(inputs))
        assert layer(inputs).dtype == dtype
        assert not layer.get_delta_weight("default").any()
        # of 128 numbers, so within 8 of its standard errors; that of `nn.Linear` would be 0.1
        assert layer.update_of("default").A.std().item() == pytest.approx(0.02, rel=0.5)
    assert torch.equal(logits(model), logits(classifier(name, dtype)))


@pytest.mark.parametrize("parts", [None, {"query": [False, True], "attn.c_attn": [True, True, True]}], ids=str)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_layer_computes_what_its_formula_says(name, parts):
    model = trained(adapted(name, torch.float64, alpha=6.0, parts=parts))
    for path, layer in layers(model).items():
        base, update = layer.get_base_layer(), layer.update_of("default")
        weight: Any = base.weight.T if isinstance(base, Conv1D) else base.weight
        known = parts or {"attn.c_attn": [True, False, True]}
        kept = next((one for end, one in known.items() if path.endswith(end)), [True])
        height = len(weight) // len(kept)
        dense = torch.zeros_like(weight)
        covered = [slice(place * height, (place + 1) * height) for place, is_kept in enumerate(kept) if is_kept]
        for index, rows in enumerate(covered):
            dense[rows] = update.B[index] @ update.A[index]
            assert int(((update.omega[0] >= rows.start) & (update.omega[0] < rows.stop)).sum()) == 8
        for value, (row, column) in zip(update.S, update.omega.T, strict=True):
            dense[row, column] += value
        inputs = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
        expected = inputs @ (weight + 6.0 / 4 * dense).T + base.bias
        torch.testing.assert_close(layer(inputs), expected, rtol=0, atol=1e-12)
        delta = layer.get_delta_weight("default")
        torch.testing.assert_close(delta.T if isinstance(base, Conv1D) else delta, 6.0 / 4 * dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("omega", ["magnitude", "gradient"])
def test_each_part_of_a_map_has_entries_of_its_own(omega):
    gradients = {
        f"transformer.h.{layer}.attn.c_attn": torch.randn(
            3 * HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(layer)
        )
        for layer in range(3)
    }
    model = adapted("gpt2", support=Support(sparse=8, omega=omega), gradients=gradients)
    for path, layer in layers(model).items():
        scores = gradients[path.removeprefix("base_model.model.")] if omega == "gradient" else layer.dense_weight()
        rows, columns = layer.update_of("default").omega
        largest = [scores.abs()[start : start + HIDDEN].flatten().topk(8).indices for start in (0, 2 * HIDDEN)]
        expected = {*largest[0].tolist(), *(largest[1] + 2 * HIDDEN * HIDDEN).tolist()}
        assert set((rows * HIDDEN + columns).tolist()) == expected
    assert "gradients" not in model.peft_config["default"].to_dict()


def test_only_values_of_omega_and_factors_get_gradients_and_the_right_ones():
    model = trained(adapted("gpt2", torch.float64))
    layer = next(iter(layers(model).values()))
    update, inputs = layer.update_of("default"), torch.randn(3, HIDDEN, dtype=torch.float64)
    layer(inputs).square().sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert {name.rpartition(".")[2] for name in found} == {"A", "B", "S"}
    weight: Any = layer.base_layer.weight
    dense = (weight + layer.get_delta_weight("default")).detach().requires_grad_()
    (inputs @ dense + layer.base_layer.bias).square().sum().backward()
    assert dense.grad is not None
    rows, columns = update.omega
    expected = layer.scaling["default"] * dense.grad.T[rows, columns]
    torch.testing.assert_close(update.S.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_unmerged_merged_and_unmerged_again_give_the_same_logits(name):
    model = trained(adapted(name, torch.float64))  # of float32, the order of sums alone can be more than 1e-6
    expected, base = logits(model), logits(classifier(name, torch.float64))
    assert (expected - base).abs().max() > 1e-2
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    whole = model.merge_and_unload(safe_merge=True)
    assert not layers(whole)
    torch.testing.assert_close(logits(whole), expected, rtol=0, atol=1e-6)


def test_autocast_takes_a_layer_as_it_takes_the_map_under_it():
    layer = next(iter(layers(trained(adapted())).values()))
    inputs = torch.randn(2, 5, HIDDEN)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(inputs), rtol=0, atol=0.1)


def test_the_merged_weight_of_bfloat16_is_rounded_once():
    model = trained(adapted(dtype=torch.bfloat16))
    sums = {
        path: layer.dense_weight().float() + layer.get_delta_weight("default") for path, layer in layers(model).items()
    }
    model.merge_adapter()
    for path, layer in layers(model).items():
        assert layer.dense_weight().dtype == torch.bfloat16
        assert torch.equal(layer.dense_weight(), sums[path].bfloat16())


def test_broken_numbers_are_not_merged_where_safety_is_asked_for():
    model = trained(adapted())
    next(iter(layers(model).values())).update_of("default").S.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or Inf in the merged weights: the adapter default"):
        model.merge_adapter(safe_merge=True)


def same(first: Any, second: Any) -> bool:
    values = second.state_dict()
    return all(torch.equal(value, values[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_saved_adapter_is_loaded_bit_by_bit(name, dtype, tmp_path):
    model = trained(adapted(name, dtype, support=Support(sparse=8, omega="decompose", omega_seed=5)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(classifier(name, dtype), str(tmp_path))
    assert same(model, loaded)
    assert torch.equal(logits(loaded), logits(model))
    assert not [parameter for parameter in loaded.parameters() if parameter.requires_grad]
    own: Any = loaded.peft_config["default"]
    assert own.support == Support(sparse=8, omega="decompose", omega_seed=5)
    again = PeftModel.from_pretrained(classifier(name, dtype), str(tmp_path), is_trainable=True)
    assert same(model, again)
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), DseeConfig)


def test_loading_draws_nothing_and_an_adapter_finds_its_model(tmp_path, monkeypatch):
    classifier().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = trained(get_peft_model(base, config()))
    model.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("mlpfusion.dsee.omega.draw_omega", None)
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded.eval()), logits(model.eval()))
    if version.parse(transformers.__version__) >= version.parse("5.24"):  # 5.14 loses a head, that of LoRA too
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        plain.load_adapter(str(tmp_path / "adapter"))  # transformers' own way
        assert torch.equal(logits(plain.eval()), logits(model.eval()))
    thrifty = PeftModel.from_pretrained(classifier(), str(tmp_path / "adapter"), low_cpu_mem_usage=True)
    assert same(thrifty, loaded)


def test_an_adapter_by_gradients_is_loaded_to_train_on(tmp_path):
    gradients = {path: torch.rand(HIDDEN, HIDDEN) for path in describe(adapted()).in_largest}
    model = trained(adapted(support=Support(sparse=8, omega="gradient"), gradients=gradients))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(classifier(), str(tmp_path), is_trainable=True)
    assert same(model, again)
    assert torch.equal(logits(again), logits(model))
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


def test_the_config_of_a_file_makes_no_adapter_without_the_file(tmp_path):
    adapted().save_pretrained(tmp_path)
    read: Any = PeftConfig.from_pretrained(str(tmp_path))
    fresh = get_peft_model(classifier(), read)
    message = "the adapter must be loaded from its file before it is used; for a new one .* `is_drawn=False`"
    with pytest.raises(InputError, match=message):
        logits(fresh)
    with pytest.raises(InputError, match=message):
        fresh.merge_adapter()
    fresh.load_state_dict(adapted().state_dict())
    logits(fresh)
    again = adapted(support=read.support, is_drawn=False)
    assert torch.equal(logits(again), logits(classifier()))


def test_several_adapters_are_added_chosen_switched_off_and_deleted(tmp_path):
    model = trained(adapted())
    first = logits(model)
    second = config(r=2, support=Support(sparse=5, omega="random", omega_seed=1))
    trainable = model.get_nb_trainable_parameters()[0]
    model.add_adapter("second", second)
    assert model.get_nb_trainable_parameters()[0] == trainable
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    base = logits(model)
    assert torch.equal(base, logits(classifier()))
    assert model.get_nb_trainable_parameters()[0] == 6 * (2 * 2 * HIDDEN + 5) + 2 * HIDDEN + 2
    other = logits(trained(model, 1))
    assert not torch.allclose(other, first)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    loaded = PeftModel.from_pretrained(classifier(), str(tmp_path / "second"))
    assert torch.equal(logits(loaded), other)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base, rtol=0, atol=1e-5)


def test_an_adapter_on_other_maps_waits_until_it_is_chosen():
    model = trained(adapted())
    before, trainable = logits(model), model.get_nb_trainable_parameters()[0]
    model.add_adapter("second", config(target_modules=["key"]))
    assert model.get_nb_trainable_parameters()[0] == trainable
    for layer in layers(model).values():
        if "second" in layer.dsee_update:
            layer.update_of("second").S.data.fill_(1.0)
    assert torch.equal(logits(model), before)
    model.set_adapter("second")
    assert not torch.allclose(logits(model), logits(classifier()))


def test_an_adapter_lies_on_a_fused_model_and_leaves_its_scales_alone():
    model = classifier(dtype=torch.float64)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.25)
    scales = {name: value.clone() for name, value in model.named_buffers() if name.endswith("output_scale")}
    before = logits(model)
    wrapped = get_peft_model(model, config(target_modules="all-linear")).eval()
    assert len(layers(wrapped)) == 3 * 6 + 1  # and the pooler
    assert torch.equal(logits(wrapped), before)
    expected = logits(trained(wrapped))
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-12)
    buffers = dict(merged.named_buffers())
    assert scales
    assert all(torch.equal(value, buffers[name]) for name, value in scales.items())


def test_the_record_says_what_trains():
    model = adapted(support=Support(sparse=8, omega="magnitude"), alpha=8.0)
    record = describe(model)
    assert (record.rank, record.scaling) == (4, 2.0)
    assert (record.low_rank_parameters, record.sparse_parameters) == (6 * 4 * 2 * HIDDEN, 6 * 8)
    assert set(record.in_largest.values()) == {8}
    assert next(iter(record.in_largest)) == "bert.encoder.layer.0.attention.self.query"
    decoder = describe(adapted("gpt2", support=Support(sparse=8, omega="magnitude")))
    assert set(decoder.in_largest.values()) == {16}  # eight of query and eight of value
    assert max(describe(adapted()).in_largest.values()) < 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"support": Support(sparse=1025)}, "`dsee sparse` must be at most 1024, the entries of bert.encoder.layer.0"),
        (
            {"target_modules": ["word_embeddings"]},
            "`dsee targets` must name maps of type Linear or Conv1D, .* Embedding for",
        ),
        (
            {"support": Support(omega="gradient")},
            "`dsee omega` must be decompose, magnitude or random without a gradient",
        ),
        ({"parts": {"query": [True] * 5}}, "`parts` must divide the 32 outputs of bert.* got 5 parts"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        adapted(**changes)
    assert "\n" not in str(caught.value)


def test_the_parts_of_gpt2_are_those_of_its_own_map_alone():
    for path, module, parts in (
        ("transformer.h.0.attn.c_attn", Conv1D(6, 2), [True, False, True]),
        ("transformer.h.0.crossattention.c_attn", Conv1D(4, 2), [True]),  # key and value
        ("transformer.h.0.attn.c_proj", Conv1D(2, 2), [True]),
        ("transformer.h.0.attn.c_attn", nn.Linear(2, 6), [True]),  # GPT-BigCode: one key for all heads
    ):
        assert config().parts_of(path, module, 6) == parts
    assert config(parts={}).parts_of("attn.c_attn", Conv1D(6, 2), 6) == [True]


def test_values_that_no_config_has_are_refused():
    for changes, message in (
        ({"r": 0}, "`dsee rank` must be a whole number of at least 1, got 0"),
        ({"alpha": -1}, "`dsee alpha` must be above 0"),
        ({"parts": {"query": [False]}}, "`parts of query` must be a list of True and False, one at least True"),
    ):
        with pytest.raises(InputError, match=message):
            config(**changes)


def test_no_adapter_is_added_to_one_that_is_merged():
    model = trained(adapted())
    model.merge_adapter()
    with pytest.raises(InputError, match="must be unmerged before another is added, got default merged into bert.enc"):
        model.add_adapter("second", config())


def test_quantised_weights_and_models_without_query_and_value_are_refused():
    model = classifier()
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    query.weight = nn.Parameter(query.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="not quantised, got quantised weights for bert.encoder.layer.0"):
        get_peft_model(model, config())
    with pytest.raises(InputError, match="`dsee targets` must be given for GPTNeoXModel, which has no maps to query"):
        get_peft_model(pico_model("gpt_neox"), config(task_type=None))


# The parts of PEFT that the adapter stands on and that no page of PEFT promises: where one changes, so must dsee/.
USED = {
    tuners_utils.BaseTuner._prepare_adapter_config: ("self", "peft_config", "model_config"),
    tuners_utils.BaseTuner._create_and_replace: (
        *("self", "peft_config", "adapter_name", "target", "target_name", "parent", "current_key", "parameter_name"),
    ),
    tuners_utils.BaseTuner._check_merge_allowed: ("self",),
    tuners_utils.BaseTuner._replace_module: ("self", "parent", "child_name", "new_module", "child"),
    tuners_utils.BaseTunerLayer._move_adapter_to_device_of_base_layer: ("self", "adapter_name", "device"),
    tuners_utils.BaseTunerLayer._cast_input_dtype: ("self", "x", "dtype"),
    tuners_utils.check_adapters_to_merge: ("module", "adapter_names"),
}


def test_peft_is_as_the_adapter_needs_it():
    for function, parameters in USED.items():
        assert tuple(inspect.signature(function).parameters) == parameters, function.__qualname__
    layer = tuners_utils.BaseTunerLayer
    assert (layer._disable_adapters, layer._active_adapter, layer.merged_adapters) == (False, "default", [])
    for table in (peft.PEFT_TYPE_TO_CONFIG_MAPPING, peft.PEFT_TYPE_TO_TUNER_MAPPING):
        assert set(table) >= {"DSEE", "LORA"}
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[DseeType.DSEE] == "dsee_"  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Unknown PEFT type DSEE"):  # else its own way to register could be taken
        peft.utils.register_peft_method(name="dsee", config_cls=DseeConfig, model_cls=object)


SCRIPT = """
import sys
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + "/base")
{}
print(type(PeftModel.from_pretrained(base, sys.argv[1] + "/adapter")).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("import mlpfusion\nfrom peft import PeftModel", "PeftModelForSequenceClassification\n"),
        ("from peft import PeftModel\nimport mlpfusion", "PeftModelForSequenceClassification\n"),
        ("from peft import PeftModel", "KeyError: 'DSEE'"),
    ],
    ids=["before peft", "after peft", "without"],
)
def test_another_program_loads_an_adapter_behind_the_import_and_no_other_way(lines, said, tmp_path):
    classifier().save_pretrained(tmp_path / "base")
    adapted().save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "-c", SCRIPT.format(lines), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert re.search(said, done.stdout + done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter.config", "adapter.describe", "gradients", "omega", "update"])
def test_a_file_can_be_imported_first(name):
    """PEFT is imported by some, transformers imports PEFT, and the hook some of these files behind PEFT."""
    subprocess.run([sys.executable, "-c", f"import mlpfusion.dsee.{name}, mlpfusion.tune.run"], check=True, timeout=600)

"""`mlpfusion sparsify`: what is written, that it loads unmerged, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import dsee, logits, saved_adapter, under_adapter
from command import call, refused
from peft import AutoPeftModelForSequenceClassification, IA3Config, LoraConfig, PeftModel
from pico import HIDDEN, WIDTH, pico_model
from safetensors.torch import load_file, save_file
from tiny_task import save_checkpoint
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.adapter.saved import weights_sha256
from mlpfusion.dsee.masks import set_zeros
from mlpfusion.dsee.record import SPARSITY_RECORD_FILE
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Support
from mlpfusion.options.adapters.sparsity import Sparsity

UNDER, OTHERS = 6 * HIDDEN * HIDDEN, 3 * (2 * HIDDEN * HIDDEN + 2 * WIDTH * HIDDEN) + HIDDEN * HIDDEN


@pytest.fixture
def model(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model")


@pytest.fixture
def adapter(model, tmp_path) -> Path:
    return saved_adapter(model, tmp_path / "adapter-of-dsee")


def with_entries(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def sparsified(model: Path, adapter: Path, out: Path, *flags: object) -> dict[str, Any]:
    result = call("sparsify", model, out, "--adapter", adapter, *flags, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_weights_with_zeros_and_the_adapter_lie_side_by_side_and_load_in_one_call(model, adapter, tmp_path):
    out = tmp_path / "out"
    record = sparsified(model, adapter, out, "--updated-ratio", 0.3, "--other-ratio", 0.1)
    expected = under_adapter(model, dsee())
    set_zeros(expected, Sparsity(updated_ratio=0.3, other_ratio=0.1))
    loaded = mlpfusion.load_adapted(out)
    assert torch.equal(logits(loaded), logits(expected))
    assert torch.equal(
        logits(AutoPeftModelForSequenceClassification.from_pretrained(str(out / "adapter"))), logits(loaded)
    )
    base = AutoModelForSequenceClassification.from_pretrained(out)
    assert torch.equal(logits(PeftModel.from_pretrained(base, str(out / "adapter"))), logits(loaded))
    assert json.loads((out / SPARSITY_RECORD_FILE).read_text()) == record
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier", "score"]
    stored, original = load_file(out / "model.safetensors"), load_file(model / "model.safetensors")
    zeros = {rows["path"]: rows["zeros"] for rows in record["maps"]}
    assert {name: int((stored[f"{name}.weight"] == 0).sum()) for name in zeros} == zeros
    assert sum(zeros.values()) == round(0.3 * UNDER) + round(0.1 * OTHERS)
    changed = {name for name in stored if name[5:] in original and not torch.equal(stored[name], original[name[5:]])}
    assert changed == {f"{name}.weight" for name in zeros}
    assert "mlp_fusion" not in json.loads((out / "config.json").read_text())


def test_a_map_of_which_hardly_anything_is_left_is_named(model, tmp_path):
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["pooler.dense.weight"] *= 1e-6
    save_file(weights, file, {"format": "pt"})
    adapter = saved_adapter(model, tmp_path / "adapter-of-dsee")
    command = ("sparsify", model, tmp_path / "out", "--adapter", adapter, "--updated-ratio", 0.5, "--other-ratio")
    for ratio, is_named in ((0.5, True), (0.01, False)):
        result = call(*command, ratio, "--overwrite")
        assert result.exit_code == 0, result.output
        for told in (result.output, (tmp_path / "out" / "README.md").read_text()):
            said = " ".join(told.split())
            assert ("Hardly anything is left of bert.pooler.dense: what comes after" in said) == is_named


def test_the_same_seed_gives_the_same_bytes(model, adapter, tmp_path):
    files = [Path("model.safetensors"), Path("adapter/adapter_model.safetensors")]
    for out, seed in (("one", 1), ("two", 1), ("other", 2)):
        sparsified(model, adapter, tmp_path / out, "--criterion", "random", "--seed", seed)
    read = {out: [(tmp_path / out / file).read_bytes() for file in files] for out in ("one", "two", "other")}
    assert read["one"] == read["two"]
    assert read["one"][0] != read["other"][0]
    assert read["one"][1] == read["other"][1]


def test_a_merge_is_refused_and_done_by_those_who_ask(model, adapter, tmp_path):
    sparsified(model, adapter, tmp_path / "out")
    loaded = mlpfusion.load_adapted(tmp_path / "out")
    unmerged = logits(loaded)
    for merge in (loaded.merge_and_unload, loaded.merge_adapter):
        with pytest.raises(InputError, match="the adapter default must stay beside the weights: merged, it fills"):
            merge()
    assert torch.equal(logits(loaded), unmerged)
    loaded.peft_config["default"].keep_zeros = False
    whole = loaded.merge_and_unload()
    torch.testing.assert_close(logits(whole), unmerged, rtol=1e-4, atol=1e-5)
    assert (whole.bert.encoder.layer[0].attention.self.query.weight != 0).all()


def test_zeros_are_added_to_those_of_a_former_round(model, adapter, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    sparsified(model, adapter, first, "--criterion", "w", "--updated-ratio", 0.2, "--other-ratio", 0.2)
    record = sparsified(
        first, first / "adapter", second, "--criterion", "w", "--updated-ratio", 0.5, "--other-ratio", 0.4
    )
    assert sum(rows["zeros"] for rows in record["maps"]) == round(0.5 * UNDER) + round(0.4 * OTHERS)
    old, new = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all((new[name][old[name] == 0] == 0).all() for name in old)


@pytest.mark.parametrize("labels", [2, 3])
def test_an_adapter_of_lora_by_peft_alone_works_as_well(model, labels, tmp_path):
    lora = LoraConfig(r=4, task_type="SEQ_CLS")  # pyright: ignore[reportArgumentType]
    adapted = under_adapter(model, lora, labels)
    adapted.save_pretrained(tmp_path / "lora")
    record = sparsified(model, tmp_path / "lora", tmp_path / "out", "--criterion", "ab")
    assert record["adapter_parameters"] == 6 * 4 * 2 * HIDDEN + labels * (HIDDEN + 1)
    set_zeros(adapted, Sparsity("ab"))
    assert torch.equal(logits(mlpfusion.load_adapted(tmp_path / "out")), logits(adapted))


def test_a_model_with_an_adapter_beside_it_is_not_taken_for_a_whole_one(model, adapter, tmp_path):
    out = tmp_path / "out"
    sparsified(model, adapter, out)
    for command in (("compress", out, tmp_path / "x", "--keep-ratio", 0.5), ("export", out, tmp_path / "x")):
        assert f"MODEL must hold all that it computes, got {out}, whose adapter is not merged: " in refused(*command)
    with pytest.raises(InputError, match="`folder` must hold a model with an adapter beside it, not merged, got "):
        mlpfusion.load_adapted(model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updated-ratio", 1], "`--updated-ratio` must be at least 0 and below 1, got 1.0"),
        (["--other-ratio", -0.5], "`--other-ratio` must be at least 0 and below 1, got -0.5"),
        (["--criterion", "best"], "`--criterion` must be one of abs, ab, wab, w, random, got 'best'"),
        (["--seed", 1], "`--seed` must be left out for criterion=abs, which draws nothing, got 1"),
    ],
)
def test_bad_values_are_refused_in_one_line_and_leave_nothing(flags, message, model, adapter, tmp_path):
    before = {entry.name for entry in tmp_path.iterdir()}
    assert message in refused("sparsify", model, tmp_path / "out", "--adapter", adapter, *flags)
    assert {entry.name for entry in tmp_path.iterdir()} == before


def test_folders_that_are_no_adapter_for_the_model_are_refused(model, adapter, tmp_path):
    def said(model: Path, adapter: Path) -> str:
        return refused("sparsify", model, tmp_path / "out", "--adapter", adapter)

    message = "`--adapter` must be a folder with adapter_config.json and adapter_model.safetensors, got "
    assert message in said(model, model)
    tuned = tmp_path / "tuned"
    AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(tuned)
    shutil.copytree(adapter, tuned / "adapter")
    assert said(model, tuned).endswith(f"; give {tuned / 'adapter'}")
    with_entries(tuned / "adapter" / "adapter_config.json", task_type="CAUSAL_LM")
    assert "`--adapter` must be one for this model: " in said(model, tuned / "adapter")
    (tuned / "adapter" / "mlp_fusion_base.json").write_text("{}")
    assert "mlp_fusion_base.json must hold what was written: " in said(model, tuned / "adapter")
    with_entries(tuned / "adapter" / "adapter_config.json", r=-1)
    assert "`--adapter` must have a config that PEFT reads: " in said(model, tuned / "adapter")
    under_adapter(model, IA3Config(task_type="SEQ_CLS")).save_pretrained(tmp_path / "ia3")  # pyright: ignore[reportArgumentType]
    assert "`--adapter` must be one of DSEE or LORA, got 'IA3'" in said(model, tmp_path / "ia3")
    dora = LoraConfig(r=4, task_type="SEQ_CLS", use_dora=True)  # pyright: ignore[reportArgumentType]
    under_adapter(model, dora).save_pretrained(tmp_path / "dora")
    assert "`--adapter` must be a LoRA that only adds B A, got one with use_dora" in said(model, tmp_path / "dora")
    pissa = LoraConfig(r=4, task_type="SEQ_CLS", init_lora_weights="pissa")  # pyright: ignore[reportArgumentType]
    under_adapter(model, pissa).save_pretrained(tmp_path / "pissa")
    assert "must be a LoRA that left the weights as they were, got one with init_lora_weights=pissa" in said(
        model, tmp_path / "pissa"
    )
    gpt2 = save_checkpoint(tmp_path / "gpt2", "gpt2")
    assert "`--adapter` must be one for this model" in said(gpt2, adapter)
    every = DseeConfig(r=4, support=Support(sparse=8, omega="random"), task_type="SEQ_CLS", target_modules="all-linear")
    under_adapter(model, every).save_pretrained(tmp_path / "every")
    assert "`--other-ratio` must be 0 for an adapter on all linear maps of the layers" in said(
        model, tmp_path / "every"
    )
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_or_a_merged_one_is_refused(model, adapter, tmp_path):
    other = tmp_path / "other"
    pico_model("bert", seed=1).save_pretrained(other)
    message = "`--adapter` must lie on the weights that it was trained on, got a model with other ones: "
    assert message in refused("sparsify", other, tmp_path / "out", "--adapter", adapter)
    merged = tmp_path / "merged"
    under_adapter(model, dsee()).merge_and_unload().save_pretrained(merged)
    assert message in refused("sparsify", merged, tmp_path / "out", "--adapter", adapter)
    shutil.copytree(adapter, merged / "adapter")
    said = refused("sparsify", merged, tmp_path / "out", "--adapter", merged / "adapter")
    assert f"MODEL must be the one that the adapter was trained on, got {merged}, into which it is merged: give" in said
    sparsified(model, merged / "adapter", tmp_path / "out")


def test_a_form_that_the_adapter_asks_for_and_the_model_lacks_is_refused(model, adapter, tmp_path):
    for task_type, message in (
        (
            "TOKEN_CLS",
            "`--adapter` must have a task_type among FEATURE_EXTRACTION, SEQ_CLS, CAUSAL_LM, SEQ_2_SEQ_LM, got",
        ),
        ("SEQ_2_SEQ_LM", "`--adapter` must fit the model, a bert has no SEQ_2_SEQ_LM form"),
    ):
        with_entries(adapter / "adapter_config.json", task_type=task_type)
        assert message in refused("sparsify", model, tmp_path / "out", "--adapter", adapter)


@pytest.mark.filterwarnings("ignore:the checkpoint has no pooler")
def test_what_the_checkpoint_lacks_is_drawn_as_for_the_training(tmp_path):
    """DeBERTa's pooler does not train and is in neither file: its seed is kept."""
    model = save_checkpoint(tmp_path / "deberta", "deberta-v2")
    adapter = saved_adapter(model, tmp_path / "adapter", seed=3)
    sparsified(model, adapter, tmp_path / "out", "--updated-ratio", 1e-9, "--other-ratio", 0)
    assert torch.equal(logits(mlpfusion.load_adapted(tmp_path / "out")), logits(under_adapter(model, dsee(), seed=3)))
    with_entries(adapter / "mlp_fusion_base.json", seed=4)
    message = "`--adapter` must lie on the weights that it was trained on, got a model with other ones"
    assert message in refused("sparsify", model, tmp_path / "x", "--adapter", adapter)


def test_the_hash_is_that_of_the_frozen_maps_alone(model):
    adapted = under_adapter(model, dsee())
    found = weights_sha256(adapted)
    assert weights_sha256(under_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"), 3, seed=1)) == found  # pyright: ignore[reportArgumentType]
    base = adapted.get_base_model()
    for parameter in (base.bert.embeddings.word_embeddings.weight, base.classifier.original_module.weight):
        parameter.data += 1
        assert weights_sha256(adapted) == found
    for path in ("encoder.layer.1.attention.self.query.base_layer", "encoder.layer.2.output.dense", "pooler.dense"):
        weight = base.bert.get_submodule(path).weight
        weight.data[0, 0] += 1e-3
        assert weights_sha256(adapted) != found
        weight.data[0, 0] -= 1e-3
    assert weights_sha256(under_adapter(model, dsee()).to(torch.float64)) == weights_sha256(
        under_adapter(model, dsee())
    )


def test_shapes_that_do_not_fit_are_named(model, adapter, tmp_path):
    wide = tmp_path / "wide"
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("dsee_update.A"))
    for change, message in (
        ({name: torch.zeros(1, 4, 9)}, f"{name} of shape [1, 4, 32], got [1, 4, 9]"),
        ({name: None}, f"{name} of shape [1, 4, 32], got none"),
        ({"base_model.model.more": torch.zeros(1)}, "which has no place for base_model.model.more"),
    ):
        shutil.rmtree(wide, ignore_errors=True)
        shutil.copytree(adapter, wide)
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(changed, wide / "adapter_model.safetensors")
        said = refused("sparsify", model, tmp_path / "out", "--adapter", wide)
        assert "`--adapter` must be one for this model, " in said
        assert message in said

"""`compress` on a model in memory."""

import pytest
import torch
from pico import pico_model, pico_outputs
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

import mlpfusion
from mlpfusion.errors import DegenerateClusteringWarning, InputError
from mlpfusion.sites.table import Architecture, Stack


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_record_tells_what_was_done():
    model = pico_model("bert")
    record = mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", keep_ratio=0.25, seed=7)
    assert record.recipe == {
        "method": "fusion",
        "options": {"num_init": 1, "max_iter": 300, "refine": True},
        "layers": "last:2",
        "keep_ratio": 0.25,
        "width": None,
        "round_to": 1,
        "seed": 7,
    }
    assert [(site.layer, site.original_width, site.width) for site in record.sites] == [(1, 56, 14), (2, 56, 14)]
    assert record.original.parameters - record.compressed.parameters == 2 * 42 * (2 * 32 + 1)
    assert record.compressed.parameters == sum(p.numel() for p in model.parameters())
    assert record.device == "cpu"
    assert record.threads == torch.get_num_threads()
    assert record.dtype == "float32"
    metrics = record.sites[0].metrics
    assert 0 < metrics["inertia_ratio"] < 1
    assert metrics["largest_cluster"] >= 4
    assert "\n" in record.to_json()


def test_only_the_chosen_layers_change():
    model = pico_model("llama")
    before = state(model)
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="1", width=10)
    after = state(model)
    changed = {name for name in before if name not in after or not torch.equal(before[name], after[name])}
    assert changed == {f"layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert after.keys() - before.keys() == {"layers.1.mlp.act_fn.output_scale"}


def test_the_same_seed_gives_the_same_bytes_whichever_other_layers_are_compressed():
    models = [pico_model("gpt2") for _ in range(3)]
    for model, layers, seed in zip(models, ("all", "2", "2"), (5, 5, 6), strict=True):
        mlpfusion.compress(model, mlpfusion.Fusion(), layers=layers, width=12, seed=seed)
    weights = [model.h[2].mlp.c_fc.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("dtype", "factor", "method"),
    [
        (torch.float32, 1e30, mlpfusion.MMD(num_steps=2)),  # squared distances beyond fp32
        (torch.float32, 1e-20, mlpfusion.MMD(num_steps=2)),  # and below it: 0 / 0
        (torch.float16, 1e5, mlpfusion.FoldedFusion()),  # cluster sizes times weights near the largest fp16
    ],
)
def test_nan_and_inf_made_by_a_method_are_refused_before_the_model_changes(dtype, factor, method):
    model = pico_model("llama", dtype=dtype)
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.mlp.up_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
                limit = torch.finfo(dtype).max * 0.9
                linear.weight.copy_((linear.weight.float() * factor).clamp(-limit, limit))
    before = state(model)
    with pytest.raises(InputError, match="`method` must be one that can cope with the weights at .*NaN or Inf"):
        mlpfusion.compress(model, method, keep_ratio=0.25)
    assert same(before, state(model))


def test_device_dtype_mode_and_frozen_parameters_are_kept():
    model = pico_model("llama", dtype=torch.bfloat16).train()
    model.requires_grad_(False)
    mlpfusion.compress(model, mlpfusion.Fusion(), width=12)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_an_interrupt_leaves_the_model_as_it_was():
    model = pico_model("bert")
    before = state(model)

    def interrupt(done: int, total: int, path: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=12, progress=interrupt)
    assert same(before, state(model))
    assert not hasattr(model.config, "mlp_fusion")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_before_anything_changes(value):
    model = pico_model("bert")
    model.embeddings.word_embeddings.weight.data[3, 1] = value
    before = state(model).keys()
    with pytest.raises(InputError, match=r"must be finite, got 1 NaN or Inf in embeddings.word_embeddings.weight"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=12)
    assert state(model).keys() == before


def test_a_compressed_model_is_not_compressed_again():
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=12)
    with pytest.raises(InputError, match="`model` must not be compressed already"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=6)


def test_other_linear_layers_are_refused():
    model = pico_model("bert")
    model.encoder.layer[1].output.dense = torch.nn.Sequential()
    with pytest.raises(InputError, match=r"must be nn.Linear or Conv1D, got Sequential"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=12)


def test_a_row_that_overlooks_parameters_is_refused():
    row = Architecture((Stack("layers.{}", "mlp.gate_proj", "mlp.down_proj", "mlp.act_fn"),))
    with pytest.raises(InputError, match="the row must describe what the model computes"):
        mlpfusion.compress(pico_model("llama"), mlpfusion.Fusion(), width=12, architecture=row)
    model = pico_model("llama")
    for layer in model.layers:
        layer.mlp.extra = torch.nn.Linear(56, 3)
    with pytest.raises(InputError, match="must cover 100 % of the MLP parameters, got 97.0 %"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=12)


def test_a_row_that_confuses_gate_and_up_is_refused():
    row = Architecture((Stack("layers.{}", "mlp.gate_proj", "mlp.down_proj", "mlp.act_fn", gate="mlp.up_proj"),))
    with pytest.raises(InputError, match=r"it does not at layers.0: is `gate` right, or is there more"):
        mlpfusion.compress(pico_model("llama"), mlpfusion.Fusion(), width=12, architecture=row)


def test_the_source_hash_is_that_of_the_mlps_under_every_head(tmp_path):
    pico_model("bert").save_pretrained(tmp_path)
    hashes = set()
    for auto_class in (AutoModel, AutoModelForSequenceClassification):
        model = auto_class.from_pretrained(tmp_path)
        hashes.add(mlpfusion.compress(model, mlpfusion.Fusion(), width=12).source_sha256)
    assert len(hashes) == 1
    other = mlpfusion.compress(pico_model("bert", seed=1), mlpfusion.Fusion(), width=12)
    assert other.source_sha256 not in hashes


def test_a_degenerate_clustering_is_told():
    model = pico_model("bert")
    mlp = model.encoder.layer[0]
    with torch.no_grad():  # thirty equal neurons, twenty-six of their own
        for weight in (mlp.intermediate.dense.weight, mlp.intermediate.dense.bias, mlp.output.dense.weight.T):
            weight[26:] = weight[26].clone()
    message = (
        "degenerate at 1 of 1 layers: one cluster holds up to 54 % .* up to 96 % of the clusters are single neurons"
    )
    with pytest.warns(DegenerateClusteringWarning, match=message) as told:
        mlpfusion.compress(model, mlpfusion.Fusion(), layers="0", width=27)
    assert [warning.filename for warning in told] == [__file__]


def test_full_width_changes_nothing():
    model = pico_model("modernbert")
    before = pico_outputs(model, "modernbert")
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=1.0)
    torch.testing.assert_close(pico_outputs(model, "modernbert"), before)

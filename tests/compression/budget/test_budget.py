"""`compress` with a budget: met on every architecture, spread by need, the same for a seed, refused in one line."""

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pico import SEVERAL, others_slow, pico_inputs, pico_model, pico_outputs, sites_of
from torch.utils.flop_counter import FlopCounterMode

import mlpfusion
from mlpfusion.cli import main
from mlpfusion.compression.budget.amount import count_flops, flops_inputs, parse_budget
from mlpfusion.compression.budget.curves import probe_batches
from mlpfusion.errors import InputError
from mlpfusion.sites.recording import eval_mode
from mlpfusion.sites.sites import read_mlp
from mlpfusion.sites.traces import last_hidden_tokens, replaced_block

REFIT = mlpfusion.NTKMatch(refine_epochs=0)


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: Any) -> int:
    """Counted on the model as it is."""
    model.set_attn_implementation("eager")
    with eval_mode(model), FlopCounterMode(display=False) as counter:
        model(**flops_inputs(model))
    return counter.get_total_flops()


def widths(record: Any) -> list[int]:
    return [site.width for site in record.sites]


def batches(name: str) -> list[dict[str, torch.Tensor]]:
    return [pico_inputs(name, seed) for seed in range(8)]


@pytest.mark.parametrize("round_to", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", others_slow(SEVERAL, quick=("bert", "llama")))
def test_the_parameters_are_within_one_step_below_the_budget(name, round_to):
    model = pico_model(name)
    before = parameters(model)
    sites = sites_of(model)
    step = round_to * max(read_mlp(model, site).parameters_per_neuron for site in sites)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), budget="80%", round_to=round_to)
    assert 0.8 * before - step < parameters(model) <= 0.8 * before
    assert record.budget is not None
    assert record.budget["kept"] == parameters(model) == record.compressed.parameters
    assert [site["width"] for site in record.budget["sites"]] == widths(record)
    assert all(width % round_to == 0 or width in (56, 60) for width in widths(record))


@pytest.mark.parametrize("name", others_slow(quick=("bert", "llama")))
def test_the_flops_that_are_counted_are_those_that_torch_counts_before_and_after(name):
    model, original = pico_model(name), pico_model(name)
    record = mlpfusion.compress(model, mlpfusion.NeuronPruning(), budget="92%flops")
    assert record.budget is not None
    before, after = flops(original), flops(model)
    assert (record.budget["total"], record.budget["kept"]) == (before, after)
    assert 0.89 * before < after <= 0.92 * before
    assert model.config._attn_implementation == "eager"  # by this test: `compress` puts back what there was


def test_counting_leaves_the_model_as_it_was():
    model = pico_model("bert").train()
    attention, before = model.config._attn_implementation, copy.deepcopy(model.state_dict())
    count_flops(model, [[site] for site in sites_of(model)])
    assert model.config._attn_implementation == attention != "eager"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def with_duplicates(name: str, layer: int) -> Any:
    """The model with four neurons and their copies in one layer, which still adds as much to the output."""
    model = pico_model(name)
    mlp = read_mlp(model, sites_of(model)[layer])
    with torch.no_grad():
        for field, tensor in mlp.tensors().items():
            if field != "down_bias":
                axis = 1 if field == "down" else 0
                tensor.copy_(tensor.index_select(axis, torch.arange(tensor.shape[axis]) % 4))
    return model


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_layer_of_duplicates_gets_fewer_neurons_than_the_others(name):
    record = mlpfusion.compress(with_duplicates(name, 1), mlpfusion.Fusion(), budget="85%")
    first, duplicates, last = widths(record)
    assert duplicates < min(first, last)
    assert record.budget is not None
    assert record.budget["sites"][1]["error"] < 1e-3


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_layer_of_idle_neurons_gets_fewer_neurons_than_the_others_on_calibration(name):
    model = pico_model(name)
    with torch.no_grad():
        read_mlp(model, sites_of(model)[1]).down[:, 4:] = 0
    record = mlpfusion.compress(model, REFIT, budget="85%", calibration=batches(name))
    first, idle, last = widths(record)
    assert idle < min(first, last)


@pytest.mark.parametrize("calibrated", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_all_of_the_model_is_kept_at_100_percent_and_more_at_a_larger_budget(calibrated):
    given: dict[str, Any] = {"calibration": batches("bert")} if calibrated else {}
    method = REFIT if calibrated else mlpfusion.Fusion()
    found = [widths(mlpfusion.compress(pico_model("bert"), method, budget=b, **given)) for b in ("75%", "85%", "95%")]
    assert all(a <= b for small, large in itertools.pairwise(found) for a, b in zip(small, large, strict=True))
    assert sum(found[0]) < sum(found[1]) < sum(found[2])
    assert widths(mlpfusion.compress(pico_model("bert"), method, budget="100%", **given)) == [56, 56, 56]


def test_the_same_seed_gives_the_same_bytes_and_other_layers_stay():
    states, records = [], []
    for _ in range(2):
        model = pico_model("llama")
        records.append(mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", budget="90%", seed=3))
        states.append(model.state_dict())
    assert records[0].budget == records[1].budget
    assert [site.layer for site in records[0].sites] == [1, 2]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("name", others_slow())
def test_a_replaced_block_is_seen_by_the_model_and_gone_afterwards(name):
    model, batch = pico_model(name), pico_inputs(name)
    site = sites_of(model)[0]
    mlp, before = read_mlp(model, site), last_hidden_tokens(model, batch)
    with replaced_block(model, site, mlp):
        assert torch.allclose(last_hidden_tokens(model, batch), before, atol=1e-5)
    with replaced_block(model, site, mlpfusion.mlp.select_neurons(mlp, torch.arange(3))):
        assert not torch.allclose(last_hidden_tokens(model, batch), before, atol=1e-3)
    assert torch.equal(last_hidden_tokens(model, batch), before)
    assert torch.equal(pico_outputs(model, name), pico_outputs(pico_model(name), name))


@pytest.mark.parametrize(
    ("batches", "chosen"),
    [
        ([(32, 4)] * 8, list(range(2, 256, 4))),  # 64 samples
        ([(32, 128)] * 2, list(range(4, 64, 8))),  # 1,024 tokens
        ([(5, 2), (3, 2), (1, 2)], list(range(9))),
        ([(1, 4096), (1, 4096)], [1]),
    ],
)
def test_the_probe_holds_samples_at_equal_distances(batches, chosen):
    numbers = torch.arange(sum(size for size, _ in batches))
    parts = zip(numbers.split([size for size, _ in batches]), batches, strict=True)
    probe = probe_batches([{"input_ids": part[:, None].expand(-1, length)} for part, (_, length) in parts])
    assert torch.cat([batch["input_ids"][:, 0] for batch in probe]).tolist() == chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"budget": text}, "`budget` must be above 0% and at most 100%")
            for text in ("150%", "0%", "abc", "60", 0.6)
        ),
        ({"budget": "10%"}, r"`budget` must be at least [\d.]+% of the parameters.*got 10%"),
        ({"budget": "10%flops"}, r"`budget` must be at least [\d.]+% of the flops.*got 10%flops"),
        ({"budget": "80%", "width": 5}, "only one of `width` and `budget` must be given"),
        ({"budget": "80%", "keep_ratio": 0.5}, "only one of .* got 0.5 and '80%'"),
        ({"budget": "80%", "round_to": 0}, "`round_to` must be at least 1, got 0"),
        ({"budget": "80%", "layers": "9"}, "`layers` must be between 0 and 2, got 9"),
    ],
)
def test_bad_budgets_name_the_field_what_is_allowed_and_the_value(options, message):
    with pytest.raises(InputError, match=message):
        mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), **options)


@pytest.mark.parametrize("method", [mlpfusion.SVD(), mlpfusion.Magnitude()])
def test_methods_that_keep_the_width_refuse_a_budget(method):
    with pytest.raises(InputError, match="`budget` must be left out for .*, which keeps the width"):
        mlpfusion.compress(pico_model("bert"), method, budget="80%")


def test_the_least_that_the_error_names_can_be_reached():
    with pytest.raises(InputError) as caught:
        mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), budget="1%")
    least = str(caught.value).split("at least ")[1].split(" ")[0]
    assert widths(mlpfusion.compress(pico_model("bert"), mlpfusion.RandomNeurons(), budget=least)) == [1, 1, 1]


@pytest.mark.parametrize("calibrated", [False, True])
def test_nan_is_refused_and_nothing_changes(calibrated):
    model = pico_model("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    given: dict[str, Any] = {"calibration": batches("bert")} if calibrated else {}
    with pytest.raises(InputError, match="finite"):
        mlpfusion.compress(model, REFIT if calibrated else mlpfusion.Fusion(), budget="80%", **given)
    assert model.encoder.layer[0].intermediate.dense.out_features == 56


def test_a_budget_is_exact():
    assert str(parse_budget("60.3 %")) == "60.3%"
    assert int(parse_budget("60.3%").share * 1000) == 603
    assert parse_budget("60%parameters") == parse_budget("60%")
    assert str(parse_budget("60% flops")) == "60%flops"


def test_the_command_prints_and_writes_what_each_layer_got(tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "model")
    arguments = ["compress", str(tmp_path / "model"), str(tmp_path / "out"), "--budget", "80%"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    budget = json.loads((tmp_path / "out" / "mlp_fusion_record.json").read_text())["budget"]
    card = (tmp_path / "out" / "README.md").read_text()
    for site in budget["sites"]:
        assert f"| {site['path']} | {site['width']} | {100 * site['share']:.1f} % |" in card
        assert f"{100 * site['share']:.1f} %" in result.stdout
    assert "asked for 80%" in result.stdout


@pytest.mark.parametrize("flags", [["--budget", "1%"], ["--budget", "80%", "--width", "5"], ["--budget", "150%"]])
def test_the_command_refuses_in_one_line_and_writes_nothing(flags, tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(main, ["compress", str(tmp_path / "model"), str(tmp_path / "out"), *flags])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "`--budget`" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

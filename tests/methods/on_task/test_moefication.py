"""MoEfication: experts of one size, the chosen ones alone compute, the router knows more than chance."""

from typing import Any

import pytest
import torch
from pico import pico_model, pico_outputs, sites_of
from random_mlp import make_mlp
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from task_job import HALF, make_job
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import Routed
from mlpfusion.kinds.routed import RoutedLinear
from mlpfusion.kinds.table import install
from mlpfusion.methods.on_task import moefication
from mlpfusion.methods.on_task.experts import balanced_clusters
from mlpfusion.methods.on_task.moefication import MoEfication
from mlpfusion.methods.on_task.router import expert_scores, train_router
from mlpfusion.mlp import forward, select_neurons
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.sites.sites import base_model, read_mlp
from mlpfusion.sites.traces import mlp_inputs
from mlpfusion.tune.finetune import finetune

FAST = MoEfication(epochs=3, batch_size=64)


def routed_linears(model: Any) -> list[RoutedLinear]:
    return [module for module in model.modules() if isinstance(module, RoutedLinear)]


def with_head(name: str = "bert", **options: Any) -> Any:
    return pico_model(name, AutoModelForSequenceClassification, **options)


@pytest.mark.parametrize("num_clusters", [1, 4, 8])
def test_clusters_are_of_one_size_and_no_swap_makes_them_better(num_clusters):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(48, 6, generator=generator)
    points[:30] += 3  # one clump is larger than a cluster may be
    labels, centres = balanced_clusters(points, num_clusters, torch.Generator().manual_seed(1))
    assert labels.bincount(minlength=num_clusters).tolist() == [48 // num_clusters] * num_clusters
    means = torch.stack([points[labels == cluster].mean(0) for cluster in range(num_clusters)])
    torch.testing.assert_close(centres, means)
    costs = torch.cdist(points, means).square()
    best = costs.repeat_interleave(48 // num_clusters, 1).numpy()
    rows, columns = linear_sum_assignment(best)
    assert float(costs.gather(1, labels[:, None]).sum()) == pytest.approx(best[rows, columns].sum(), rel=1e-5)


def test_well_separated_groups_are_found():
    centres = 10 * torch.eye(4)
    truth = torch.arange(4).repeat(6)
    points = centres[truth] + 0.1 * torch.randn(24, 4, generator=torch.Generator().manual_seed(2))
    labels, _ = balanced_clusters(points, 4, torch.Generator().manual_seed(3))
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 4


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_all_experts_on_give_the_original_output(name):
    job = make_job(name, dtype=torch.float64)
    expected = pico_outputs(job.model.eval(), name)
    outcomes: Any = moefication.compress(job, FAST)
    assert torch.equal(pico_outputs(job.model, name), expected)
    for site, outcome in zip(job.sites, outcomes, strict=True):
        everything = Routed(outcome.mlp, outcome.router_in, outcome.router_out, 4)
        install(job.model, site, everything)
    torch.testing.assert_close(pico_outputs(job.model, name), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_one_expert_of_four_computes_for_a_token_and_it_is_that_of_the_highest_score(name):
    model = with_head(name, dtype=torch.float64)
    original = with_head(name, dtype=torch.float64)
    record = mlpfusion.compress(model, FAST, data=HALF, layers="last:1", keep_ratio=0.25)
    assert record.sites[0].size() == "1 of 4 experts"
    (linear,) = routed_linears(model)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    seen = linear(x)[..., :56].unflatten(-1, (4, 14))
    assert torch.equal((seen != 0).any(-1), (seen != 0).all(-1))
    assert ((seen != 0).all(-1).sum(-1) == 1).all()
    scores = torch.tanh(x.float() @ linear.router_in.T) @ linear.router_out.T
    assert torch.equal((seen != 0).all(-1).float().argmax(-1), scores.argmax(-1))
    # its output is that of the original with the neurons of the other experts cut out
    site = sites_of(model)[-1]
    key = "up" if site.stack.gate is None else "gate"
    inner = linear.linear.get_parameter("weight").detach()
    rows = (inner.T if name == "gpt2" else inner)[:56]
    mlp = read_mlp(original, site)
    order = torch.cdist(rows, getattr(mlp, key)).argmin(1)
    assert sorted(order.tolist()) == list(range(56))
    token = x[0, 0]
    chosen = order.view(4, 14)[int(scores[0, 0].argmax())]
    names = {p: model.base_model.get_submodule(site.module_path(p)) for p in ("up", "down", "activation")}
    if site.stack.gate is None:
        found = names["down"](names["activation"](names["up"](token)))
    elif site.stack.gate == site.stack.up:
        gate, up = names["up"](token).chunk(2)
        found = names["down"](names["activation"](gate) * up)
    else:
        gate = model.base_model.get_submodule(site.module_path("gate"))
        found = names["down"](names["activation"](gate(token)) * names["up"](token))
    torch.testing.assert_close(found, forward(select_neurons(mlp, chosen), token), rtol=1e-10, atol=1e-12)


def test_the_router_beats_chance_on_sentences_that_it_has_not_seen():
    job = make_job()
    outcomes: Any = moefication.compress(job, MoEfication(batch_size=64))
    batch = {
        n: v for n, v in HALF.collate([HALF.evaluation["validation"][i] for i in range(40)]).items() if n != "labels"
    }
    inputs = mlp_inputs(job.model.eval(), job.sites, [batch])
    for site, outcome in zip(job.sites, outcomes, strict=True):
        x = inputs[site.path]
        truth = expert_scores(outcome.mlp, x, 4)
        chosen = (torch.tanh(x @ outcome.router_in.T) @ outcome.router_out.T).argmax(1)
        right = float((chosen == truth.argmax(1)).float().mean())
        most_frequent = float((truth.argmax(1).bincount(minlength=4).max()) / len(truth))
        assert right > max(0.5, most_frequent)
        assert outcome.metrics["router_accuracy"] > 0.5
        assert outcome.metrics["captured_score"] > 0.8


def test_training_keeps_the_best_epoch_of_the_held_out_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    scores = torch.relu(x[:, :4])
    options: dict[str, Any] = {"epochs": 10, "batch_size": 32, "generator": torch.Generator().manual_seed(1)}
    start = torch.zeros(4, 8)
    good = train_router(x, scores, start, 1, learning_rate=0.01, **options)
    assert good.accuracy > 0.7
    wild = train_router(x, torch.rand(400, 4, generator=generator), start, 1, learning_rate=0.9, **options)
    assert wild.epoch < 10  # noise: later epochs are worse where it was not trained


def test_labels_sum_what_the_neurons_of_an_expert_let_through():
    mlp = make_mlp(12, 5, activation="gelu")
    x = torch.randn(7, 5, dtype=torch.float64)
    assert mlp.up_bias is not None
    hidden = torch.relu(torch.nn.functional.gelu(x @ mlp.up.T + mlp.up_bias))
    expected = torch.stack([hidden[:, 3 * e : 3 * e + 3].sum(1) for e in range(4)], dim=1)
    torch.testing.assert_close(expert_scores(mlp, x, 4), expected)


def test_the_router_is_exact_in_bf16_and_never_trained(tmp_path):
    model = with_head()
    mlpfusion.compress(model, FAST, data=HALF, layers="last:2", keep_ratio=0.25)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for one, two in zip(routed_linears(model), routed_linears(loaded), strict=True):
        assert torch.equal(one.router_in_bits, two.router_in_bits)
        assert two.router_in_bits.dtype == torch.int32
        x = torch.randn(9, 32, dtype=torch.bfloat16)
        assert torch.equal(one.selected(x), two.selected(x))
        plain = one.scores(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(one.scores(x.float()), plain)
    assert not any("router" in name for name, _ in loaded.named_parameters())


def test_experts_that_are_not_chosen_get_no_gradient():
    model = with_head()
    mlpfusion.compress(model, FAST, data=HALF, layers="last:1", keep_ratio=0.25)
    (linear,) = routed_linears(model)
    x = torch.randn(1, 32)
    linear(x).sum().backward()
    weight: Any = linear.linear.weight
    touched = (weight.grad.abs().sum(1) > 0).view(4, 14)
    assert torch.equal(touched.all(1), linear.selected(x)[0])
    assert int(touched.sum()) == 14


def test_more_experts_are_chosen_in_proportion():
    model = with_head()
    record = mlpfusion.compress(model, MoEfication(epochs=1, num_experts=8), data=HALF, keep_ratio=0.5)
    assert {site.size() for site in record.sites} == {"4 of 8 experts"}
    assert {linear.num_selected for linear in routed_linears(model)} == {4}


def test_what_cannot_be_experts_is_refused():
    for config, keep_ratio, message in [
        (MoEfication(), 0.3, "`keep_ratio` must be a whole number of 3 experts, like 1/3 = 0.333333, got 0.3"),
        (MoEfication(num_experts=5), 0.2, "`num_experts` must divide the 56 neurons of encoder.layer.0, got 5"),
    ]:
        with pytest.raises(InputError, match=message):
            mlpfusion.compress(with_head(), config, data=HALF, keep_ratio=keep_ratio)
    model = with_head()
    model.bert.encoder.layer[2].intermediate.intermediate_act_fn = torch.nn.Sigmoid()
    with pytest.raises(InputError, match="the activation at encoder.layer.2 must be 0 at 0, .* got 0.5"):
        mlpfusion.compress(model, MoEfication(), data=HALF, keep_ratio=0.25)
    for field, value in (("num_tokens", 0), ("num_experts", -1)):
        with pytest.raises(ValueError, match=f"`{field}` must be at least 1"):
            MoEfication(**{field: value})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 asks for it
def test_lora_goes_on_the_map_behind_the_router_and_is_merged_into_it():
    model = with_head()
    mlpfusion.compress(model, FAST, data=HALF, layers="last:1", keep_ratio=0.25)
    weight = model.bert.encoder.layer[2].intermediate.dense.linear.weight.detach().clone()
    config = Finetune(epochs=1, lora=Lora(r=2, targets="all-linear"), device="cpu", learning_rate=2e-3)
    trained, _ = finetune(model, HALF, config)
    (linear,) = routed_linears(trained)
    assert type(linear.linear) is torch.nn.Linear
    assert not torch.equal(linear.linear.weight, weight)


def test_a_routed_model_has_no_stock_form_and_is_no_plain_mlp(tmp_path):
    model = with_head()
    mlpfusion.compress(model, FAST, data=HALF, keep_ratio=0.25)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="`model` must have a stock form to be folded, but its blocks are routed"):
        mlpfusion.fold(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.mlp_fusion["method"] == "moefication"
    with pytest.raises(InputError, match="got one whose experts a router chooses"):
        read_mlp(model, sites_of(model)[0])
    weight = base_model(model).state_dict()["encoder.layer.0.intermediate.dense.weight"]
    assert tuple(weight.shape) == (1,)  # on which stock transformers fails


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("bert.encoder.layer.1.intermediate.dense.router_in_bits"), "must hold the router of every"),
        (lambda w: w["bert.encoder.layer.1.intermediate.dense.router_out_bits"].fill_(0x7FC00000), "`router_out` at"),
        (lambda w: w.pop("bert.encoder.layer.1.intermediate.dense.linear.bias"), "must hold all weights of compressed"),
    ],
)
def test_a_damaged_checkpoint_is_refused_at_load(spoil, message, tmp_path):
    model = with_head()
    mlpfusion.compress(model, FAST, data=HALF, layers="last:2", keep_ratio=0.25)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)

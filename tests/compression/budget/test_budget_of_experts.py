"""A budget spread over mixtures of experts: one width a mixture, met exactly, by the error of the mixture together."""

import copy
from typing import Any

import pytest
import torch
from mixtures import WIDTH, mixture_model, slow_but, switch_model
from torch.utils.flop_counter import FlopCounterMode

import mlpfusion
from mlpfusion.cluster import kmeans
from mlpfusion.compression.budget.amount import count_flops, flops_inputs
from mlpfusion.compression.budget.curves import Probe, inertia_curve, refit_curve
from mlpfusion.compression.calibration.passes import block_passes
from mlpfusion.errors import InputError
from mlpfusion.mlp import neurons
from mlpfusion.seeds import site_generator
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.recording import recording
from mlpfusion.sites.sites import Site, by_block, find_sites, read_mlp
from mlpfusion.sites.traces import last_hidden_tokens, replaced_mixture

REFIT = mlpfusion.NTKMatch(match="none", refine_epochs=0)
# Two batches of texts, the second with padding.
TEXTS = [
    {"input_ids": ids, "attention_mask": (torch.arange(24) < length).long().expand(6, 24)}
    for ids, length in zip(
        torch.randint(3, 67, (2, 6, 24), generator=torch.Generator().manual_seed(3)), (24, 15), strict=True
    )
]
each_type = pytest.mark.parametrize("name", slow_but("deepseek_v3", "gpt_oss", "llama4_text", "mixtral"))


def blocks_of(model: Any, row: Any = None) -> list[list[Site]]:
    return list(by_block(find_sites(model, row or find_architecture(model))).values())


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: Any) -> int:
    """Counted on a copy that computes one expert after the other."""
    one_by_one = copy.deepcopy(model)
    one_by_one.set_attn_implementation("eager")
    if getattr(model.config, "_experts_implementation", None) is not None:
        one_by_one.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        one_by_one(**flops_inputs(model))
    return counter.get_total_flops()


@each_type
@pytest.mark.parametrize("round_to", [1, 16])
def test_the_parameters_are_within_one_step_below_the_budget(name, round_to):
    model = mixture_model(name)
    row = find_architecture(model, "all")  # with dense and shared MLPs, where there are some
    before, blocks = parameters(model), blocks_of(model, row)
    step = max(len(one) * max(8, round_to) * read_mlp(model, one[0]).parameters_per_neuron for one in blocks)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), budget="80%", round_to=round_to, stacks="all")
    assert 0.8 * before - step < parameters(model) <= 0.8 * before
    assert record.budget is not None
    assert record.budget["kept"] == parameters(model)
    assert [one["path"] for one in record.budget["sites"]] == [one[0].block_path for one in blocks]
    for block, told in zip(blocks_of(model, row), record.budget["sites"], strict=True):
        assert {site.intermediate_size for site in block} == {told["width"]}
        whole = told["share"] == 1
        assert whole or told["width"] % (round_to if block[0].mixture is None else max(8, round_to)) == 0


@each_type
def test_the_flops_that_are_counted_are_those_that_torch_counts_before_and_after(name):
    model, original = mixture_model(name), mixture_model(name)
    kernel = getattr(model.config, "_experts_implementation", None)
    record = mlpfusion.compress(model, mlpfusion.NeuronPruning(), budget="85%flops")
    assert record.budget is not None
    before, after = flops(original), flops(model)
    assert (record.budget["total"], record.budget["kept"]) == (before, after)
    assert 0.7 * before < after <= 0.85 * before
    assert getattr(model.config, "_experts_implementation", None) == kernel


def test_the_tokens_of_a_mixture_are_the_pairs_of_a_token_and_an_expert():
    model = mixture_model("deepseek_v3")  # dense, then mixtures beside shared experts; two of four experts a token
    num_tokens = flops_inputs(model)["input_ids"].numel()
    blocks = blocks_of(model, find_architecture(model, "all"))
    _, tokens = count_flops(model, blocks)
    assert tokens == [num_tokens * (1 if block[0].mixture is None else 2) for block in blocks]
    assert len(set(tokens)) == 2


def test_experts_that_are_modules_of_their_own_get_one_width_a_mixture_too():
    model = switch_model()
    before = parameters(model)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), budget="70%")
    assert 0.69 * before < parameters(model) <= 0.7 * before
    assert record.budget is not None
    widths = [{site.intermediate_size for site in block} for block in blocks_of(model) if block[0].mixture is not None]
    assert all(len(one) == 1 for one in widths)
    assert any(one.pop() % 8 for one in widths)  # no kernel asks for more than one step


def with_few_neurons_of_use(name: str, layer: int, *, copied: bool) -> Any:
    """The model with eight neurons in every expert of one layer; the others are copies of them, or do nothing."""
    model = mixture_model(name)
    with torch.no_grad():
        for block in blocks_of(model):
            for site in block:
                if site.layer == layer:
                    mlp = read_mlp(model, site)
                    for field, tensor in mlp.tensors().items() if copied else ():
                        axis = 1 if field == "down" else 0
                        tensor.copy_(tensor.index_select(axis, torch.arange(WIDTH) % 8))
                    mlp.down[:, WIDTH if copied else 8 :] = 0
    return model


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_mixture_of_duplicates_or_idle_neurons_gets_fewer_than_the_others(calibrated):
    model = with_few_neurons_of_use("mixtral", 1, copied=not calibrated)
    given: dict[str, Any] = {"calibration": TEXTS} if calibrated else {}
    record = mlpfusion.compress(model, REFIT if calibrated else mlpfusion.Fusion(), budget="60%", **given)
    first, few, last = [site.width for site in record.sites]
    assert few == 8
    assert min(first, last) > 8
    assert record.budget is not None
    assert record.budget["sites"][1]["error"] < 1e-3


def test_without_data_the_inertia_of_all_experts_counts_together():
    model = mixture_model("mixtral")
    block = blocks_of(model)[1]
    members = [(read_mlp(model, site), site_generator(0, site.path)) for site in block]
    curve = inertia_curve(members, [8, 24, WIDTH])
    left, total = torch.zeros(3, dtype=torch.float64), 0.0
    for site in block:
        generator, rows = site_generator(0, site.path), neurons(read_mlp(model, site)).detach()
        found = [kmeans(rows, width, generator=generator) for width in (8, 24, WIDTH)]
        left += torch.tensor([one.inertia for one in found])
        total += float((rows.double() - rows.double().mean(0)).square().sum())
    torch.testing.assert_close(torch.tensor(curve.errors), left / total, rtol=1e-6, atol=1e-9, check_dtype=False)


@pytest.mark.parametrize("name", ["mixtral", "llama4_text", "gpt_oss"])
@torch.no_grad()
def test_the_error_of_a_mixture_is_that_of_the_model_in_which_it_alone_is_cut(name):
    model = mixture_model(name)
    block = next(one for one in reversed(blocks_of(model)) if one[0].mixture is not None)
    with recording(model, gradients=False), block_passes(model, block, TEXTS, sequential=False) as passes:
        seen = [passes.at(site) for site in block]
    probe = Probe.of(model, TEXTS)
    curve = refit_curve(model, block, seen, [16, WIDTH], probe, torch.device("cpu"))
    cut = copy.deepcopy(model)
    mlpfusion.compress(
        cut, REFIT, width=16, layers=str(block[0].layer), calibration=TEXTS, architecture=of_experts(cut)
    )
    before = torch.cat([last_hidden_tokens(model, batch) for batch in probe.batches])
    after = torch.cat([last_hidden_tokens(cut, batch) for batch in probe.batches])
    expected = ((after - before).norm(dim=1).mean() / before.norm(dim=1).mean()).square()
    assert curve.errors[1] == 0
    assert curve.errors[0] == pytest.approx(float(expected), rel=1e-3)
    assert expected > 1e-4


def of_experts(model: Any) -> Any:
    """The row of a model without the MLPs beside its experts."""
    row = find_architecture(model)
    assert row is not None
    return type(row)(tuple(stack for stack in row.stacks if stack.layout is not None))


def test_an_expert_that_no_token_reaches_stays_whole_while_the_others_are_measured():
    model, one = mixture_model("mixtral"), [{"input_ids": torch.tensor([[5, 5]]), "attention_mask": torch.ones(1, 2)}]
    record = mlpfusion.compress(model, REFIT, budget="60%", calibration=one)
    assert any(site.metrics["fewest_tokens"] == 0 for site in record.sites)
    assert all(site.width % 8 == 0 for site in record.sites)


def test_a_replaced_mixture_is_seen_by_the_model_and_gone_afterwards():
    model, batch = mixture_model("mixtral"), TEXTS[1]
    block = blocks_of(model)[0]
    mlps, before = [read_mlp(model, site) for site in block], last_hidden_tokens(model, batch)
    assert block[0].mixture is not None
    with torch.no_grad(), replaced_mixture(model, block[0].mixture, mlps):
        torch.testing.assert_close(last_hidden_tokens(model, batch), before, rtol=1e-4, atol=1e-5)
    fewer = [mlpfusion.mlp.select_neurons(mlp, torch.arange(8)) for mlp in mlps]
    with torch.no_grad(), replaced_mixture(model, block[0].mixture, fewer):
        assert not torch.allclose(last_hidden_tokens(model, batch), before, atol=1e-3)
    assert torch.equal(last_hidden_tokens(model, batch), before)


def test_the_same_seed_gives_the_same_bytes():
    states = []
    for _ in range(2):
        model = mixture_model("qwen3_moe")
        mlpfusion.compress(model, mlpfusion.Fusion(), budget="80%", seed=3)
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_all_of_a_mixture_is_kept_at_100_percent():
    record = mlpfusion.compress(mixture_model("mixtral"), REFIT, budget="100%", calibration=TEXTS)
    assert [site.width for site in record.sites] == [WIDTH] * 3


@pytest.mark.parametrize("unit", ["", "flops"])
def test_the_least_that_the_error_names_can_be_reached(unit):
    with pytest.raises(InputError, match="12 MLPs and 8 neurons in each") as caught:
        mlpfusion.compress(mixture_model("mixtral"), mlpfusion.Fusion(), budget=f"1%{unit}")
    least = str(caught.value).split("at least ")[1].split("%")[0]
    record = mlpfusion.compress(mixture_model("mixtral"), mlpfusion.RandomNeurons(), budget=f"{least}%{unit}")
    assert [site.width for site in record.sites] == [8] * 3

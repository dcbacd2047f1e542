"""NIRVANA: the saliency against autograd on whole models, the threshold against a search, and what a model becomes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pico import WIDTH, others_slow, pico_inputs, pico_model, pico_outputs, sites_of
from random_mlp import make_mlp
from saliency import saliency_by_hand
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import mlpfusion
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.measure.comparison import compare_methods
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.nirvana import NIRVANA, saliency, widths_under_one_threshold
from mlpfusion.methods.run import compress_blocks
from mlpfusion.mlp import MLP, forward, neurons
from mlpfusion.sites.sites import read_mlp

# The sizes of six samples in two batches of three; those of the decoder are in the opposite order.
LENGTHS = (3, 7, 5, 1, 4, 6)
WITH_HEAD = {
    "llama": AutoModelForCausalLM, "llama-biased": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM,
    "opt": AutoModelForCausalLM, "bert": AutoModelForMaskedLM, "modernbert": AutoModelForMaskedLM,
    "bart": AutoModelForSeq2SeqLM, "t5-gated": AutoModelForSeq2SeqLM,
}  # fmt: skip


def padded_batches(name: str, *, left: bool = False) -> list[dict[str, Tensor]]:
    """Two batches of three samples with padding, in the decoder behind an encoder too, there always on the right.

    Left padding there gives NaN in T5 of transformers 5.14, whose first tokens then attend to nothing.
    """
    batches = []
    for part in (0, 1):
        found = [pico_inputs(name, 2 * part + seed) for seed in (0, 1)]
        batch = {key: torch.cat([one[key] for one in found])[:3] for key in found[0]}
        if "decoder_input_ids" in batch:
            batch["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
        for i in range(3):
            for prefix, lengths in (("", LENGTHS), ("decoder_", LENGTHS[::-1])):
                if f"{prefix}attention_mask" in batch:
                    mask = torch.arange(7) < lengths[3 * part + i]
                    batch[f"{prefix}attention_mask"][i] = mask.flip(0) if left and not prefix else mask
        batches.append(batch)
    return batches


def peak_gradients(model: Any, batches: list[dict[str, Tensor]], values: Any) -> Any:
    """A copy of `model` that holds in the place of every weight the gradient of f, by autograd on the whole model.

    f: the largest of each of `values(model, batch)` over the tokens of a sample, then the mean over values and samples.
    The division by the samples comes last: norms of Llama and T5 compute in fp32, and round another f otherwise.
    """
    means = []
    for batch in batches:
        mask = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
        for row, seen in zip(values(model, batch), mask, strict=True):
            means.append(row[seen].amax(0).mean())
    model.zero_grad()
    torch.stack(means).sum().backward()
    gradients = copy.deepcopy(model)
    for parameter, original in zip(gradients.parameters(), model.parameters(), strict=True):
        parameter.data = torch.zeros_like(original) if original.grad is None else original.grad / len(means)
    model.zero_grad()
    return gradients


def assert_saliency_is_that_of_autograd(model: Any, batches: list[dict[str, Tensor]], values: Any) -> None:
    traced = trace_calibration(model, sites_of(model), batches, 0, scalar="peak")
    gradients = peak_gradients(model, batches, values)
    for site in sites_of(model):
        expected = saliency_by_hand(read_mlp(model, site), read_mlp(gradients, site))
        assert expected.count_nonzero() > 0.3 * len(expected)  # ReLU has dead neurons
        found = saliency(read_mlp(model, site), traced.traces[site.path])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", others_slow(WITH_HEAD, quick=("llama", "bert", "t5-gated")))
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_the_saliency_of_a_language_model_is_that_of_autograd_with_padding(name, left):
    model = pico_model(name, WITH_HEAD[name], dtype=torch.float64)
    assert_saliency_is_that_of_autograd(
        model, padded_batches(name, left=left), lambda model, batch: model(**batch).logits
    )


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_without_a_language_head_f_is_of_the_last_hidden_states(name, auto_class):
    model = pico_model(name, auto_class, dtype=torch.float64)
    assert_saliency_is_that_of_autograd(
        model, padded_batches(name), lambda model, batch: model.base_model(**batch).last_hidden_state
    )


def trace_of(mlp: MLP, lengths: tuple[int, ...] = (5, 1, 9), seed: int = 1) -> BlockTrace:
    generator = torch.Generator().manual_seed(seed)
    inputs, cotangents = torch.randn(2, sum(lengths), mlp.hidden_size, generator=generator, dtype=torch.float64)
    return BlockTrace(inputs.to(mlp.up), cotangents.to(mlp.up), torch.tensor(lengths))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("layout", [{"biased": False}, {}, {"gated": True, "biased": False}, {"gated": True}], ids=str)
def test_the_saliency_of_a_block_is_that_of_autograd(layout, scaled):
    mlp = make_mlp(**layout)
    if scaled:
        first, second = torch.rand(2, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
        mlp = replace(mlp, input_scale=first, output_scale=second)
    trace = trace_of(mlp, (1500, 700))  # more tokens than are taken at once
    weights = replace(mlp, **{name: tensor.clone().requires_grad_() for name, tensor in mlp.tensors().items()})
    ((forward(weights, trace.inputs) * trace.cotangents).sum() / 2).backward()
    gradients = replace(mlp, **{name: tensor.grad for name, tensor in weights.tensors().items()})
    torch.testing.assert_close(saliency(mlp, trace), saliency_by_hand(mlp, gradients), rtol=1e-10, atol=0)


def test_gradients_of_samples_are_added_before_the_absolute_value():
    mlp = make_mlp(gated=True)
    trace = trace_of(mlp, (4,))
    both_ways = torch.cat([trace.cotangents, -trace.cotangents])
    opposite = BlockTrace(trace.inputs.repeat(2, 1), both_ways, torch.tensor([4, 4]))
    assert float(saliency(mlp, opposite).max()) < 1e-12 * float(saliency(mlp, trace).min())


def by_search(scores: list[Tensor], total: int, step: int) -> list[int]:
    """Lowers the threshold from score to score, as long as the rounded widths fit."""
    widths = [min(step, len(score)) for score in scores]
    for threshold in torch.cat(scores).sort(descending=True).values:
        above = [int((score >= threshold).sum()) for score in scores]
        rounded = [max(step, -(-count // step) * step) for count in above]
        lower = [min(width, len(score)) for width, score in zip(rounded, scores, strict=True)]
        if sum(lower) > total:
            break
        widths = lower
    return widths


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("sizes", [(24, 24, 24), (20, 9, 31), (8,)], ids=str)
def test_one_threshold_gives_the_widths_of_a_search(sizes, step):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(size, generator=generator).double() ** (1 + i) for i, size in enumerate(sizes)]
        least = step * len(sizes)
        for total in (least, (least + sum(sizes)) // 2, max(least, sum(sizes) - 1), sum(sizes)):
            widths = widths_under_one_threshold([one[None] for one in scores], total, [step] * len(sizes))
            assert widths == by_search(scores, total, step)
            assert total - step < sum(widths) <= total
            assert all(step <= width and (width % step == 0 or width == size) for width, size in zip(widths, sizes))  # noqa: B905
        whole = widths_under_one_threshold([one[None] for one in scores], sum(sizes), [step] * len(sizes))
        assert whole == list(sizes)


def test_of_equal_neurons_those_of_the_first_block_are_kept():
    assert widths_under_one_threshold([torch.ones(1, 6), torch.ones(1, 6)], 8, [2, 2]) == [6, 2]
    assert widths_under_one_threshold([torch.zeros(1, 6), torch.zeros(1, 6)], 7, [1, 1]) == [6, 1]
    assert widths_under_one_threshold([torch.ones(1, 4096)] * 3, 6000, [1] * 3) == [4096, 1903, 1]


def blocks_of(mlps: list[MLP], num_neurons: int, round_to: int = 1) -> list[Block]:
    return [
        Block(mlp, num_neurons, torch.Generator(), calibration=Calibration(trace_of(mlp, seed=i)), round_to=round_to)
        for i, mlp in enumerate(mlps)
    ]


def ranked(blocks: list[Block]) -> list[Narrowed]:
    return [outcome for outcome in compress_blocks(blocks, NIRVANA()) if isinstance(outcome, Narrowed)]


def test_the_neurons_of_all_blocks_are_ranked_together():
    small, large = make_mlp(20, gated=True), make_mlp(20, gated=True, seed=1)
    blocks = blocks_of([replace(small, down=0.1 * small.down), large], 8, round_to=2)
    outcomes = ranked(blocks)
    assert sum(outcome.mlp.num_neurons for outcome in outcomes) == 16
    assert outcomes[0].mlp.num_neurons < 6
    for block, outcome in zip(blocks, outcomes, strict=True):
        score = saliency(block.mlp, block.inputs.trace)
        best = score.topk(outcome.mlp.num_neurons).indices.sort().values
        assert torch.equal(neurons(outcome.mlp), neurons(block.mlp)[best])
        assert outcome.metrics == {"kept_score": pytest.approx(float(score[best].sum() / score.sum()))}


def test_a_block_without_gradients_keeps_one_step():
    blocks = blocks_of([make_mlp(), make_mlp(seed=1)], 6, round_to=3)
    trace = blocks[0].inputs.trace
    flat = Calibration(replace(trace, cotangents=torch.zeros_like(trace.cotangents)))
    first, second = ranked([replace(blocks[0], calibration=flat), blocks[1]])
    assert (first.mlp.num_neurons, second.mlp.num_neurons) == (3, 9)
    assert first.metrics == {"kept_score": 1.0}


@pytest.mark.parametrize("round_to", [0, 7])
def test_a_step_that_no_block_can_keep_is_refused(round_to):
    with pytest.raises(InputError, match=f"`round_to` must be between 1 and 6, got {round_to}"):
        ranked(blocks_of([make_mlp()], 6, round_to))


def test_a_saliency_that_overflows_is_refused():
    mlp = make_mlp(dtype=torch.float32)
    mlp.down[0, 3] = 3e38
    block = Block(mlp, 5, torch.Generator(), calibration=Calibration(trace_of(mlp)))
    with pytest.raises(InputError, match=r"the saliency \|w df/dw\| must be finite, got \d+ NaN or Inf"):
        ranked([block])


def compressed(model: Any, name: str, **options: Any) -> Any:
    return mlpfusion.compress(model, NIRVANA(), calibration=padded_batches(name), **options)


def llama() -> Any:
    return pico_model("llama", AutoModelForCausalLM)


def test_the_layers_of_a_model_share_the_neurons():
    model = llama()
    traced = trace_calibration(model, sites_of(model), padded_batches("llama"), 0, scalar="peak")
    scores = [saliency(read_mlp(model, site), traced.traces[site.path]) for site in sites_of(model)]
    record = compressed(model, "llama", keep_ratio=0.5, round_to=8)
    widths = [site.width for site in record.sites]
    assert widths == by_search(scores, 3 * 32, 8)
    assert sum(widths) == 3 * 32  # the step nearest to half of 56
    assert len(set(widths)) > 1
    assert [site.intermediate_size for site in sites_of(model)] == widths
    assert record.recipe["round_to"] == 8
    assert record.recipe["calibration"] == {"samples": 6, "tokens": sum(LENGTHS)}


def test_saved_and_loaded_it_is_the_same_and_folding_says_that_the_widths_differ(tmp_path):
    model = llama()
    widths = [site.width for site in compressed(model, "llama", keep_ratio=0.5).sites]
    expected = pico_outputs(model, "llama")
    model.save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert [entry["intermediate_size"] for entry in loaded.config.mlp_fusion["sites"].values()] == widths
    assert loaded.config.intermediate_size == WIDTH
    torch.testing.assert_close(pico_outputs(loaded, "llama"), expected)
    with pytest.warns(UserWarning, match="the layers have different widths, so the folded model still needs"):
        mlpfusion.fold(loaded)
    loaded.save_pretrained(tmp_path / "two")
    torch.testing.assert_close(pico_outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "two"), "llama"), expected)


@pytest.mark.parametrize("round_to", [1, 10])
def test_full_width_is_exact(round_to):
    model = llama()
    before = pico_outputs(model, "llama")
    record = compressed(model, "llama", keep_ratio=1.0, round_to=round_to)
    assert {site.width for site in record.sites} == {WIDTH}
    assert torch.equal(pico_outputs(model, "llama"), before)


def test_the_same_seed_gives_the_same_bytes_and_so_does_another():
    batches, models = padded_batches("llama"), [llama() for _ in range(4)]
    traced = trace_calibration(models[0], sites_of(models[0]), batches, 0, scalar="peak")
    for model, seed, calibration in zip(models, (0, 0, 1, 0), (batches, batches, batches, traced), strict=True):
        mlpfusion.compress(model, NIRVANA(), keep_ratio=0.4, seed=seed, calibration=calibration)
    for model in models[1:]:
        for name, tensor in models[0].state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])


def test_a_bf16_model_keeps_its_dtype_and_the_neurons_of_the_same_weights_in_fp32():
    half = pico_model("llama", AutoModelForCausalLM, dtype=torch.bfloat16)
    whole = copy.deepcopy(half).float()
    for model in (half, whole):
        compressed(model, "llama", keep_ratio=0.5)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert all(torch.equal(tensor.float(), whole.state_dict()[name]) for name, tensor in half.state_dict().items())


def test_encoder_and_decoder_of_one_layer_are_compared_together():
    model, batches = pico_model("bart"), padded_batches("bart")
    rows = compare_methods(
        model, [NIRVANA(), mlpfusion.FLAP()], batches, layers="1", keep_ratio=0.5, seeds=[0], calibration={0: batches}
    )
    assert [row.method for row in rows] == ["nirvana", "flap"] * 2
    widths = {name: [row.width for row in rows if row.method == name] for name in ("nirvana", "flap")}
    assert widths["flap"] == [28, 30]
    assert widths["nirvana"] != [28, 30]
    assert sum(widths["nirvana"]) == 58
    assert all(0 < row.error.output_error < 10 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, "`width` must be left out for nirvana, which chooses the width of every layer itself: give"),
        ({"budget": "90%"}, "`budget` must be left out for nirvana, which chooses the width of every layer itself"),
        ({"keep_ratio": 0.5, "sequential": True}, "`sequential` must be left out for nirvana, which ranks the neurons"),
        (
            {"keep_ratio": 0.5, "calibration": None},
            "`calibration` must be given for nirvana",
        ),
        ({"keep_ratio": 0.5, "round_to": 57}, "`round_to` must be at most 56"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(options, message, monkeypatch):
    model = llama()
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(InputError, match=message) as error:
        mlpfusion.compress(model, NIRVANA(), **{"calibration": padded_batches("llama"), **options})
    assert "\n" not in str(error.value)


def test_traces_of_another_f_are_refused():
    model, batches = llama(), padded_batches("llama")
    of_a_head = trace_calibration(model, sites_of(model), batches, 0)
    of_peaks = trace_calibration(model, sites_of(model), batches, 0, scalar="peak")
    for method, traced, message in (
        (NIRVANA(), of_a_head, "`calibration` must be traced with the `scalar` peak, got head"),
        (mlpfusion.NTKMatch(), of_peaks, "`calibration` must be traced with the `scalar` head, got peak"),
    ):
        with pytest.raises(InputError, match=message):
            mlpfusion.compress(model, method, keep_ratio=0.5, calibration=traced)
    unknown: Any = "loss"
    with pytest.raises(InputError, match="`scalar` must be one of head, peak, likelihood, got 'loss'"):
        trace_calibration(model, sites_of(model), batches, 0, scalar=unknown)

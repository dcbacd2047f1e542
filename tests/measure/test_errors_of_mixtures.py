"""A mixture is measured as one block: the output of its experts together, the sum of their kernels."""

import copy
import json
from typing import Any

import pytest
import torch
from command import call, refused
from mixtures import mixture_model, slow_but, switch_model
from tiny_task import tiny_tokenizer, write_files
from torch import Tensor

import mlpfusion
from mlpfusion.kernel import logit
from mlpfusion.measure.approximation import Probe, block_errors, references
from mlpfusion.measure.comparison import compare_methods
from mlpfusion.measure.outputs import outputs_on_inputs_of
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import mixture_output, watch_mixtures
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, by_block, find_sites, read_mlp

IDS = torch.randint(3, 67, (2, 4, 12), generator=torch.Generator().manual_seed(5))
TEXTS = [{"input_ids": IDS[0]}, {"input_ids": IDS[1], "attention_mask": (torch.arange(12) < 7).long().expand(4, 12)}]
FORMS = slow_but("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "llama4_text")


def float64_mixture(name: str) -> Any:
    model = mixture_model(name, torch.float64)
    model.config._experts_implementation = "eager"  # the kernels refuse float64
    return model


def experts_of(model: Any) -> list[Site]:
    return [site for site in find_sites(model, find_architecture(model)) if site.expert is not None]


def gradients(model: Any, path: str, batches: list[dict[str, Tensor]]) -> Tensor:
    """The gradient of the probe's scalar by all parameters of the mixture at `path`, of every sample alone."""
    head, rows = Probe().head(model), []
    assert head is not None
    parameters = list(base_model(model).get_submodule(path).parameters())
    for batch in batches:
        for number in range(len(batch["input_ids"])):
            one = {name: tensor[number : number + 1] for name, tensor in batch.items()}
            with torch.enable_grad():
                states = base_model(model)(**one)[0]
                value = logit(head.logits(states, one.get("attention_mask"))).sum()
                found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", FORMS)
def test_the_kernels_are_those_of_all_parameters_of_the_experts(name):
    model = float64_mixture(name)
    sites = experts_of(model)
    found = references(model, sites, TEXTS, Probe())
    assert set(found) == set(by_block(sites))
    for path, block in found.items():
        rows = gradients(model, path, TEXTS)
        torch.testing.assert_close(block.adam.total, rows @ rows.sign().T, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(block.plain.total, rows @ rows.T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_outputs_are_those_of_the_mixture_and_of_its_layer(name):
    model = mixture_model(name)
    sites, states = experts_of(model), list[Tensor]()
    with torch.no_grad(), hooks() as handles:
        found = references(model, sites, TEXTS[:1], Probe())
        for site, *_ in by_block(sites).values():
            layer = base_model(model).get_submodule(site.layer_path)
            handles.append(layer.register_forward_hook(lambda *call: states.append(call[2])))
        with watch_mixtures(base_model(model), found) as seen:
            model(input_ids=IDS[0])
    for (path, members), state in zip(by_block(sites).items(), states, strict=True):
        assert torch.equal(found[path].outputs.block, state.reshape(-1, 32))
        routing = seen[path].routing
        given = mixture_output([read_mlp(model, site) for site in members], routing)
        torch.testing.assert_close(
            found[path].outputs.mlp, given.reshape(routing.copies, -1, 32).sum(0), rtol=1e-4, atol=1e-5
        )


def test_a_copy_has_no_error_and_a_cut_one_has():
    model = mixture_model("mixtral")
    row, sites = find_architecture(model), experts_of(model)
    before = references(model, sites, TEXTS, Probe())
    small = copy.deepcopy(model)
    for error in block_errors(before, small, row, TEXTS, Probe()):
        assert (error.output_error, error.block_output_error, error.adam_kernel_error) == (0, 0, 0)
    mlpfusion.compress(small, mlpfusion.Fusion(), keep_ratio=0.5)
    outputs = outputs_on_inputs_of(model, small, sites, TEXTS)
    errors = block_errors(before, small, row, TEXTS, Probe(), outputs=outputs)
    assert [error.path for error in errors] == [f"layers.{number}.mlp.experts" for number in range(3)]
    assert all(0.05 < error.output_error < 2 for error in errors)
    assert all(0.05 < error.adam_kernel_error < 2 for error in errors)


def test_more_neurons_mean_smaller_errors():
    model, errors = mixture_model("qwen3_moe"), list[float]()
    for ratio in (0.25, 0.5, 0.9):
        (row,) = compare_methods(model, [mlpfusion.Fusion()], TEXTS, layers="1", keep_ratio=ratio, seeds=[0])
        assert row.error.path == "layers.1.mlp.experts"
        assert row.parameters < row.original_parameters
        errors.append(row.error.output_error)
    assert errors == sorted(errors, reverse=True)


def test_experts_that_are_modules_of_their_own_are_one_row():
    model = switch_model()
    batch = {"input_ids": IDS[0], "decoder_input_ids": IDS[0].flip(1)}
    (encoder, decoder) = compare_methods(model, [mlpfusion.Fusion()], [batch], layers="1", keep_ratio=0.5, seeds=[0])
    assert encoder.error.path.startswith("encoder")
    assert decoder.error.path.startswith("decoder")
    assert encoder.original_parameters == 4 * 2 * 32 * 56
    assert encoder.parameters == 4 * 2 * 32 * 28
    assert 0 < encoder.error.output_error < 2


@pytest.fixture
def checkpoint(tmp_path):
    source = tmp_path / "source"
    mixture_model("mixtral").save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    return source


def test_the_commands_measure_mixtures(checkpoint, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one two three\n" * 20)
    assert call("compress", checkpoint, tmp_path / "out", "--keep-ratio", "0.5").exit_code == 0
    measured = json.loads(call("measure", checkpoint, tmp_path / "out", "--data", texts, "--json").stdout)
    assert [block["path"] for block in measured["blocks"]] == [f"layers.{number}.mlp.experts" for number in range(3)]
    compared = call(
        "compare", checkpoint, "--data", texts, "--methods", "fusion,ntk-match:match=none", "--seeds", 0, "--json"
    )
    rows = json.loads(compared.stdout)["rows"]
    assert [row["error"]["path"] for row in rows] == ["layers.0.mlp.experts"] * 2
    assert "`--layers` must" in refused("compare", checkpoint, "--data", texts, "--methods", "fusion", "--layers", "9")


def test_dynamics_of_a_mixture(checkpoint, tmp_path):
    train, validation = write_files(tmp_path)
    columns = ["--text-column", "sentence", "--label-column", "label"]
    flags = ["--methods", "fusion", "--steps", 4, "--seeds", 0, "--batch-size", 4, "--device", "cpu"]
    data = ["--train", train, "--validation", validation, *columns]
    result = call("dynamics", checkpoint, "--out", tmp_path / "out", *data, *flags, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["label"]: row for row in json.loads(result.stdout)["rows"]}
    assert 0 < rows["fusion"]["distance"][-1] < 5

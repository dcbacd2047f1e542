"""Traces from whole models: the kernel of a site is that of torch.func on the real pipeline, in every architecture."""

import functools
from typing import Any

import pytest
import torch
from pico import HIDDEN, VOCAB, others_slow, pico_inputs, pico_model, sites_of
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from mlpfusion.compression.compress import compress
from mlpfusion.errors import InputError
from mlpfusion.kernel import SCALARS, RandomHead, adam_kernel, logit, loss, plain_kernel, prob0
from mlpfusion.kinds.narrow import read_block
from mlpfusion.methods.data_free.fusion import Fusion
from mlpfusion.sites.sites import Site, base_model
from mlpfusion.sites.traces import random_traces, recorded_traces

assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)
SEEDS = (0, 1, 2)


def make_model(name: str, auto_class: Any = AutoModel) -> Any:
    """In float64; T5 without the attention kernel that torch.func cannot take a position bias through."""
    model = pico_model(name, auto_class, dtype=torch.float64)
    if name.startswith("t5"):
        model.set_attn_implementation("eager")
    return model


def head_of(model: Any) -> RandomHead:
    assert model.config.hidden_size == HIDDEN
    return RandomHead.draw(HIDDEN, torch.Generator().manual_seed(0))


def inputs_of(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Five samples, all of one length."""
    parts = [pico_inputs(name, seed) for seed in SEEDS]
    batch = {key: torch.cat([part[key] for part in parts])[:5] for key in parts[0]}
    return {key: x.to(dtype) if x.is_floating_point() else x for key, x in batch.items()}


def split(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    num_samples = len(next(iter(batch.values())))
    return [{key: x[i : i + size] for key, x in batch.items()} for i in range(0, num_samples, size)]


def parameter_gradients(model: Any, site: Site, batch: dict[str, Tensor], scalar: Any) -> dict[str, Tensor]:
    """The gradients of f by the parameters of a site, by the names of `MLP`, by torch.func, one row a sample."""
    base = base_model(model)
    prefix = "" if base is model else f"{model.base_model_prefix}."
    paths = {part: site.module_path(part) for part in ("up", "gate", "down") if getattr(site.stack, part)}
    fused = paths.get("gate") == paths["up"]
    found: dict[str, list[Tensor]] = {}
    for sample in split(batch, 1):
        names = {
            f"{prefix}{path}.{name}": p.detach()
            for path in paths.values()
            for name, p in base.get_submodule(path).named_parameters()
        }

        def value(tensors: dict[str, Tensor], sample: dict[str, Tensor] = sample) -> Tensor:
            return scalar(lambda **inputs: torch.func.functional_call(model, tensors, (), inputs), sample)

        gradients = torch.func.grad(value)(names)
        for part, path in paths.items():
            for name, ending in (("weight", ""), ("bias", "_bias")):
                gradient = gradients.get(f"{prefix}{path}.{name}")
                if gradient is None:
                    continue
                if isinstance(base.get_submodule(path), Conv1D) and name == "weight":
                    gradient = gradient.T
                if fused and part in ("up", "gate"):
                    gradient = gradient.chunk(2)[part == "up"]
                found.setdefault(part + ending, []).append(gradient.flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize("name", others_slow())
def test_the_kernel_of_every_architecture_is_that_of_torch_func(name):
    model = make_model(name)
    head, batch = head_of(model), inputs_of(name)
    sites = sites_of(model)
    traces = recorded_traces(model, sites, split(batch, 2), logit, head).blocks

    def value(call: Any, sample: dict[str, Tensor]) -> Tensor:
        return head.logits(call(**sample)[0], None)[0, 0]

    for site in (sites[0], sites[-1]):
        mlp = read_block(model, site)
        adam, plain = adam_kernel(mlp, traces[site.path]), plain_kernel(mlp, traces[site.path])
        gradients = parameter_gradients(model, site, batch, value)
        assert set(gradients) == set(adam.blocks)
        for block, rows in gradients.items():
            assert_equal(adam.blocks[block], rows @ rows.sign().T)
            assert_equal(plain.blocks[block], rows @ rows.T)


@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "opt", "t5-gated"])
def test_every_scalar_of_a_classifier_is_that_of_torch_func(name, scalar):
    model = make_model(name, AutoModelForSequenceClassification)
    batch = inputs_of(name)
    labels = torch.tensor([0, 1, 1, 0, 1])
    site = sites_of(model)[1]
    traces = recorded_traces(model, [site], split(batch | {"labels": labels}, 3), SCALARS[scalar]).blocks
    wanted = {
        "logit": lambda logits, label: logits[0, 0],
        "prob0": lambda logits, label: logits.softmax(1)[0, 0],
        "loss": lambda logits, label: -logits.log_softmax(1)[0, label],
    }[scalar]

    def value(call: Any, sample: dict[str, Tensor]) -> Tensor:
        inputs = {key: x for key, x in sample.items() if key != "labels"}
        return wanted(call(**inputs).logits, int(sample["labels"][0]))

    found = adam_kernel(read_block(model, site), traces[site.path])
    for block, rows in parameter_gradients(model, site, batch | {"labels": labels}, value).items():
        assert_equal(found.blocks[block], rows @ rows.sign().T)


def test_fp32_agrees_with_float64_on_a_real_pipeline():
    kernels = []
    for dtype in (torch.float32, torch.float64):
        model = pico_model("llama", dtype=dtype)
        site = sites_of(model)[1]
        traces = recorded_traces(model, [site], [inputs_of("llama", dtype)], logit, head_of(model)).blocks
        kernels.append(adam_kernel(read_block(model, site), traces[site.path]).total)
    assert (kernels[0] - kernels[1]).norm() < 5e-3 * kernels[1].norm()


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert", "opt", "roberta", "bart", "t5"])
def test_padding_and_batching_change_nothing(name):
    model = pico_model(name, dtype=torch.float64)
    head, batch = head_of(model), inputs_of(name)
    lengths = (3, 7, 5, 1, 4)
    for i, length in enumerate(lengths):
        batch["attention_mask"][i, length:] = 0
        batch["input_ids"][i, length:] = 0
    if "decoder_input_ids" in batch:
        batch["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
        for i, length in enumerate(reversed(lengths)):
            batch["decoder_attention_mask"][i, length:] = 0
    alone = []
    for sample in split(batch, 1):
        decoder = sample.get("decoder_attention_mask", sample["attention_mask"]).sum()
        sizes = {key: decoder if key.startswith("decoder") else sample["attention_mask"].sum() for key in sample}
        alone.append({key: x[:, : int(sizes[key])] for key, x in sample.items()})
    sites = sites_of(model)
    wanted = recorded_traces(model, sites, alone, logit, head).blocks
    for size in (2, 5):
        found = recorded_traces(model, sites, split(batch, size), logit, head).blocks
        for site in sites:
            one, other = found[site.path], wanted[site.path]
            assert one.lengths.tolist() == other.lengths.tolist()
            assert_equal(one.inputs, other.inputs)
            assert_equal(one.cotangents, other.cotangents)


@pytest.mark.parametrize("trained", [True, False])
def test_the_model_is_left_as_it_was(trained):
    model = pico_model("bert").requires_grad_(trained)
    sites, batch = sites_of(model), inputs_of("bert")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traces = recorded_traces(model, sites, [batch], logit, head_of(model)).blocks
    assert all(float(trace.cotangents.norm()) > 0 for trace in traces.values())
    assert not any(trace.cotangents.requires_grad or trace.inputs.requires_grad for trace in traces.values())
    with pytest.raises(InputError, match="hand over a `head`"):
        recorded_traces(model, sites, [batch], logit)
    assert all(p.grad is None and p.requires_grad == trained for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_frozen_parameters_give_the_same_traces():
    model, batch = pico_model("gpt2"), inputs_of("gpt2")
    sites = sites_of(model)
    wanted = recorded_traces(model, sites, [batch], logit, head_of(model)).blocks
    with torch.no_grad():
        found = recorded_traces(model.requires_grad_(False), sites, [batch], logit, head_of(model)).blocks
    for path, trace in wanted.items():
        assert torch.equal(trace.cotangents, found[path].cotangents)


def test_random_traces_do_not_depend_on_the_batches_and_draw_standard_normals():
    model, batch = pico_model("llama"), inputs_of("llama")
    sites = sites_of(model)
    one, other = (random_traces(model, sites, split(batch, size), torch.Generator().manual_seed(0)) for size in (5, 2))
    task = recorded_traces(model, sites, [batch], logit, head_of(model)).blocks
    for path, trace in one.items():
        assert torch.equal(trace.cotangents, other[path].cotangents)
        torch.testing.assert_close(trace.inputs, other[path].inputs)
        torch.testing.assert_close(trace.inputs, task[path].inputs)
        assert 0.9 < float(trace.cotangents.std()) < 1.1


def test_the_block_of_a_compressed_model_has_its_scale_and_the_kernel_of_the_model():
    model = pico_model("bert", dtype=torch.float64)
    compress(model, Fusion(), layers="0", keep_ratio=0.25)
    site, batch, head = sites_of(model)[0], inputs_of("bert"), head_of(model)
    mlp = read_block(model, site)
    assert mlp.output_scale is not None
    assert int(mlp.output_scale.sum()) == 56
    found = adam_kernel(mlp, recorded_traces(model, [site], [batch], logit, head).blocks[site.path])

    def value(call: Any, sample: dict[str, Tensor]) -> Tensor:
        return head.logits(call(**sample)[0], None)[0, 0]

    for block, rows in parameter_gradients(model, site, batch, value).items():
        assert_equal(found.blocks[block], rows @ rows.sign().T)


def test_the_head_is_a_function_of_its_generator_and_leaves_padding_out():
    first, second = (RandomHead.draw(8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    states = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = first.logits(states, mask)
    torch.testing.assert_close(found[0], first.logits(states[:1, :2], None)[0])
    torch.testing.assert_close(found[1], first.logits(states[1:], None)[0])


@pytest.mark.parametrize(("pooling", "tokens"), [("first", (0, 2, 0)), ("last", (1, 3, 3))])
def test_a_head_on_one_token_reads_the_first_or_the_last_that_is_seen_whatever_side_is_padded(pooling, tokens):
    head = RandomHead.draw(8, torch.Generator().manual_seed(3), 3, pooling)
    assert torch.equal(head.weight, RandomHead.draw(8, torch.Generator().manual_seed(3), 3).weight)
    states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    found = head.logits(states, mask)
    read = torch.stack([states[sample, token] for sample, token in enumerate(tokens)])
    torch.testing.assert_close(found, read @ head.weight.T)
    torch.testing.assert_close(head.logits(states[2:], None), found[2:])
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert {tuple(index) for index in gradient.norm(dim=2).nonzero().tolist()} == set(enumerate(tokens))


def test_a_head_has_no_other_pooling():
    with pytest.raises(ValueError, match="`pooling` must be one of mean, first, last, got 'cls'"):
        RandomHead.draw(8, torch.Generator(), pooling="cls")


def test_bad_input_is_refused_in_one_line():
    model, batch = pico_model("bert"), inputs_of("bert")
    sites, head = sites_of(model), head_of(model)
    with pytest.raises(InputError, match="`batches` must hold at least one batch"):
        recorded_traces(model, sites, [], logit, head)
    with pytest.raises(InputError, match="`batches` must hold at least one batch"):
        random_traces(model, sites, [], torch.Generator())
    with pytest.raises(InputError, match="`labels` must be in every batch"):
        recorded_traces(model, sites, [batch], loss, head)
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        recorded_traces(model, sites, [batch], prob0, RandomHead(head.weight[:1]))
    with pytest.raises(InputError, match="`head` must have hidden size 32, got 8"):
        recorded_traces(model, sites, [batch], logit, RandomHead.draw(8, torch.Generator()))
    with pytest.raises(InputError, match=f"shape \\(samples, classes\\), got shape \\(5, 7, {VOCAB}\\)"):
        recorded_traces(pico_model("gpt2", AutoModelForCausalLM), sites_of(pico_model("gpt2")), [batch], logit)
    model.train()
    for call in (
        lambda: recorded_traces(model, sites, [batch], logit, head).blocks,
        lambda: random_traces(model, sites, [batch], torch.Generator()),
    ):
        with pytest.raises(InputError, match="`model` must be in eval mode"):
            call()

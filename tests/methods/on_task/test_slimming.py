"""Slimming: the coefficients have the gradients they should, and the neurons of the largest ones stay as they were."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from task_job import HALF, make_job

from mlpfusion.errors import InputError
from mlpfusion.heads.sites import find_heads
from mlpfusion.loop.steps import backward, training_batches
from mlpfusion.methods.on_task import slimming
from mlpfusion.methods.on_task.job import TaskJob
from mlpfusion.methods.on_task.slimming import Inputs, Slimming, head_coefficients, train_coefficients
from mlpfusion.mlp import clone
from mlpfusion.options.training import Finetune
from mlpfusion.sites.sites import base_model, linear_maps, read_mlp

CONFIG = Slimming(learning_rate=1e-3, batch_size=16)
ONE_STEP = Slimming(learning_rate=1e-3, batch_size=len(HALF.train))  # an epoch of one step


def neurons_of(job: TaskJob) -> list[Inputs]:
    paths = [next(path for path, names in linear_maps(site).items() if "down" in names) for site in job.sites]
    return [Inputs(path, 1, site.intermediate_size) for path, site in zip(paths, job.sites, strict=True)]


def heads_of(job: TaskJob) -> list[Inputs]:
    return [Inputs(site.output, site.shared * site.head_size, site.num_heads) for site in find_heads(job.model)]


def without_dropout(job: TaskJob) -> TaskJob:
    for module in job.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return job


def first_gradients(name: str, inputs: list[Inputs]) -> dict[str, torch.Tensor]:
    """dL/dc at c = 1 of every coefficient, for the first step of `ONE_STEP`: w dL/dw summed over what it multiplies."""
    job = make_job(name, dtype=torch.float64)
    (batch,) = training_batches(HALF.train, HALF.collate, steps=1, batch_size=ONE_STEP.batch_size, seed=job.seed)
    backward(job.model, batch, 1, 1.0)
    found = {}
    for one in inputs:
        weight = base_model(job.model).get_submodule(one.path).get_parameter("weight")
        assert weight.grad is not None
        effects = (weight * weight.grad).detach()
        found[one.path] = (effects.sum(1) if name == "gpt2" else effects.sum(0)).view(one.count, one.size).sum(1)
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
@pytest.mark.parametrize("of", [neurons_of, heads_of])
def test_the_first_step_of_adam_goes_against_the_gradient_and_the_penalty(name, of):
    job = without_dropout(make_job(name, dtype=torch.float64))
    inputs = of(job)
    gradients = first_gradients(name, inputs)
    penalty = float(torch.cat(list(gradients.values())).abs().median()) / 2
    found = train_coefficients(job, replace(ONE_STEP, penalty=penalty), inputs)
    assert found.keys() == gradients.keys()
    for path, one in found.items():
        whole = gradients[path] + penalty
        step = ONE_STEP.learning_rate * whole / (whole.abs() + Finetune().adam_epsilon)
        torch.testing.assert_close(1 - one.double(), step, rtol=0.01, atol=1e-6)


def test_a_neuron_that_puts_out_nothing_moves_by_the_penalty_alone():
    for penalty, expected in ((0.0, 1.0), (0.1, 1 - ONE_STEP.learning_rate)):
        job = make_job()
        with torch.no_grad():
            for site in job.sites:
                read_mlp(job.model, site).down[:, 3] = 0
        found = train_coefficients(job, replace(ONE_STEP, penalty=penalty), neurons_of(job))
        assert [float(one[3]) for one in found.values()] == [pytest.approx(expected, rel=1e-6)] * 2


def test_the_largest_coefficients_of_all_blocks_stay_with_the_weights_from_before():
    job, twin = make_job(), make_job()
    before = [clone(read_mlp(job.model, site)) for site in job.sites]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outcomes = slimming.compress(job, CONFIG)
        torch.manual_seed(0)
        sizes = list(train_coefficients(twin, CONFIG, neurons_of(twin)).values())
    kept = [
        torch.tensor([bool((row == outcome.mlp.up).all(1).any()) for row in mlp.up])
        for mlp, outcome in zip(before, outcomes, strict=True)
    ]
    assert sum(int(one.sum()) for one in kept) == sum(job.widths)
    is_kept, every = torch.cat(kept), torch.cat(sizes)
    assert every[is_kept].min() >= every[~is_kept].max()
    for mlp, outcome, one in zip(before, outcomes, kept, strict=True):
        assert torch.equal(outcome.mlp.up, mlp.up[one])
        assert torch.equal(outcome.mlp.down, mlp.down[:, one])
    trained = chain.from_iterable(read_mlp(job.model, site).tensors().values() for site in job.sites)
    old = chain.from_iterable(mlp.tensors().values() for mlp in before)
    assert not any(torch.equal(one, other) for one, other in zip(trained, old, strict=True))


def test_widths_are_multiples_of_the_step():
    widths = [outcome.mlp.num_neurons for outcome in slimming.compress(replace(make_job(), round_to=8), CONFIG)]
    assert all(width % 8 == 0 for width in widths)
    assert sum(make_job().widths) - 8 < sum(widths) <= sum(make_job().widths)


@pytest.mark.parametrize(("name", "number"), [("bert", 4), ("llama", 2)])  # llama: two keys with two queries each
def test_heads_have_a_coefficient_each(name, number):
    found = head_coefficients(make_job(name), CONFIG)
    assert len(found) == 3
    assert all(one.shape == (number,) and (one != 1).all() for one in found.values())


def test_heads_that_cannot_be_removed_are_refused():
    with pytest.raises(InputError, match="t5"):
        head_coefficients(make_job("t5"), CONFIG)


def test_a_penalty_below_zero_is_refused():
    with pytest.raises(ValueError, match="`penalty` must be at least 0, got -1.0"):
        Slimming(penalty=-1.0)

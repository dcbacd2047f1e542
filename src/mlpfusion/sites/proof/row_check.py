"""Whether a row of the table, or one of the user's own, describes a model: tried out on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import REFUSALS, InputError, one_line, shown
from mlpfusion.mlp import forward
from mlpfusion.sites.coverage import unnamed_mixtures, visited_share
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.experts import check_kernel
from mlpfusion.sites.mixtures.routing import SeenMixture, mixture_output, watch_mixtures
from mlpfusion.sites.parts import owners_of
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs
from mlpfusion.sites.recording import eval_mode, hooks
from mlpfusion.sites.sites import (
    Site,
    base_model,
    by_block,
    by_holder,
    check_readable,
    find_sites,
    read_mlp,
    site_module,
)
from mlpfusion.sites.table import Architecture, check_known_row, is_known_row
from mlpfusion.sites.traces import Seen, watch_sites
from mlpfusion.sites.width_keys import check_width_keys

Held = Callable[[nn.Module], AbstractContextManager[Any]]


def check_row(model: PreTrainedModel, sites: Sequence[Site], held: Held = nullcontext) -> None:
    """Raises `InputError` if a site, as a row describes it, computes something else than the model does there.

    Shapes cannot tell gate from up, a run can: one on a few token ids, or on what else the model takes. A model that
    does not run on made-up inputs is refused too (`made_up_runs`). `held` is a context in which a module has its
    weights, where the model has them only while it runs.
    """
    blocks = by_block(sites)
    for run in made_up_runs(model, sites):
        for path, members in blocks.items():
            if path in run.seen:
                _check_site(model, members[0], run)
            elif path in run.mixtures:
                with held(base_model(model).get_submodule(path)):
                    _check_mixture(model, members, run.mixtures[path])


@dataclass(frozen=True)
class MadeUpRun:
    """What the sites that ran took in and gave, by path, and how often their activations ran outside them.

    `mixtures` are by the path of the module of all experts.
    """

    seen: dict[str, Seen]
    activated: dict[nn.Module, int]
    mixtures: dict[str, SeenMixture]


def made_up_runs(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[MadeUpRun]:
    """Runs `model` on made-up inputs until every site has run, and yields every run.

    A part of the model that this does not reach, as the tower of a model of texts and images, runs by itself. Raises
    `InputError` if the model runs on none of the inputs, and if a site is left.
    """
    left, has_run, refusals = set(by_block(sites)), False, list[str]()
    base = base_model(model)
    parts = dict.fromkeys([base, model, *(one for site in sites for one in owners_of(base, site.path))])
    for part in parts:  # outer ones before those inside them
        for inputs in made_up_inputs(part):
            try:
                run = _watched_run(model, sites, part, inputs)
            except REFUSALS as error:
                refusals += [one_line(error)] if part is base else []
                continue
            has_run = True
            reached = left & {*run.seen, *run.mixtures}
            if reached:
                left -= reached
                yield run
            if not left:  # no more inputs: some models keep a state, Swin the size of its windows
                return
    if not has_run:
        raise InputError(
            f"`model` must run on made-up inputs, so that its row can be checked, a {type(model).__name__} does not: "
            f"{refusals[0] if refusals else 'it takes none that can be made up'}"
        )
    first = next(path for path in by_block(sites) if path in left)
    raise InputError(f"the row must name modules that the model runs, it does not run {first}")


@torch.no_grad()
def _watched_run(
    model: PreTrainedModel, sites: Sequence[Site], part: PreTrainedModel, inputs: dict[str, Tensor]
) -> MadeUpRun:
    mixtures = dict.fromkeys(site.mixture for site in sites if site.mixture is not None)
    sites = [site for site in sites if site.mixture is None]
    activated = {site_module(model, site, "activation"): 0 for site in sites}

    def count(module: nn.Module, _args: object) -> None:
        activated[module] += 1

    with (
        eval_mode(model),
        watch_sites(model, sites) as seen,
        watch_mixtures(base_model(model), mixtures) as mixed,
        hooks() as handles,
    ):
        handles += [module.register_forward_pre_hook(count) for module in activated]
        part(**inputs)
    for site, one in zip(sites, seen, strict=True):
        activated[site_module(model, site, "activation")] -= len(one.inputs)
    by_path = {site.path: one for site, one in zip(sites, seen, strict=True)}
    ran = {path: one for path, one in by_path.items() if one.inputs and one.outputs and one.outputs[0].numel()}
    return MadeUpRun(ran, activated, mixed)


@torch.no_grad()
def _check_site(model: PreTrainedModel, site: Site, run: MadeUpRun) -> None:
    if run.activated[site_module(model, site, "activation")]:
        name = site.module_path("activation")
        raise InputError(f"`activation` of a row must serve MLPs alone, {name} runs elsewhere too")
    seen = run.seen[site.path]
    inputs, outputs = seen.inputs[0], seen.outputs[0]
    if num_not_finite(inputs) or num_not_finite(outputs):
        raise InputError(
            f"`model` must give finite numbers for made-up inputs, so that the row can be checked, "
            f"got NaN or Inf at {site.path}"
        )
    if not _is_alike(forward(read_mlp(model, site), inputs), outputs):
        raise InputError(
            f"the row must describe what the model computes, it does not at {site.path}: is `gate` right, or is there "
            "more between `up` and `down` than the activation?"
        )


@torch.no_grad()
def _check_mixture(model: PreTrainedModel, sites: Sequence[Site], seen: SeenMixture) -> None:
    """Raises `InputError` unless the experts at `sites`, as a row describes them, give together what the model does."""
    experts = [read_mlp(model, site) for site in sites]
    if not _is_alike(mixture_output(experts, seen.routing), seen.output):
        raise InputError(
            f"the row must describe what the experts compute, it does not at {sites[0].mixture}: is there more in them "
            "than two maps and an activation, or does the router's weight not multiply what they give?"
        )


def _is_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs are the same up to the rounding of half precision."""
    near = 1e-2 * float(expected.abs().max())
    return found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=near)


def checked_sites(
    model: PreTrainedModel, architecture: Architecture | None, stacks: str | None = None, held: Held = nullcontext
) -> tuple[Architecture, list[Site]]:
    """The row of the chosen stacks of the model and their sites; one that the table has not is tried out on the model.

    `held` is that of `check_row`.

    Raises `InputError` as `find_architecture`, `find_sites`, `check_readable`, `check_kernel`, `check_row` and
    `check_width_keys` do, and for a row of one's own where the table has another.
    """
    if not (architecture is None or isinstance(architecture, Architecture)):
        cure = "`mlpfusion.sites.table.read_architecture` reads it from a file"
        raise InputError(f"`architecture` must be an `Architecture`, got {shown(architecture)}: {cure}")
    row = find_architecture(model, stacks, architecture)
    sites = find_sites(model, row)
    check_readable(model, sites)
    for path, (first, *_) in by_holder(sites).items():
        if first.expert is not None:
            check_kernel(path, base_model(model).get_submodule(path))
    if not is_known_row(model.config.model_type, row):
        check_row(model, sites, held)
        check_known_row(model.config.model_type, row)
        check_width_keys(model.config, sites)
    return row, sites


def check_visited(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` if parameters of the layers of `sites` look like MLP parameters but belong to no site."""
    share, unnamed = visited_share(model, sites), list(unnamed_mixtures(model))
    if unnamed:
        raise InputError(
            f"`model` must keep its experts in a way that a row can name, {len(unnamed)} mixtures from {unnamed[0]} on "
            f"are kept in another: the row covers {100 * share:.1f} % of its MLP parameters"
        )
    if share < 1:
        raise InputError(f"the row of the architecture must cover 100 % of the MLP parameters, got {100 * share:.1f} %")

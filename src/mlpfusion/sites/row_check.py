"""Whether a row of the table, or one of the user's own, describes a model: tried out on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.mlp import forward
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.made_up_inputs import made_up_inputs
from mlpfusion.sites.parts import owners_of
from mlpfusion.sites.recording import eval_mode, hooks
from mlpfusion.sites.sites import (
    Site,
    base_model,
    check_readable,
    expert_parameters,
    find_sites,
    read_mlp,
    site_module,
    visited_share,
)
from mlpfusion.sites.table import Architecture, check_known_row, is_known_row
from mlpfusion.sites.traces import Seen, watch_sites
from mlpfusion.sites.width_keys import check_width_keys

# What a model may raise for inputs that it does not take.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_row(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` if a site, as a row describes it, computes something else than the model does there.

    Shapes cannot tell gate from up, a run can: one on a few token ids, or on what else the model takes. A model that
    does not run on made-up inputs is refused too (`made_up_runs`).
    """
    for run in made_up_runs(model, sites):
        for site in sites:
            if site.path in run.seen:
                _check_site(model, site, run)


@dataclass(frozen=True)
class MadeUpRun:
    """What the sites that ran took in and gave, by path, and how often their activations ran outside them."""

    seen: dict[str, Seen]
    activated: dict[nn.Module, int]


def made_up_runs(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[MadeUpRun]:
    """Runs `model` on made-up inputs until every site has run, and yields every run.

    A part of the model that this does not reach, as the tower of a model of texts and images, runs by itself. Raises
    `InputError` if the model runs on none of the inputs, and if a site is left.
    """
    left, has_run, refusal = {site.path for site in sites}, False, "it takes none that can be made up"
    base = base_model(model)
    parts = dict.fromkeys([base, model, *(one for site in sites for one in owners_of(base, site.path))])
    for part in parts:  # outer ones before those inside them
        for inputs in made_up_inputs(part):
            try:
                run = _watched_run(model, sites, part, inputs)
            except _REFUSALS as error:
                refusal = one_line(error) if part is base else refusal
                continue
            has_run = True
            if left & set(run.seen):
                left -= set(run.seen)
                yield run
            if not left:  # no more inputs: some models keep a state, Swin the size of its windows
                return
    if not has_run:
        raise InputError(
            f"`model` must run on made-up inputs, so that its row can be checked, a {type(model).__name__} does not: "
            f"{refusal}"
        )
    first = next(site.path for site in sites if site.path in left)
    raise InputError(f"the row must name modules that the model runs, it does not run {first}")


@torch.no_grad()
def _watched_run(
    model: PreTrainedModel, sites: Sequence[Site], part: PreTrainedModel, inputs: dict[str, Tensor]
) -> MadeUpRun:
    activated = {site_module(model, site, "activation"): 0 for site in sites}

    def count(module: nn.Module, _args: object) -> None:
        activated[module] += 1

    with eval_mode(model), watch_sites(model, sites) as seen, hooks() as handles:
        handles += [module.register_forward_pre_hook(count) for module in activated]
        part(**inputs)
    for site, one in zip(sites, seen, strict=True):
        activated[site_module(model, site, "activation")] -= len(one.inputs)
    by_path = {site.path: one for site, one in zip(sites, seen, strict=True)}
    ran = {path: one for path, one in by_path.items() if one.inputs and one.outputs and one.outputs[0].numel()}
    return MadeUpRun(ran, activated)


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
    found = forward(read_mlp(model, site), inputs).float()
    is_alike = found.shape == outputs.shape and torch.allclose(
        found, outputs.float(), rtol=1e-2, atol=1e-2 * float(outputs.abs().max())
    )
    if not is_alike:
        raise InputError(
            f"the row must describe what the model computes, it does not at {site.path}: is `gate` right, or is there "
            "more between `up` and `down` than the activation?"
        )


def checked_sites(
    model: PreTrainedModel, architecture: Architecture | None, stacks: str | None = None
) -> tuple[Architecture, list[Site]]:
    """The row of the chosen stacks of the model and their sites; one that the table has not is tried out on the model.

    Raises `InputError` as `find_architecture`, `find_sites`, `check_readable`, `check_row` and `check_width_keys` do,
    and for a row of one's own where the table has another.
    """
    if not (architecture is None or isinstance(architecture, Architecture)):
        cure = "`mlpfusion.sites.table.read_architecture` reads it from a file"
        raise InputError(f"`architecture` must be an `Architecture`, got {shown(architecture)}: {cure}")
    row = find_architecture(model, stacks, architecture)
    sites = find_sites(model, row)
    check_readable(model, sites)
    if not is_known_row(model.config.model_type, row):
        check_row(model, sites)
        check_known_row(model.config.model_type, row)
        check_width_keys(model.config, sites)
    return row, sites


def check_visited(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` if parameters of the layers of `sites` look like MLP parameters but belong to no site."""
    share = visited_share(model, sites)
    if expert_parameters(base_model(model)):
        raise InputError(
            "`model` must have no mixture of experts, which is not supported yet, got one: "
            f"the row covers {100 * share:.1f} % of its MLP parameters"
        )
    if share < 1:
        raise InputError(f"the row of the architecture must cover 100 % of the MLP parameters, got {100 * share:.1f} %")

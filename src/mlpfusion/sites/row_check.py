"""Whether a row of the table, or one of the user's own, describes a model: tried out on it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.mlp import forward
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.made_up_inputs import made_up_inputs
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


@torch.no_grad()
def check_row(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` if a site, as a row describes it, computes something else than the model does there.

    Shapes cannot tell gate from up, a run can: one forward pass on a few token ids, or on what else the model takes. A
    model that does not run on that is refused too.
    """
    seen, activated = _watched_run(model, sites)
    for site, one in zip(sites, seen, strict=True):
        activated[site_module(model, site, "activation")] -= len(one.inputs)
    for site, one in zip(sites, seen, strict=True):
        if not one.inputs or not one.outputs:
            raise InputError(f"the row must name modules that the model runs, it does not run {site.path}")
        if activated[site_module(model, site, "activation")]:
            name = site.module_path("activation")
            raise InputError(f"`activation` of a row must serve MLPs alone, {name} runs elsewhere too")
        inputs, outputs = one.inputs[0], one.outputs[0]
        if num_not_finite(inputs) or num_not_finite(outputs):
            raise InputError(
                f"`model` must give finite numbers for made-up inputs, so that the row can be checked, "
                f"got NaN or Inf at {site.path}"
            )
        found = forward(read_mlp(model, site), inputs)
        if not torch.allclose(found.float(), outputs.float(), rtol=1e-2, atol=1e-2 * float(outputs.abs().max())):
            raise InputError(
                f"the row must describe what the model computes, it does not at {site.path}: is `gate` right?"
            )


def _watched_run(model: PreTrainedModel, sites: Sequence[Site]) -> tuple[list[Seen], dict[nn.Module, int]]:
    """What enters and leaves the sites in a forward pass on made-up inputs, and how often their activations run.

    Raises `InputError` if the model runs on none of the inputs.
    """
    base, refusal = base_model(model), "it takes none that can be made up"
    for inputs in made_up_inputs(base):
        ran = {site_module(model, site, "activation"): 0 for site in sites}

        def count(module: nn.Module, _args: object, ran: dict[nn.Module, int] = ran) -> None:
            ran[module] += 1

        try:
            with eval_mode(model), watch_sites(model, sites) as seen, hooks() as handles:
                handles += [module.register_forward_pre_hook(count) for module in ran]
                base(**inputs)
            return seen, ran
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            refusal = one_line(error)
    raise InputError(
        f"`model` must run on made-up inputs, so that its row can be checked, a {type(model).__name__} does not: "
        f"{refusal}"
    )


def checked_sites(model: PreTrainedModel, architecture: Architecture | None) -> tuple[Architecture, list[Site]]:
    """The row of the model and its sites; one that the table does not have is tried out on the model.

    Raises `InputError` as `find_architecture`, `find_sites`, `check_readable`, `check_row` and `check_width_keys` do,
    and for a row of one's own where the table has another.
    """
    if not (architecture is None or isinstance(architecture, Architecture)):
        cure = "`mlpfusion.sites.table.read_architecture` reads it from a file"
        raise InputError(f"`architecture` must be an `Architecture`, got {shown(architecture)}: {cure}")
    row = architecture or find_architecture(model)
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

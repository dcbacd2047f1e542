"""Whether a row of the table, or one of the user's own, describes a model: tried out on it."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.checks import num_not_finite
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.mlp import forward
from mlpfusion.sites.recording import eval_mode
from mlpfusion.sites.sites import (
    Site,
    base_model,
    check_readable,
    expert_parameters,
    find_sites,
    read_mlp,
    visited_share,
)
from mlpfusion.sites.table import Architecture, check_known_row, find_architecture, is_known_row
from mlpfusion.sites.traces import watch_sites
from mlpfusion.sites.width_keys import check_width_keys


@torch.no_grad()
def check_row(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Raises `InputError` if a site, as a row describes it, computes something else than the model does there.

    Shapes cannot tell gate from up, a run can: one forward pass on transformers' dummy inputs. A model that takes no
    token ids, or does not run on these, is not run, and a warning says so.
    """
    if not sites:
        return
    base = base_model(model)
    if base.main_input_name != "input_ids":
        warnings.warn(f"the row was checked by shapes only, {type(model).__name__} takes no token ids", stacklevel=3)
        return
    with eval_mode(model), watch_sites(model, sites) as seen:
        try:
            base(**_dummy_inputs(base))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(model).__name__} does not run on a few token ids: {one_line(error)}"
            warnings.warn(f"the row was checked by shapes only, {reason}", stacklevel=3)
            return
    for site, one in zip(sites, seen, strict=True):
        if not one.inputs or not one.outputs:
            raise InputError(f"the row must name modules that the model runs, it does not run {site.path}")
        inputs, outputs = one.inputs[0], one.outputs[0]
        if num_not_finite(inputs) or num_not_finite(outputs):
            raise InputError(
                f"`model` must give finite numbers for a few token ids, so that the row can be checked, "
                f"got NaN or Inf at {site.path}"
            )
        found = forward(read_mlp(model, site), inputs)
        if not torch.allclose(found.float(), outputs.float(), rtol=1e-2, atol=1e-2 * float(outputs.abs().max())):
            raise InputError(
                f"the row must describe what the model computes, it does not at {site.path}: is `gate` right?"
            )


def _dummy_inputs(base: PreTrainedModel) -> dict[str, Tensor]:
    """Transformers' dummy inputs, in the vocabulary of the model, for the decoder too where there is one."""
    given = {name: value for name, value in base.dummy_inputs.items() if isinstance(value, Tensor)}
    inputs = {name: value.to(base.device) for name, value in given.items()}
    embeddings, ids = base.get_input_embeddings(), inputs["input_ids"]
    ids = ids % embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else ids
    decoder = {"decoder_input_ids": ids} if base.config.is_encoder_decoder else {}
    return inputs | {"input_ids": ids} | decoder


def checked_sites(model: PreTrainedModel, architecture: Architecture | None) -> tuple[Architecture, list[Site]]:
    """The row of the model and its sites; a row of one's own is tried out on the model.

    Raises `InputError` as `find_architecture`, `find_sites`, `check_readable`, `check_row` and `check_width_keys` do,
    and for a row of one's own where the table has another.
    """
    if not (architecture is None or isinstance(architecture, Architecture)):
        cure = "`mlpfusion.sites.table.read_architecture` reads it from a file"
        raise InputError(f"`architecture` must be an `Architecture`, got {shown(architecture)}: {cure}")
    row = architecture or find_architecture(model.config.model_type)
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
    if any(expert_parameters(base_model(model).get_submodule(site.path)) for site in sites):
        raise InputError(
            "the chosen layers must have no mixture of experts, which is not supported yet, "
            f"got one: the row covers {100 * share:.1f} % of the MLP parameters there"
        )
    if share < 1:
        raise InputError(f"the row of the architecture must cover 100 % of the MLP parameters, got {100 * share:.1f} %")

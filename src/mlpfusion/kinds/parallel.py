"""Narrow blocks under tensor parallelism: each process applies the scales of the neurons that it computes."""

from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kinds.key import FusionKey, MaskedSite, NarrowSite
from mlpfusion.modules.scaled import SCALED_ACTIVATIONS
from mlpfusion.sites.sites import Site, base_model, linear_shape


def check_parallel(model: PreTrainedModel, key: FusionKey) -> None:
    """Raises `InputError` if a tensor parallel plan is to spread a model with blocks that no plan can cut."""
    config = getattr(model.config, "distributed_config", None)  # transformers puts it there before the model is built
    if (getattr(config, "tp_size", None) or 1) > 1:
        bad = [path for path, site in key.sites.items() if not isinstance(site, NarrowSite | MaskedSite)]
        if bad:
            raise InputError(f"`tp_plan` must be left out for low-rank and routed blocks, got one at {bad[0]}")


def share_scales(model: PreTrainedModel, site: Site) -> None:
    """Makes the activation at `site` use the scales of the neurons of this process. The buffers stay whole.

    Changes the activation. Raises `InputError` where it cannot be told which neurons these are.
    """
    base = base_model(model)
    activation = base.get_submodule(site.module_path("activation"))
    if isinstance(activation, SCALED_ACTIVATIONS):
        part = "up" if site.stack.gate is None else "gate"
        activation.local = _local_rows(base.get_submodule(site.module_path(part)), site)


def _local_rows(linear: nn.Module, site: Site) -> slice | None:
    """The rows of a linear map that this process has, None if it has all."""
    weight, rows = linear.get_parameter("weight"), linear_shape(linear)[0]
    if not isinstance(weight, DTensor):
        if weight.ndim == 2 and weight.shape[0] == rows:
            return None
        raise InputError(f"`tp_plan` must be left out, the shards at {site.path} are not known; call `fold` first")
    mesh, names = weight.device_mesh, weight.device_mesh.mesh_dim_names or ()
    if "tp" not in names:
        return None
    placement = weight.placements[names.index("tp")]
    if not (isinstance(placement, Shard) and placement.dim in (0, -2)):
        return None
    if site.stack.gate == site.stack.up:
        raise InputError(f"`tp_plan` must leave out {site.path}, which holds gate and up in one map; call `fold` first")
    size = -(-rows // mesh["tp"].size())  # a shard is as long as those of torch.chunk: the last may be shorter
    start = min(rows, size * mesh["tp"].get_local_rank())
    return slice(start, min(rows, start + size))

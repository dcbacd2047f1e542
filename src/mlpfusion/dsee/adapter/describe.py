"""What an adapter of DSEE trains, read from the model."""

import torch
from torch import nn

from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.dsee.omega import in_largest
from mlpfusion.dsee.record import DseeRecord
from mlpfusion.dsee.update import part_rows


def describe(model: nn.Module, adapter_name: str = "default") -> DseeRecord:
    """Returns the record of an unmerged adapter."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, DseeLayer)}
    first = next(iter(layers.values()))
    updates = [layer.update_of(adapter_name) for layer in layers.values()]
    return DseeRecord(
        rank=first.update_of(adapter_name).A.shape[1],
        scaling=first.scaling[adapter_name],
        low_rank_parameters=sum(update.A.numel() + update.B.numel() for update in updates),
        sparse_parameters=sum(update.S.numel() for update in updates),
        in_largest={
            path.removeprefix("base_model.model."): _in_largest(layer, adapter_name) for path, layer in layers.items()
        },
    )


def _in_largest(layer: DseeLayer, adapter_name: str) -> int:
    update, weight = layer.update_of(adapter_name), layer.dense_weight()
    count = 0
    for rows in part_rows(layer.out_features, update.parts):
        is_here = (update.omega[0] >= rows.start) & (update.omega[0] < rows.stop)
        start = torch.tensor([[rows.start], [0]], device=update.omega.device)
        count += in_largest(weight[rows], update.omega[:, is_here] - start)
    return count

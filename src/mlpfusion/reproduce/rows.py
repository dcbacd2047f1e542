"""Rows of the table of an experiment: a method, and what comes after it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlpfusion.checks import check_that
from mlpfusion.dsee.magnitude import Pruning
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.outcome import Masked
from mlpfusion.methods.names import method_label, parse_method
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import METHODS
from mlpfusion.options.adapters.dsee import Dsee, parse_dsee
from mlpfusion.options.adapters.lora import Lora, parse_lora
from mlpfusion.options.adapters.pairs import parse_pairs
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.options.fields import changed
from mlpfusion.report.numbers import FULL

Second = Sparsity | HeadChoice | Pruning


@dataclass(frozen=True)
class TableRow:
    """One row of the table: a method, epochs of layer-wise tuning, an adapter, a second stage.

    `method` is None for a model in which nothing is compressed; `data_free` if it is calibrated without the texts of
    the task, as by `compress --data-free`. `second` is what is taken from the trained model, which then trains again:
    weights or heads, as the adapter says, or without one the smallest weights of the full model, or the heads of the
    smallest trained coefficients.
    """

    model: str
    method: Any = None
    layerwise: int = 0
    adapter: Lora | Dsee | None = None
    second: Second | None = None
    grid_targets: str | None = None  # of the adapter where they are those of the whole grid, which no label repeats
    data_free: bool = False

    @property
    def label(self) -> str:
        """Name in tables.

        >>> parse_table_row("fusion+layerwise=2+lora=8", "model").label
        'fusion + layer-wise, 2 epochs + LoRA'
        >>> parse_table_row("ntk-match+data-free", "model").label
        'ntk-match, no text'
        >>> parse_table_row("full+lora=16:alpha=32", "model").label
        'full + LoRA alpha=32'
        >>> parse_table_row("full+dsee=16:omega=random", "model").label
        'full + DSEE omega=random'
        >>> parse_table_row("full+dsee+zeros=0.2:criterion=w", "model").label
        'full + DSEE + 20 % zeros criterion=w'
        >>> parse_table_row("fusion+dsee+heads=3", "model").label
        'fusion + DSEE - 3 heads a layer'
        >>> parse_table_row("slimming+heads=1", "model").label
        'slimming - 1 head a layer'
        >>> parse_table_row("full+zeros=0.5:rounds=3", "model").label
        'full + 50 % zeros rounds=3'
        """
        name = (FULL if self.method is None else method_label(self.method)) + ", no text" * self.data_free
        epochs = "" if self.layerwise == 1 else f", {self.layerwise} epochs"
        layerwise = f" + layer-wise{epochs}" if self.layerwise else ""
        return name + layerwise + _adapter_label(self.adapter, self.grid_targets) + _second_label(self.second)

    def with_targets(self, targets: str | None) -> "TableRow":
        """The row with its adapter on these maps, if it has one and names none."""
        if self.adapter is None or self.adapter.targets is not None:
            return self
        return replace(self, adapter=replace(self.adapter, targets=targets), grid_targets=targets)


def parse_table_row(text: str, model: str) -> TableRow:
    """Parses `fusion:refine=false+layerwise=1`.

    Raises `InputError` for an unknown method, option or addition, and for additions that do not go together.
    """
    name, *additions = (part.strip() for part in text.split("+"))
    method = None if name == FULL else parse_method(name, METHODS)
    is_calibrated = method is not None and needs_batches(method)
    layerwise, adapter, taken, data_free = 0, None, None, False
    for addition in additions:
        kind, _, value = addition.partition("=")
        if kind == "layerwise" and method is not None and re.fullmatch(r"|[1-9][0-9]{0,5}", value):
            layerwise = int(value or 1)
        elif addition == "data-free" and is_calibrated:
            data_free = True
        elif kind == "lora":
            rank, *options = value.split(":")
            adapter = parse_lora(",".join((f"r={rank or 8}", *options)))
        elif kind == "dsee":
            rank, *options = value.split(":")
            adapter = parse_dsee(",".join((f"rank={rank or 16}", *options)))
        elif kind in ("zeros", "heads"):
            if taken is not None:
                raise InputError(f"`methods` must have zeros or heads once, not both, got {shown(text)}")
            taken = addition
        else:
            calibrated = ", data-free" if is_calibrated else ""
            layers = "" if method is None else ", layerwise[=EPOCHS]"
            allowed = f"lora[=R], dsee[=RANK]{calibrated}{layers}, zeros=RATIO, heads=N"
            raise InputError(f"`methods` must have additions among {allowed} in {shown(text)}, got {shown(addition)}")
    if adapter is not None and method is not None and METHODS[type(method)].makes is Masked:
        raise InputError(f"`methods` must have lora and dsee with methods that mask nothing, got {shown(text)}")
    second = None
    if taken is not None:
        kind, _, value = taken.partition("=")
        if kind == "zeros" and adapter is None and method is not None:
            raise InputError(f"`methods` must have zeros with full, lora or dsee, got {shown(text)}")
        second = _parse_zeros(value, adapter) if kind == "zeros" else _parse_heads(value)
    return TableRow(model, method, layerwise, adapter, second, data_free=data_free)


def _parse_zeros(text: str, adapter: Lora | Dsee | None) -> Sparsity | Pruning:
    """Parses `0.2:criterion=w`, the ratio of both pools, or without an adapter `0.2:rounds=3`."""
    ratio, *options = text.split(":")
    is_ratio = re.fullmatch(r"0?\.[0-9]+", ratio) is not None and float(ratio) > 0
    check_that(is_ratio, "zeros", "above 0 and below 1", ratio)
    if adapter is None:
        return parse_pairs(Pruning, "zeros", ",".join((f"ratio={ratio}", *options)))
    both = (f"updated_ratio={ratio}", f"other_ratio={ratio}")
    return parse_pairs(Sparsity, "zeros", ",".join((*both, *options)))


def _parse_heads(text: str) -> HeadChoice:
    """Parses `3:scope=global`."""
    number, *options = text.split(":")
    is_number = re.fullmatch(r"[1-9][0-9]{0,3}", number) is not None
    check_that(is_number, "heads", "a whole number of at least 1", number)
    return parse_pairs(HeadChoice, "heads", ",".join((f"drop_heads={number}", *options)))


def _adapter_label(adapter: Lora | Dsee | None, grid_targets: str | None) -> str:
    if adapter is None:
        return ""
    untold = {"r", "rank", "targets" if adapter.targets == grid_targets else ""}
    return " ".join((" + LoRA" if isinstance(adapter, Lora) else " + DSEE", *_told(adapter, untold)))


def _second_label(second: Second | None) -> str:
    if second is None:
        return ""
    if isinstance(second, HeadChoice):
        heads = f" - {second.drop_heads} head{'s' * (second.drop_heads > 1)} a layer"
        return heads + ("" if second.scope == "layer" else f", {second.scope}")
    pools = (second.ratio,) if isinstance(second, Pruning) else (second.updated_ratio, second.other_ratio)
    ratios = dict.fromkeys(f"{100 * ratio:.4g}" for ratio in pools)
    untold = {"ratio", "updated_ratio", "other_ratio"}
    return " ".join((f" + {' and '.join(ratios)} % zeros", *_told(second, untold)))


def _told(options: Any, untold: set[str]) -> Iterator[str]:
    """The options that are not the defaults, as they are given: `alpha=32`, though alpha is a float."""
    for name, value in changed(options).items():
        if name not in untold:
            yield f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"

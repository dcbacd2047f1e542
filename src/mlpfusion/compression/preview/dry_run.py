"""What a run of `compress` would write, from the headers of the weight files and the config alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.save import CutFiles, block_paths
from mlpfusion.checkpoint.stored_model import StoredModel
from mlpfusion.compression.budget.amount import parse_budget
from mlpfusion.compression.checkpoint import Work
from mlpfusion.compression.plan import Plan, choose_sites, make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.compression.streaming.memory import SeenTokens, expected_bytes
from mlpfusion.compression.streaming.run import why_not_streamed
from mlpfusion.data.unlabelled.calibration_texts import CalibrationSource, CalibrationTexts
from mlpfusion.kinds.key import FusionKey
from mlpfusion.kinds.kind import InstalledSite
from mlpfusion.kinds.narrow_experts import gathered
from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed, Outcome
from mlpfusion.kinds.stock.fold import form_after_fold
from mlpfusion.kinds.stock.form import stock_form
from mlpfusion.kinds.stock.widths import resized_mlp
from mlpfusion.kinds.table import kind_of, kind_of_outcome, rebuild, stored_form
from mlpfusion.methods.block import factor_rank
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import METHODS
from mlpfusion.mlp import MLP
from mlpfusion.options.selection import Selection
from mlpfusion.record import Size, model_size
from mlpfusion.sites.sites import Site, base_prefix, by_holder, find_sites, read_mlp

_NO_HASH = 64 * "0"  # the weights are not read


@dataclass(frozen=True)
class PlannedSite:
    """One MLP, or all experts of one mixture, that would be cut.

    `width` is None where the weights decide; `rank` is that of factors, `nonzero` the share of the entries of its
    matrices that a mask keeps.
    """

    path: str
    original_width: int
    width: int | None
    rank: int | dict[str, int] | None = None
    nonzero: float | None = None


@dataclass(frozen=True)
class DryRun:
    """What a run would write. `recipe` is the one of its record.

    `unknown` says what only the weights can tell; `compressed` is then None. `no_stock_form` is the reason why the
    folded model would not be one of plain transformers; None if it would, or if it is unknown. `streamed_bytes` is the
    most memory that is expected with --stream, None for what cannot be streamed.
    """

    recipe: dict[str, Any]
    sites: tuple[PlannedSite, ...]
    original: Size
    compressed: Size | None
    no_stock_form: str | None
    streamed_bytes: int | None
    unknown: str | None = None


def dry_run(source: Checkpoint, work: Work, texts: CalibrationSource | None) -> DryRun:
    """Returns what the run would write; reads headers, tokenizer and texts, and no weight.

    To be called once all else is checked. Raises `InputError` for texts that the model cannot take.
    """
    selection, row = work.selection, METHODS[type(work.method)]
    model = StoredModel(source.folder, source.config).model
    chosen = choose_sites(find_sites(model, source.row), selection.layers)
    plan = None if selection.budget is not None else make_plan(chosen, selection)
    files = CutFiles(source.empty(), source.folder, block_paths(chosen))
    is_masked = row.makes is Masked
    told = DryRun(
        recipe=Settings(work.method, selection, work.seed, work.sequential).recipe(),
        sites=_unsized(chosen, selection.keep_ratio if is_masked else None),
        original=files.size,
        compressed=files.size if is_masked else None,
        no_stock_form=_form_of_kind(source, work.method),
        streamed_bytes=_streamed_bytes(source, work, texts, model, plan),
        unknown=_unknown(work.method, selection, model),
    )
    is_planned = row.sees != "labels" and not row.ranked_together and row.makes in (Narrowed, LowRank)
    return told if plan is None or not is_planned else _with_shapes(told, source, work, model, plan, files)


def _streamed_bytes(
    source: Checkpoint, work: Work, texts: CalibrationSource | None, model: PreTrainedModel, plan: Plan | None
) -> int | None:
    """The memory of a streamed run; None for what cannot be streamed. Raises `InputError` for bad texts."""
    prepared = None if texts is None else texts.prepare(source.folder, source.empty(), work.seed)
    batches, is_written = list[Batch](), texts is not None and not isinstance(texts, CalibrationTexts)
    if prepared is not None and not is_written:  # a model writes its text once it has weights
        batches = prepared.batches(model, work.progress)
    if plan is None or why_not_streamed(work.method, work.selection, data_free=is_written) is not None:
        return None
    return expected_bytes(model, plan, SeenTokens.of(batches, work.method), sequential=work.sequential)


@torch.no_grad()
def _with_shapes(
    told: DryRun, source: Checkpoint, work: Work, model: PreTrainedModel, plan: Plan, files: CutFiles
) -> DryRun:
    """The same with the sizes: empty blocks of the shapes of the plan are put into `model`."""
    outcomes = [_empty_outcome(read_mlp(model, site), width, plan, work.method) for site, width in plan.entries]
    new, entries, sites = dict[str, Tensor](), dict[str, InstalledSite](), list[PlannedSite]()
    for site, outcome in gathered(plan.sites, outcomes):
        entry, tensors = stored_form(model, site, outcome)
        rebuild(model, site, entry)
        new |= files.named(model, {base_prefix(model) + name: one for name, one in tensors.items()})
        size, entries[site.holder] = kind_of(entry).size(site, entry), entry
        sites.append(PlannedSite(site.holder, site.intermediate_size, size.width, size.rank))
    key = FusionKey(source.row, entries, method_name(type(work.method)), work.seed, _NO_HASH)
    reason, size = form_after_fold(source.empty(), key).reason, files.size_with(new, model)
    return replace(told, sites=tuple(sites), compressed=size, no_stock_form=reason, unknown=None)


def _empty_outcome(mlp: MLP, width: int, plan: Plan, method: Any) -> Outcome:
    """What the method makes of a block, without numbers: on the meta device, as `mlp` is."""
    row = METHODS[type(method)]
    if row.makes is LowRank:
        assert plan.keep_ratio is not None
        rank = factor_rank(mlp.hidden_size, mlp.num_neurons, plan.keep_ratio)
        shapes = {name: one.shape for name, one in mlp.matrices().items()}
        empty = mlp.up.new_empty
        return LowRank({name: (empty(rows, rank), empty(rank, columns)) for name, (rows, columns) in shapes.items()})
    small, scales = resized_mlp(mlp, width), row.scales(method)
    ones = small.up.new_empty(width, dtype=torch.int32 if scales == "cluster-sizes" else torch.float32)
    if scales == "matched":
        small = replace(small, input_scale=ones)
    return Narrowed(small if scales == "none" else replace(small, output_scale=ones))


def _unsized(chosen: Sequence[Site], nonzero: float | None) -> tuple[PlannedSite, ...]:
    """The blocks without a size, or behind masks."""
    widths = {holder: sites[0].intermediate_size for holder, sites in by_holder(chosen).items()}
    return tuple(
        PlannedSite(path, width, None if nonzero is None else width, nonzero=nonzero) for path, width in widths.items()
    )


def _form_of_kind(source: Checkpoint, method: Any) -> str | None:
    """Why the folded model is no stock model, where that depends on the kind of its blocks alone."""
    makes = METHODS[type(method)].makes
    if (reason := kind_of_outcome(makes).no_stock_form) is not None:
        return reason
    return None if makes is Narrowed else stock_form(source.empty(), source.row).reason  # folded, it has its old shapes


def _unknown(method: Any, selection: Selection, model: PreTrainedModel) -> str | None:
    """What only the weights, or the training, can tell; None for masks, which change no size."""
    row, name = METHODS[type(method)], method_name(type(method))
    if row.makes is Masked:
        return None
    if selection.budget is not None:
        budget = parse_budget(selection.budget)
        told = f"a budget of {budget} is spread by the errors that the weights give"
        most = int(budget.share * model_size(model).parameters)
        return f"{told}; at most {most:,} parameters are kept" if budget.unit == "parameters" else told
    if row.makes is Narrowed and row.sees != "labels":
        return f"{name} ranks the neurons of all layers together"
    return f"{name} learns them on the task"

"""Puts outcomes into a model, all or none, and makes the record."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from mlpfusion.compression.plan import Plan
from mlpfusion.compression.provenance import source_hash
from mlpfusion.compression.run import check_finite_outcomes
from mlpfusion.compression.settings import Settings
from mlpfusion.kinds.key import FusionKey
from mlpfusion.kinds.kind import InstalledSite
from mlpfusion.kinds.narrow_experts import gathered
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.kinds.stock.entries import set_key
from mlpfusion.kinds.table import install, kind_of, put_back_on_error, site_size
from mlpfusion.record import Record, SiteRecord, model_size, peak_bytes, versions, warn_if_degenerate
from mlpfusion.sites.detect import left_out
from mlpfusion.sites.sites import Site, base_model
from mlpfusion.sites.table import Architecture, row_outside_table


def install_outcomes(
    model: PreTrainedModel,
    plan: Plan,
    outcomes: Sequence[Outcome],
    architecture: Architecture,
    settings: Settings,
    device: torch.device,
) -> Record:
    """Puts the outcomes in place and the key into the config; returns the record, without the time.

    Changes `model`. `device` is the place of the arithmetic, for the record. Warns once of degenerate clusterings. Any
    exception, a warning turned into one included, leaves the model as it was. Raises `InputError` for NaN or Inf.
    """
    check_finite_outcomes(plan, outcomes, settings.method_name)
    original, digest, others = model_size(model), source_hash(model, plan.sites), left_out(model, architecture)
    records, installed = [], {}
    with put_back_on_error(model):
        for site, outcome in gathered(plan.sites, outcomes):
            before = site_size(base_model(model), site)
            entry = install(model, site, outcome)
            records.append(site_record(site, before, entry, outcome.metrics))
            installed[site.holder] = entry
        warn_if_degenerate(records)
        set_key(model, FusionKey(architecture, installed, settings.method_name, settings.seed, digest))
        record = new_record(model, records, architecture, settings, digest, device)
        return replace(record, original=original, left_out=others)


def new_record(
    model: PreTrainedModel,
    sites: Sequence[SiteRecord],
    architecture: Architecture,
    settings: Settings,
    digest: str,
    device: torch.device,
) -> Record:
    """Makes the record of a compressed model, without the time, with its size for that of the original too."""
    size = model_size(model)
    return Record(
        recipe=settings.recipe(),
        source_sha256=digest,
        device=str(device),
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
        versions=versions(),
        seconds=0.0,
        peak_bytes=peak_bytes(device),
        original=size,
        compressed=size,
        sites=tuple(sites),
        row=row_outside_table(model.config.model_type, architecture),
    )


def site_record(site: Site, before: int, entry: InstalledSite, metrics: dict[str, float]) -> SiteRecord:
    """The part of the record for one block, which had `before` parameters."""
    kind = kind_of(entry)
    size = kind.size(site, entry)
    return SiteRecord(
        path=site.holder,
        layer=site.layer,
        original_width=site.intermediate_size,
        width=size.width,
        original_parameters=before,
        parameters=size.parameters,
        metrics=metrics,
        kind=kind.name,
        rank=size.rank,
        nonzero_parameters=size.nonzero_parameters,
    )

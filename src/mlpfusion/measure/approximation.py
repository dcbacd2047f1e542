"""Output error and kernel error of the compressed blocks of a model (paper, Table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import InputError
from mlpfusion.kernel import (
    SCALARS,
    BlockKernels,
    BlockTrace,
    KernelComparison,
    KernelError,
    RandomHead,
    adam_and_plain_kernel,
    adam_kernel,
    compare_kernels,
)
from mlpfusion.measure.output_error import output_error
from mlpfusion.measure.outputs import SiteOutputs, recorded_outputs
from mlpfusion.measure.paper_numbers import SCALAR, AuthorsError, AuthorsReference, authors_error, padded_outputs
from mlpfusion.measure.trained_block import trained_block
from mlpfusion.sites.sites import Site, find_sites
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.traces import block_traces, random_head


@dataclass(frozen=True)
class Probe:
    """The scalar f whose kernel is measured: its name, and the seed of the random head of a model that has none."""

    scalar: str = "logit"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scalar not in SCALARS:
            raise InputError(f"`scalar` must be one of {', '.join(SCALARS)}, got {self.scalar!r}")

    def head(self, model: PreTrainedModel) -> RandomHead | None:
        """None for a classification model, whose own logits serve; else a random head, one and the same for a seed."""
        if type(model).__name__.endswith("ForSequenceClassification"):
            return None
        return random_head(model, torch.Generator().manual_seed(self.seed))

    def traces(self, model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]) -> dict[str, BlockTrace]:
        """The traces of the sites, by path, for this f. Raises `InputError` as `block_traces` does."""
        return block_traces(model, sites, batches, SCALARS[self.scalar], self.head(model))


@dataclass(frozen=True)
class BlockReference:
    """The kernels of one block of a model, and what leaves it and its layer; `authors`: for their two numbers."""

    adam: BlockKernels
    plain: BlockKernels
    outputs: SiteOutputs
    authors: AuthorsReference | None = None


@dataclass(frozen=True)
class BlockError:
    """How far a compressed block is from the original's.

    The output errors are of the raw MLP output (`output_error` relative, `output_absolute`) and of the hidden state
    that leaves the layer (`block_output_error`, `block_output_absolute`), both on the inputs that the layer has in the
    original model, padding left out. The kernel errors are relative Frobenius errors over the samples of the block's
    Adam and plain kernel, b2 included, each with the gradients of its own model; `adam_trace_ratio` is the trace after
    over before. `adam` and `plain` have all measures, by tensor and in total, with b2 and without. `authors` are the
    numbers of the authors' code, where they were asked for.
    """

    path: str
    layer: int
    output_error: float
    output_absolute: float
    block_output_error: float
    block_output_absolute: float
    adam_kernel_error: float
    adam_trace_ratio: float
    plain_kernel_error: float
    adam: KernelComparison
    plain: KernelComparison
    authors: AuthorsError | None = None


def block_error_from_dict(data: dict[str, Any]) -> BlockError:
    """Reads a `BlockError` from its JSON data."""
    authors = data["authors"]
    return BlockError(
        **data
        | {
            "adam": _comparison_from_dict(data["adam"]),
            "plain": _comparison_from_dict(data["plain"]),
            "authors": None if authors is None else AuthorsError(**authors),
        }
    )


def _comparison_from_dict(data: dict[str, Any]) -> KernelComparison:
    return KernelComparison(
        blocks={name: KernelError(**block) for name, block in data["blocks"].items()},
        total=KernelError(**data["total"]),
        without_down_bias=KernelError(**data["without_down_bias"]),
    )


def references(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    probe: Probe,
    authors_batch: Batch | None = None,
) -> dict[str, BlockReference]:
    """The reference of every site, by path; `authors_batch` is the last batch of the authors' evaluation.

    Raises `InputError` as `block_traces` does, and for fewer than two classes if there is such a batch.
    """
    with recorded_outputs(model, sites, batches) as recorder:
        traces = probe.traces(model, sites, batches)
    blocks = {site.path: trained_block(model, site) for site in sites}
    kernels = {path: adam_and_plain_kernel(block, traces[path]) for path, block in blocks.items()}
    found = {path: BlockReference(*kernels[path], outputs) for path, outputs in recorder.outputs().items()}
    if authors_batch is None:
        return found
    hidden = padded_outputs(model, sites, authors_batch)
    adam = {path: both[0] for path, both in kernels.items()}
    if probe.scalar != SCALAR:
        traces = Probe(SCALAR, probe.seed).traces(model, sites, batches)
        adam = {path: adam_kernel(block, traces[path]) for path, block in blocks.items()}
    return {path: replace(one, authors=AuthorsReference(adam[path], hidden[path])) for path, one in found.items()}


def block_errors(
    originals: Mapping[str, BlockReference],
    compressed: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    probe: Probe,
    *,
    outputs: Mapping[str, SiteOutputs] | None = None,
    authors_batch: Batch | None = None,
) -> list[BlockError]:
    """The errors of the blocks of `compressed` at the sites of `originals`, on the same batches.

    `outputs` are those of `compressed` on the original's inputs (`outputs_on_inputs_of`); they may be left out where
    one block alone is compressed: what enters its layer is the original's then. `authors_batch` is that of
    `references`.
    """
    sites = [site for site in find_sites(compressed, architecture) if site.path in originals]
    found = references(compressed, sites, batches, probe, authors_batch)
    if outputs is not None:
        found = {path: replace(one, outputs=outputs[path]) for path, one in found.items()}
    return [_block_error(originals[site.path], found[site.path], site) for site in sites]


def _block_error(before: BlockReference, after: BlockReference, site: Site) -> BlockError:
    adam, plain = compare_kernels(before.adam, after.adam), compare_kernels(before.plain, after.plain)
    mlp = output_error(before.outputs.mlp, after.outputs.mlp)
    block = output_error(before.outputs.block, after.outputs.block)
    authors = None
    if before.authors is not None and after.authors is not None:
        authors = authors_error(before.authors, after.authors)
    return BlockError(
        path=site.path,
        layer=site.layer,
        output_error=mlp.relative,
        output_absolute=mlp.absolute,
        block_output_error=block.relative,
        block_output_absolute=block.absolute,
        adam_kernel_error=adam.total.relative,
        adam_trace_ratio=adam.total.trace_ratio,
        plain_kernel_error=plain.total.relative,
        adam=adam,
        plain=plain,
        authors=authors,
    )

"""Output and kernel errors of compressed blocks (paper, Table 1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import InputError
from mlpfusion.kernel import (
    SCALARS,
    Block,
    BlockKernels,
    BlockTrace,
    KernelComparison,
    KernelError,
    RandomHead,
    adam_and_plain_kernel,
    adam_kernel,
    compare_kernels,
)
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.table import kind_of
from mlpfusion.measure.output_error import output_error
from mlpfusion.measure.outputs import SiteOutputs, recorded_outputs
from mlpfusion.measure.paper_numbers import SCALAR, AuthorsError, AuthorsReference, authors_error, padded_outputs
from mlpfusion.measure.whole_model import ModelError, model_error_from_dict
from mlpfusion.sites.mixtures.traces import RecordedTraces
from mlpfusion.sites.sites import Site, by_block, find_sites, read_mlp
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.traces import random_head, recorded_traces


@dataclass(frozen=True)
class Probe:
    """The scalar f of the kernel, and the seed of a random head.

    The random head serves models without a classification head.
    """

    scalar: str = "logit"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scalar not in SCALARS:
            raise InputError(f"`scalar` must be one of {', '.join(SCALARS)}, got {self.scalar!r}")

    def head(self, model: PreTrainedModel) -> RandomHead | None:
        """Draws the random head; None for a classification model with logits."""
        if type(model).__name__.endswith("ForSequenceClassification"):
            return None
        return random_head(model, torch.Generator().manual_seed(self.seed))

    def traces(self, model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch]) -> RecordedTraces:
        """Records inputs and gradients of f at the sites."""
        return recorded_traces(model, sites, batches, SCALARS[self.scalar], self.head(model))


@dataclass(frozen=True)
class BlockReference:
    """The original block, one MLP or a mixture, for comparison: kernels, MLP output, layer output.

    `authors` holds the extra inputs of the two error numbers in the paper authors' code.
    """

    adam: BlockKernels
    plain: BlockKernels
    outputs: SiteOutputs
    authors: AuthorsReference | None = None


@dataclass(frozen=True)
class BlockError:
    """Errors of a compressed block against the original block.

    - `output_error` (relative), `output_absolute`: the raw MLP output, of a mixture that of its experts together;
      `block_output_error`, `block_output_absolute`: the hidden state after the layer. Inputs are the layer's inputs in
      the original model, without padding.
    - `adam_kernel_error`, `plain_kernel_error`: ||K_c - K||_F / ||K||_F over the samples, b2 included, every kernel
      with the gradients of its own model; of a mixture the sums over its experts. `adam_trace_ratio`: tr K_c / tr K.
    - `adam`, `plain`: all measures, by tensor and in total, with and without b2.
    - `authors`: the numbers of the paper authors' code, if measured.
    - `whole_model`: its outputs with this block alone replaced; None in records from before it was measured.
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
    whole_model: ModelError | None = None


def block_error_from_dict(data: dict[str, Any]) -> BlockError:
    """Reads a `BlockError` from its JSON data."""
    authors, whole_model = data["authors"], data.get("whole_model")
    return BlockError(
        path=data["path"],
        layer=data["layer"],
        output_error=data["output_error"],
        output_absolute=data["output_absolute"],
        block_output_error=data["block_output_error"],
        block_output_absolute=data["block_output_absolute"],
        adam_kernel_error=data["adam_kernel_error"],
        adam_trace_ratio=data["adam_trace_ratio"],
        plain_kernel_error=data["plain_kernel_error"],
        adam=_comparison_from_dict(data["adam"]),
        plain=_comparison_from_dict(data["plain"]),
        authors=None if authors is None else AuthorsError(authors["output"], authors["kernel"]),
        whole_model=None if whole_model is None else model_error_from_dict(whole_model),
    )


def _comparison_from_dict(data: dict[str, Any]) -> KernelComparison:
    return KernelComparison(
        blocks={name: _kernel_error_from_dict(block) for name, block in data["blocks"].items()},
        total=_kernel_error_from_dict(data["total"]),
        without_down_bias=_kernel_error_from_dict(data["without_down_bias"]),
    )


def _kernel_error_from_dict(data: dict[str, Any]) -> KernelError:
    return KernelError(
        relative=data["relative"],
        absolute=data["absolute"],
        cosine=data["cosine"],
        trace_ratio=data["trace_ratio"],
        alignment=data["alignment"],
    )


def references(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    probe: Probe,
    authors_batch: Batch | None = None,
) -> dict[str, BlockReference]:
    """Kernels and outputs of every single MLP and of every mixture, by path.

    `authors_batch`, the last batch of the authors' evaluation, adds the inputs of their numbers.
    Raises `InputError` for a scalar unknown to the model, and with `authors_batch` for fewer than
    two classes.
    """
    with recorded_outputs(model, sites, batches) as recorder:
        traces = probe.traces(model, sites, batches)
    blocks = by_block(sites)
    kernels = {path: _kernels(model, members, traces) for path, members in blocks.items()}
    blocks_before = {
        path: BlockReference(kernels[path][0], kernels[path][1], outputs)
        for path, outputs in recorder.outputs().items()
    }
    if authors_batch is None:
        return blocks_before
    hidden = padded_outputs(model, sites, authors_batch)
    adam = {path: both[0] for path, both in kernels.items()}
    if probe.scalar != SCALAR:
        traces = Probe(SCALAR, probe.seed).traces(model, sites, batches)
        adam = {path: _kernels(model, members, traces, _adam_alone)[0] for path, members in blocks.items()}
    return {
        path: replace(block, authors=AuthorsReference(adam[path], hidden[path]))
        for path, block in blocks_before.items()
    }


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
    """Errors of the blocks of `compressed` at the sites of `originals`.

    `batches`, `probe` and `authors_batch` must be those of `originals`. `outputs`: outputs of
    `compressed` on the original's inputs (`outputs_on_inputs_of`); not needed if only one block is
    compressed, because its layer has the original's inputs anyway.
    """
    sites = [site for site in find_sites(compressed, architecture) if site.block_path in originals]
    after = references(compressed, sites, batches, probe, authors_batch)
    if outputs is not None:
        after = {path: replace(block, outputs=outputs[path]) for path, block in after.items()}
    return [_block_error(originals[path], after[path], members[0]) for path, members in by_block(sites).items()]


def _block_error(before: BlockReference, after: BlockReference, site: Site) -> BlockError:
    adam, plain = compare_kernels(before.adam, after.adam), compare_kernels(before.plain, after.plain)
    mlp = output_error(before.outputs.mlp, after.outputs.mlp)
    block = output_error(before.outputs.block, after.outputs.block)
    authors = None
    if before.authors is not None and after.authors is not None:
        authors = authors_error(before.authors, after.authors)
    return BlockError(
        path=site.block_path,
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


def trained_block(model: PreTrainedModel, site: Site) -> Block:
    """Reads the block at a site, with exactly the parameters trained by `model`.

    Dense weights share memory with the model; products of factors are new.
    """
    key = model_key(model.config)
    entry = None if key is None else key.sites.get(site.holder)
    return read_mlp(model, site) if entry is None else kind_of(entry).trained_block(model, site)


def _adam_alone(block: Block, trace: BlockTrace) -> tuple[BlockKernels]:
    return (adam_kernel(block, trace),)


def _kernels(
    model: PreTrainedModel,
    members: Sequence[Site],
    traces: RecordedTraces,
    kernels_of: Callable[[Block, BlockTrace], tuple[BlockKernels, ...]] = adam_and_plain_kernel,
) -> list[BlockKernels]:
    """The Adam and the plain kernel, or what else `kernels_of` gives, of one MLP or of all experts of a mixture.

    The parameters of a mixture are those of its experts, so its kernel is the sum of theirs. An expert has no gradient
    of a sample none of whose tokens reaches it.
    """
    number = traces.num_samples(members[0])
    sums: list[dict[str, Tensor]] = []
    for site in members:
        trace = traces.at(site)
        if trace is None:
            continue
        samples = traces.samples_at(site).cpu()
        own = kernels_of(trained_block(model, site), trace.to(model.device))
        sums = sums or [{} for _ in own]
        for found, kernels in zip(sums, own, strict=True):
            for name, kernel in kernels.blocks.items():
                whole = found.setdefault(name, kernel.new_zeros(number, number))
                whole[samples[:, None], samples] += kernel
    return [BlockKernels(found) for found in sums]

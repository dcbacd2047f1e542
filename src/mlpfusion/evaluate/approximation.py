"""Output error and kernel error of the compressed blocks of a model (paper, Table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mlpfusion.architectures.sites import Site, find_sites
from mlpfusion.architectures.table import Architecture
from mlpfusion.errors import InputError
from mlpfusion.evaluate.output_error import relative_output_error
from mlpfusion.kernel import SCALARS, BlockKernels, BlockTrace, RandomHead, adam_kernel, compare_kernels, plain_kernel
from mlpfusion.mlp import MLP
from mlpfusion.traces import Batch, block_traces, random_head, read_block


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
class Reference:
    """One block of the original model, what goes through it, and its kernels."""

    mlp: MLP
    trace: BlockTrace
    adam: BlockKernels
    plain: BlockKernels


@dataclass(frozen=True)
class BlockError:
    """How far a compressed block is from the original's.

    `output_error` is relative, of the raw MLP output on the original's inputs. The kernel errors are relative Frobenius
    errors over the samples of the block's Adam and plain kernel, b2 included, each with the gradients of its own model;
    `adam_kernel_absolute` is the authors' measure, `adam_blocks` has the Adam error by tensor, `adam_trace_ratio` is
    the trace after over before.
    """

    path: str
    layer: int
    output_error: float
    adam_kernel_error: float
    adam_kernel_absolute: float
    adam_trace_ratio: float
    plain_kernel_error: float
    adam_blocks: dict[str, float]


def references(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Batch], probe: Probe
) -> dict[str, Reference]:
    """The reference of every site, by path."""
    found = {}
    for path, trace in probe.traces(model, sites, batches).items():
        mlp = read_block(model, next(site for site in sites if site.path == path))
        found[path] = Reference(mlp, trace, adam_kernel(mlp, trace), plain_kernel(mlp, trace))
    return found


def block_errors(
    originals: Mapping[str, Reference],
    compressed: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    probe: Probe,
) -> list[BlockError]:
    """The errors of the blocks of `compressed` at the sites of `originals`, on the same batches."""
    sites = [site for site in find_sites(compressed, architecture) if site.path in originals]
    traces = probe.traces(compressed, sites, batches)
    return [_block_error(originals[site.path], read_block(compressed, site), traces[site.path], site) for site in sites]


def _block_error(original: Reference, mlp: MLP, trace: BlockTrace, site: Site) -> BlockError:
    adam = compare_kernels(original.adam, adam_kernel(mlp, trace))
    plain = compare_kernels(original.plain, plain_kernel(mlp, trace))
    return BlockError(
        path=site.path,
        layer=site.layer,
        output_error=relative_output_error(original.mlp, mlp, original.trace.inputs),
        adam_kernel_error=adam.total.relative,
        adam_kernel_absolute=adam.total.absolute,
        adam_trace_ratio=adam.total.trace_ratio,
        plain_kernel_error=plain.total.relative,
        adam_blocks={name: error.relative for name, error in adam.blocks.items()},
    )

"""What a calibrated method gets of one block after the other, while passes through the model wait there."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.compression.calibration.experts import expert_calibration, routed_size, sequential_calibration
from mlpfusion.compression.calibration.traces import TracedCalibration
from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import LowRank, Narrowed, Outcome
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.mlp import MLP
from mlpfusion.sites.mixtures.experts import takes_tokens_alone
from mlpfusion.sites.mixtures.routing import RoutedTokens
from mlpfusion.sites.sites import Site, base_model, by_block, read_mlp
from mlpfusion.sites.waiting import WaitingPasses, waiting_passes


class BlockPasses:
    """The calibrations of the sites of a model, one after the other in the order in which they run.

    `original` are passes through the model as it is, or what was recorded of them before. `cut`, for blocks that are
    calibrated on what the compressed ones before them leave, are passes that go on with those. `sizes` are how much
    entered the MLP or the mixture of every site until now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        original: WaitingPasses | TracedCalibration,
        cut: WaitingPasses | None,
    ):
        self.sizes: list[CalibrationSize] = []
        self._model, self._original, self._cut = model, original, cut
        self._members = by_block(sites)
        self._compressed: list[MLP] = []  # of the members of the block where `cut` waits

    def at(self, site: Site) -> Calibration | None:
        """The calibration of the next site; None for an expert that no token reaches.

        The inputs are those in `cut`, if there is one, and the targets what the original gives at the same tokens.
        """
        if site.expert is not None:
            tokens, token_weights = self._routed(site)
            self.sizes.append(routed_size(tokens))
            if self._cut is None:
                return expert_calibration(tokens, site, token_weights)
            cut = self._cut.tokens_at(site)  # before the expert is read: it may be in memory only where passes wait
            return sequential_calibration(tokens, cut, site, read_mlp(self._model, site), token_weights)
        if isinstance(self._original, TracedCalibration):
            seen = self._original.of_mlp(site)
        else:
            seen = Calibration(self._original.inputs_at(site))
        self.sizes.append(CalibrationSize(seen.trace.num_samples, seen.trace.num_tokens))
        if self._cut is None:
            return seen
        seen = seen.to(self._model.device).with_targets(read_mlp(self._model, site))
        return replace(seen, trace=replace(seen.trace, inputs=self._cut.inputs_at(site).inputs))

    def go_on_with(self, site: Site, block: MLP) -> None:
        """Lets the passes `cut` go on with `block` at `site`; those at a mixture once all its experts have one."""
        assert self._cut is not None
        self._compressed.append(block)
        if len(self._compressed) == len(self._members[site.mixture or site.path]):
            self._cut.go_on_with(self._compressed)
            self._compressed = []

    def _routed(self, site: Site) -> tuple[RoutedTokens, Float[Tensor, " tokens"] | None]:
        """What enters the mixture of an expert in the original model, and the weights of its tokens if any."""
        assert site.mixture is not None
        if isinstance(self._original, TracedCalibration):
            return self._original.mixtures[site.mixture], self._original.weights.get(site.mixture)
        return self._original.tokens_at(site), None


@contextmanager
def block_passes(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    traced: TracedCalibration | None = None,
    *,
    sequential: bool,
) -> Iterator[BlockPasses]:
    """Passes of `batches` that wait at `sites`, a context; with `sequential` also those of the cut model.

    `traced` stands for the passes through the original model. Raises `InputError` as `waiting_passes` does, and with
    `sequential` for experts that get tokens alone: of those that go elsewhere they see zeros, and no target is known.
    """
    for path in {site.mixture: None for site in sites if sequential and site.mixture is not None}:
        if takes_tokens_alone(base_model(model).get_submodule(path)):
            told = f"at {path}, whose tokens are multiplied by the router before they enter"
            raise InputError(f"`sequential` must be left out {told}")
    with ExitStack() as contexts:
        original = contexts.enter_context(waiting_passes(model, sites, batches)) if traced is None else traced
        cut = contexts.enter_context(waiting_passes(model, sites, batches)) if sequential else None
        yield BlockPasses(model, sites, original, cut)


def computed_by(original: MLP, outcome: Outcome) -> MLP:
    """What the outcome of a calibrated method computes in the place of `original`."""
    if isinstance(outcome, LowRank):
        compute = torch.promote_types(original.up.dtype, torch.float32)
        pairs = ((name, left.to(compute), right.to(compute)) for name, (left, right) in outcome.factors.items())
        return replace(original, **{name: left @ right for name, left, right in pairs})
    assert isinstance(outcome, Narrowed)
    return outcome.mlp

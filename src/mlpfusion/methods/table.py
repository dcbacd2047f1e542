"""The table of methods: config type -> function, kind of outcome, and needs.

A method is one file with a frozen config and a function `compress`, and one row here. A method
knows nothing of models, layers, files or devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed, Outcome, Routed
from mlpfusion.methods.block import SecondStep
from mlpfusion.methods.calibrated import (
    fisher,
    flap,
    maintain_ntk_gradient,
    maintain_output,
    nirvana,
    ntk_match,
    whitened_svd,
)
from mlpfusion.methods.data_free import (
    clustering,
    folded_fusion,
    fusion,
    magnitude,
    mmd,
    neuron_pruning,
    ntk_sap,
    peak_to_peak,
    random_neurons,
    sketch,
    svd,
)
from mlpfusion.methods.on_task import flop, gem_miner, lth, moefication, slimming


@dataclass(frozen=True)
class Method:
    """One row: the function `compress`, the outcome it makes, and its needs.

    `compress(block, config)` returns the outcome of one `Block`. With `ranked_together` it gets all
    blocks and returns a list; if it narrows, it chooses the widths, whose sum is given. With labels
    it gets a `TaskJob` and returns a list. `makes` is the class of the outcomes. `sees` names the
    needs beside the weights: nothing, unlabelled inputs (a `Calibration`), or a labelled task.
    `second_step(config)` returns the step of a calibrated method that needs the gradients of the
    compressed model, or None if the options leave it out. `why_inexact` is set for methods that do
    not return the block at full width; all others must. `scales(config)` names the constants of a block that is made
    narrower, as the key of a saved model does: `none`, `cluster-sizes` or `matched`.
    """

    compress: Callable[[Any, Any], Any]
    makes: type[Outcome] = Narrowed
    sees: Literal["nothing", "inputs", "labels"] = "nothing"
    second_step: Callable[[Any], SecondStep | None] = lambda config: None
    ranked_together: bool = False
    why_inexact: str = ""
    scales: Callable[[Any], str] = lambda config: "none"


def _cluster_sizes(config: Any) -> str:
    """The constants of fused blocks: P."""
    return "cluster-sizes"


METHODS: dict[type, Method] = {
    fusion.Fusion: Method(fusion.compress, scales=_cluster_sizes),
    folded_fusion.FoldedFusion: Method(folded_fusion.compress),
    clustering.Clustering: Method(clustering.compress),
    neuron_pruning.NeuronPruning: Method(neuron_pruning.compress),
    peak_to_peak.PeakToPeak: Method(peak_to_peak.compress),
    random_neurons.RandomNeurons: Method(random_neurons.compress),
    sketch.Sketch: Method(sketch.compress, why_inexact="S S^T is the identity only in the mean"),
    mmd.MMD: Method(
        mmd.compress, why_inexact="points are moved, and pulled to zero by weight decay, wherever they start"
    ),
    flap.FLAP: Method(flap.compress, sees="inputs"),
    fisher.Fisher: Method(fisher.compress, sees="inputs"),
    nirvana.NIRVANA: Method(nirvana.compress, sees="inputs", ranked_together=True),
    maintain_output.MaintainOutput: Method(maintain_output.compress, sees="inputs", scales=_cluster_sizes),
    maintain_ntk_gradient.MaintainNTKGradient: Method(
        maintain_ntk_gradient.compress, sees="inputs", scales=_cluster_sizes
    ),
    ntk_match.NTKMatch: Method(
        ntk_match.compress, sees="inputs", second_step=ntk_match.second_step, scales=ntk_match.scales
    ),
    svd.SVD: Method(svd.compress, makes=LowRank),
    whitened_svd.WhitenedSVD: Method(whitened_svd.compress, makes=LowRank, sees="inputs"),
    magnitude.Magnitude: Method(magnitude.compress, makes=Masked, ranked_together=True),
    ntk_sap.NTKSAP: Method(ntk_sap.compress, makes=Masked),
    lth.LTH: Method(lth.compress, makes=Masked, sees="labels"),
    gem_miner.GemMiner: Method(gem_miner.compress, makes=Masked, sees="labels"),
    slimming.Slimming: Method(slimming.compress, sees="labels", ranked_together=True),
    flop.FLOP: Method(flop.compress, makes=LowRank, sees="labels"),
    moefication.MoEfication: Method(moefication.compress, makes=Routed, sees="labels"),
}
# Methods without labels; of these the ones with inputs; methods that learn on a task.
ONE_SHOT: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees != "labels")
CALIBRATED: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees == "inputs")
ON_TASK: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees == "labels")

"""The table of methods: config type -> its function, what it makes of a block, and what it needs to see.

A method is one file with a frozen config and a function `compress`, and one row here. It knows nothing of models,
layers, files or devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mlpfusion.kinds.outcome import LowRank, Masked, Narrowed, Outcome, Routed
from mlpfusion.methods.block import SecondStep
from mlpfusion.methods.calibrated import maintain_ntk_gradient, maintain_output, ntk_match
from mlpfusion.methods.data_free import (
    clustering,
    folded_fusion,
    fusion,
    magnitude,
    mmd,
    neuron_pruning,
    ntk_sap,
    random_neurons,
    sketch,
    svd,
)
from mlpfusion.methods.on_task import flop, gem_miner, lth, moefication


@dataclass(frozen=True)
class Method:
    """One row: `compress` and what it needs.

    `compress(block, config)` gives the outcome of one `Block`; with `ranked_together` it gets all blocks and gives a
    list; where the method sees labels it gets a `TaskJob` and gives a list. `makes` is the class of these outcomes.
    `sees` is what it needs beside the weights: nothing, unlabelled inputs (a `Calibration`), or a labelled task.
    `second_step(config)` is the step of a calibrated method that needs the gradients of the compressed model, None
    where the options of the config leave it out. `why_inexact` says why a method that narrows does not give the block
    back at full width; all others must.
    """

    compress: Callable[[Any, Any], Any]
    makes: type[Outcome] = Narrowed
    sees: Literal["nothing", "inputs", "labels"] = "nothing"
    second_step: Callable[[Any], SecondStep | None] = lambda config: None
    ranked_together: bool = False
    why_inexact: str = ""


METHODS: dict[type, Method] = {
    fusion.Fusion: Method(fusion.compress),
    folded_fusion.FoldedFusion: Method(folded_fusion.compress),
    clustering.Clustering: Method(clustering.compress),
    neuron_pruning.NeuronPruning: Method(neuron_pruning.compress),
    random_neurons.RandomNeurons: Method(random_neurons.compress),
    sketch.Sketch: Method(sketch.compress, why_inexact="S S^T is the identity only in the mean"),
    mmd.MMD: Method(
        mmd.compress, why_inexact="points are moved, and pulled to zero by weight decay, wherever they start"
    ),
    maintain_output.MaintainOutput: Method(maintain_output.compress, sees="inputs"),
    maintain_ntk_gradient.MaintainNTKGradient: Method(maintain_ntk_gradient.compress, sees="inputs"),
    ntk_match.NTKMatch: Method(ntk_match.compress, sees="inputs", second_step=ntk_match.second_step),
    svd.SVD: Method(svd.compress, makes=LowRank),
    magnitude.Magnitude: Method(magnitude.compress, makes=Masked, ranked_together=True),
    ntk_sap.NTKSAP: Method(ntk_sap.compress, makes=Masked),
    lth.LTH: Method(lth.compress, makes=Masked, sees="labels"),
    gem_miner.GemMiner: Method(gem_miner.compress, makes=Masked, sees="labels"),
    flop.FLOP: Method(flop.compress, makes=LowRank, sees="labels"),
    moefication.MoEfication: Method(moefication.compress, makes=Routed, sees="labels"),
}
# The methods by what they see: those that need no labels, those of them that need inputs, those that learn on a task.
ONE_SHOT: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees != "labels")
CALIBRATED: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees == "inputs")
ON_TASK: tuple[type, ...] = tuple(config for config, method in METHODS.items() if method.sees == "labels")

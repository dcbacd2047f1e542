"""Makes the MLPs of language models narrower in one shot, without data, and keeps how they fine-tune.

Importing the package is cheap (no torch) and lets transformers load compressed checkpoints, and PEFT adapters of DSEE.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mlpfusion.dsee.hook import register as _register_adapter
from mlpfusion.kinds.hook import register as _register

if TYPE_CHECKING:
    from mlpfusion.compression.compress import compress as compress
    from mlpfusion.data.unlabelled.data_free import data_free_batches as data_free_batches
    from mlpfusion.dsee.load import load_adapted as load_adapted
    from mlpfusion.errors import InputError as InputError
    from mlpfusion.kinds.stock.fold import fold as fold
    from mlpfusion.methods.calibrated.fisher import Fisher as Fisher
    from mlpfusion.methods.calibrated.flap import FLAP as FLAP
    from mlpfusion.methods.calibrated.maintain_ntk_gradient import MaintainNTKGradient as MaintainNTKGradient
    from mlpfusion.methods.calibrated.maintain_output import MaintainOutput as MaintainOutput
    from mlpfusion.methods.calibrated.nirvana import NIRVANA as NIRVANA
    from mlpfusion.methods.calibrated.ntk_match import NTKMatch as NTKMatch
    from mlpfusion.methods.calibrated.whitened_svd import WhitenedSVD as WhitenedSVD
    from mlpfusion.methods.data_free.clustering import Clustering as Clustering
    from mlpfusion.methods.data_free.folded_fusion import FoldedFusion as FoldedFusion
    from mlpfusion.methods.data_free.fusion import Fusion as Fusion
    from mlpfusion.methods.data_free.magnitude import Magnitude as Magnitude
    from mlpfusion.methods.data_free.mmd import MMD as MMD
    from mlpfusion.methods.data_free.neuron_pruning import NeuronPruning as NeuronPruning
    from mlpfusion.methods.data_free.ntk_sap import NTKSAP as NTKSAP
    from mlpfusion.methods.data_free.peak_to_peak import PeakToPeak as PeakToPeak
    from mlpfusion.methods.data_free.random_neurons import RandomNeurons as RandomNeurons
    from mlpfusion.methods.data_free.sketch import Sketch as Sketch
    from mlpfusion.methods.data_free.svd import SVD as SVD
    from mlpfusion.methods.on_task.flop import FLOP as FLOP
    from mlpfusion.methods.on_task.gem_miner import GemMiner as GemMiner
    from mlpfusion.methods.on_task.lth import LTH as LTH
    from mlpfusion.methods.on_task.moefication import MoEfication as MoEfication
    from mlpfusion.methods.on_task.slimming import Slimming as Slimming
    from mlpfusion.record import Record as Record

__version__ = "0.1.0"

_PUBLIC = {
    "compress": "mlpfusion.compression.compress",
    "data_free_batches": "mlpfusion.data.unlabelled.data_free",
    "load_adapted": "mlpfusion.dsee.load",
    "fold": "mlpfusion.kinds.stock.fold",
    "Clustering": "mlpfusion.methods.data_free.clustering",
    "FoldedFusion": "mlpfusion.methods.data_free.folded_fusion",
    "FLAP": "mlpfusion.methods.calibrated.flap",
    "Fisher": "mlpfusion.methods.calibrated.fisher",
    "FLOP": "mlpfusion.methods.on_task.flop",
    "Fusion": "mlpfusion.methods.data_free.fusion",
    "GemMiner": "mlpfusion.methods.on_task.gem_miner",
    "InputError": "mlpfusion.errors",
    "LTH": "mlpfusion.methods.on_task.lth",
    "Magnitude": "mlpfusion.methods.data_free.magnitude",
    "MaintainNTKGradient": "mlpfusion.methods.calibrated.maintain_ntk_gradient",
    "MaintainOutput": "mlpfusion.methods.calibrated.maintain_output",
    "MMD": "mlpfusion.methods.data_free.mmd",
    "MoEfication": "mlpfusion.methods.on_task.moefication",
    "NeuronPruning": "mlpfusion.methods.data_free.neuron_pruning",
    "NIRVANA": "mlpfusion.methods.calibrated.nirvana",
    "NTKMatch": "mlpfusion.methods.calibrated.ntk_match",
    "NTKSAP": "mlpfusion.methods.data_free.ntk_sap",
    "PeakToPeak": "mlpfusion.methods.data_free.peak_to_peak",
    "RandomNeurons": "mlpfusion.methods.data_free.random_neurons",
    "Record": "mlpfusion.record",
    "Sketch": "mlpfusion.methods.data_free.sketch",
    "Slimming": "mlpfusion.methods.on_task.slimming",
    "SVD": "mlpfusion.methods.data_free.svd",
    "WhitenedSVD": "mlpfusion.methods.calibrated.whitened_svd",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return ["__version__", *_PUBLIC]


_register()
_register_adapter()

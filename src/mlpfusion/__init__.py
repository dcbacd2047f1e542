"""Makes the MLPs of language models narrower in one shot, without data, and keeps how they fine-tune.

Importing the package is cheap (no torch) and lets transformers load compressed checkpoints.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mlpfusion.errors import missing_for_training
from mlpfusion.install.hook import register as _register

if TYPE_CHECKING:
    from mlpfusion.compression import compress as compress
    from mlpfusion.errors import InputError as InputError
    from mlpfusion.install.folding import fold as fold
    from mlpfusion.methods.clustering import Clustering as Clustering
    from mlpfusion.methods.folded_fusion import FoldedFusion as FoldedFusion
    from mlpfusion.methods.fusion import Fusion as Fusion
    from mlpfusion.methods.magnitude import Magnitude as Magnitude
    from mlpfusion.methods.maintain_ntk_gradient import MaintainNTKGradient as MaintainNTKGradient
    from mlpfusion.methods.maintain_output import MaintainOutput as MaintainOutput
    from mlpfusion.methods.mmd import MMD as MMD
    from mlpfusion.methods.neuron_pruning import NeuronPruning as NeuronPruning
    from mlpfusion.methods.ntk_match import NTKMatch as NTKMatch
    from mlpfusion.methods.ntk_sap import NTKSAP as NTKSAP
    from mlpfusion.methods.random_neurons import RandomNeurons as RandomNeurons
    from mlpfusion.methods.sketch import Sketch as Sketch
    from mlpfusion.methods.svd import SVD as SVD
    from mlpfusion.record import Record as Record
    from mlpfusion.task_methods.compression import compress_on_task as compress_on_task
    from mlpfusion.task_methods.flop import FLOP as FLOP
    from mlpfusion.task_methods.gem_miner import GemMiner as GemMiner
    from mlpfusion.task_methods.lth import LTH as LTH
    from mlpfusion.task_methods.moefication import MoEfication as MoEfication

__version__ = "0.1.0"

_PUBLIC = {
    "compress": "mlpfusion.compression",
    "compress_on_task": "mlpfusion.task_methods.compression",
    "fold": "mlpfusion.install.folding",
    "Clustering": "mlpfusion.methods.clustering",
    "FoldedFusion": "mlpfusion.methods.folded_fusion",
    "FLOP": "mlpfusion.task_methods.flop",
    "Fusion": "mlpfusion.methods.fusion",
    "GemMiner": "mlpfusion.task_methods.gem_miner",
    "InputError": "mlpfusion.errors",
    "LTH": "mlpfusion.task_methods.lth",
    "Magnitude": "mlpfusion.methods.magnitude",
    "MaintainNTKGradient": "mlpfusion.methods.maintain_ntk_gradient",
    "MaintainOutput": "mlpfusion.methods.maintain_output",
    "MMD": "mlpfusion.methods.mmd",
    "MoEfication": "mlpfusion.task_methods.moefication",
    "NeuronPruning": "mlpfusion.methods.neuron_pruning",
    "NTKMatch": "mlpfusion.methods.ntk_match",
    "NTKSAP": "mlpfusion.methods.ntk_sap",
    "RandomNeurons": "mlpfusion.methods.random_neurons",
    "Record": "mlpfusion.record",
    "Sketch": "mlpfusion.methods.sketch",
    "SVD": "mlpfusion.methods.svd",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_PUBLIC[name])
    except ModuleNotFoundError as error:
        missing = missing_for_training()
        if not missing:
            raise
        raise ImportError(f"mlpfusion.{name} needs {missing}: pip install 'mlpfusion[tune]'") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return ["__version__", *_PUBLIC]


_register()

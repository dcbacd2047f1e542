"""The class by which a checkpoint is loaded."""

from pathlib import Path

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass


def loading_class(source: Path, model: PreTrainedModel) -> str:
    """Name of the class that loads `model`: an Auto class of transformers, or SentenceTransformer.

    `source` is the folder of its checkpoint.
    """
    if (source / "modules.json").is_file():
        return "SentenceTransformer"
    return _auto_class(model.config, type(model).__name__)


def _auto_class(config: PreTrainedConfig, class_name: str) -> str:
    """Name of the Auto class of transformers for `class_name`; `class_name` without any."""
    autos = [
        auto
        for auto in vars(modeling_auto).values()
        if isinstance(auto, type) and issubclass(auto, _BaseAutoModelClass)
    ]
    for auto in [AutoModel, *autos]:
        mapping = getattr(auto, "_model_mapping", None)
        names = None if mapping is None else mapping._model_mapping.get(config.model_type)
        if class_name in ([names] if isinstance(names, str) else names or []):
            return auto.__name__
    return class_name

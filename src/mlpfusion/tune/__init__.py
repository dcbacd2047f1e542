"""Trains compressed models, and any others, as the paper does: fine-tuning, layer-wise tuning, distillation.

What needs packages that only training needs is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mlpfusion.tune.config import Finetune as Finetune
from mlpfusion.tune.config import Lora as Lora

if TYPE_CHECKING:
    from mlpfusion.tune.distill import Distill as Distill
    from mlpfusion.tune.distill import distill as distill
    from mlpfusion.tune.finetune import finetune as finetune

_LAZY = {
    "Distill": "mlpfusion.tune.distill",
    "distill": "mlpfusion.tune.distill",
    "finetune": "mlpfusion.tune.finetune",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)

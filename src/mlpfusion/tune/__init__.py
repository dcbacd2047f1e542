"""Training, as in the paper: fine-tuning, layer-wise tuning, distillation."""

from mlpfusion.options.training import Finetune as Finetune
from mlpfusion.options.training import Lora as Lora
from mlpfusion.tune.distill import Distill as Distill
from mlpfusion.tune.distill import distill as distill
from mlpfusion.tune.finetune import finetune as finetune

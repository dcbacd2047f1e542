"""A stock checkpoint of transformers, which this package has no part in any more."""

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.save import save_model
from mlpfusion.export.fresh import outputs_of
from mlpfusion.export.target import ExportWork, Target, first_output
from mlpfusion.kinds.stock.form import StockForm


def _write(model: PreTrainedModel, work: ExportWork, folder: Path) -> None:
    save_model(model, work.source.folder, folder)


def _found(work: ExportWork, folder: Path) -> Tensor:
    return outputs_of("plain_transformers", folder, work.compared)


def _refusal(config: PreTrainedConfig, form: StockForm) -> str | None:
    return form.reason


TARGET = Target("hf", "transformers", _write, first_output, _found, _refusal, keeps_dtype=True)

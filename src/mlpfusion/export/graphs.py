"""Graphs of ONNX and OpenVINO, made by the exporters of transformers. Layers may have different widths."""

import importlib
import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import copy_carried
from mlpfusion.errors import REFUSALS, InputError, one_line
from mlpfusion.export.fresh import outputs_of
from mlpfusion.export.target import ExportWork, Target, first_output
from mlpfusion.extras import ONNX, OPENVINO
from mlpfusion.kinds.stock.entries import set_entries


def exporter_module(kind: str) -> Any:
    """The module of transformers' exporter of one kind. Raises `InputError` for an older transformers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the engines import
            return importlib.import_module(f"transformers.exporters.exporter_{kind}")
    except ModuleNotFoundError as error:
        raise InputError("`to` needs transformers 5.23 or newer for graphs: pip install -U transformers") from error


def write_graph(
    exporter: Any, config: Any, model: PreTrainedModel, inputs: dict[str, Tensor], source: Path, folder: Path
) -> None:
    """Writes the graph of `model`, traced with `inputs`, and the tokenizer and the like of its checkpoint `source`.

    Raises `InputError` for a model that the exporter cannot trace or put into words of its target.
    """
    set_entries(model, {}, None)  # a graph needs no key: the widths are in it
    # What the exporters print of their steps is no result, what they warn of is theirs to mend, and of a graph that
    # cannot be traced torch prints all.
    with redirect_stdout(sys.stderr), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = exporter.export(model, inputs, config=config)
        except REFUSALS as error:
            said = f"{type(exporter).__name__} says: {one_line(error)}"
            raise InputError(f"`to` must name a form that fits the model, {said}") from error
        graph.save_pretrained(folder)
    copy_carried(source, folder)


@dataclass(frozen=True)
class _Graph:
    """A kind of graph: the module of its exporter, the names in it, and the script that runs it."""

    module: str
    exporter: str
    config: str
    runner: str

    def write(self, model: PreTrainedModel, work: ExportWork, folder: Path) -> None:
        """Writes the graph for batches of any size and length."""
        module = exporter_module(self.module)
        exporter, config = getattr(module, self.exporter)(), getattr(module, self.config)(dynamic=True)
        write_graph(exporter, config, model, work.traced, work.source.folder, folder)

    def found(self, work: ExportWork, folder: Path) -> Tensor:
        """The first output of the graph."""
        return outputs_of(self.runner, folder, work.compared)


_ONNX = _Graph("onnx", "OnnxExporter", "OnnxConfig", "onnx_runtime")
_OPENVINO = _Graph("openvino", "OpenVINOExporter", "OpenVINOConfig", "open_vino")
TARGETS = (
    Target("onnx", "ONNX Runtime", _ONNX.write, first_output, _ONNX.found, needs=ONNX),
    Target("openvino", "OpenVINO", _OPENVINO.write, first_output, _OPENVINO.found, needs=OPENVINO),
)

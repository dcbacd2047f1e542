"""A program of ExecuTorch for CPUs (XNNPACK), made by the exporter of transformers. Layers may have different widths.

ExecuTorch plans the memory of a program before it runs, so it has to know the most texts and tokens of a batch.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import GELUTanh

from mlpfusion.export.fresh import outputs_of
from mlpfusion.export.graphs import exporter_module, write_graph
from mlpfusion.export.target import ExportWork, Target, first_output
from mlpfusion.extras import EXECUTORCH

# The logits of so many tokens are 200 MB for a vocabulary of 50,000; encoders of sentences read 256 tokens.
MOST_TEXTS, MOST_TOKENS = 4, 256
_TEXTS = {"input_ids", "attention_mask", "decoder_input_ids"}


def _write(model: PreTrainedModel, work: ExportWork, folder: Path) -> None:
    """Writes the program: for texts of up to those sizes, for other inputs of the shapes that were traced."""
    module, inputs, shapes = exporter_module("executorch"), work.traced, None
    if inputs.keys() <= _TEXTS:
        inputs, shapes = _largest_texts(model.config, inputs)
    # Whether a size may be 1 or the largest is looked at when the program runs, not when it is traced.
    config = module.ExecutorchConfig(dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)
    _spell_out_gelu(model)
    write_graph(module.ExecutorchExporter(), config, model, inputs, work.source.folder, folder)


def _largest_texts(
    config: PreTrainedConfig, inputs: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """The texts, repeated to the largest batch of a program, and its sizes.

    Smaller ones do not do: the memory of an `arange` of ExecuTorch 1.5 has the size that was traced.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    tokens = MOST_TOKENS if positions is None else min(positions, MOST_TOKENS)
    sizes = {
        0: torch.export.Dim("texts", min=1, max=MOST_TEXTS),
        1: torch.export.Dim("tokens", min=1, max=tokens),
    }
    largest = {name: ids.repeat(MOST_TEXTS, tokens)[:MOST_TEXTS, :tokens] for name, ids in inputs.items()}
    return largest, dict.fromkeys(inputs, sizes)


def _spell_out_gelu(model: PreTrainedModel) -> None:
    """Computes GELU's approximation by tanh from tanh. Changes the model.

    XNNPACK's half of ExecuTorch 1.5 makes the exact GELU of it (pytorch/executorch#22851), off by up to 5e-4.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, GELUTanh):
            model.set_submodule(path, GELUTanh(use_gelu_tanh_python=True))


def _found(work: ExportWork, folder: Path) -> Tensor:
    return outputs_of("execu_torch", folder, work.compared)


TARGET = Target("executorch", "ExecuTorch", _write, first_output, _found, needs=EXECUTORCH)

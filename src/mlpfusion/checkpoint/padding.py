"""One padding id in tokenizer, config and generation config.

Decoder classifiers read the last token before the padding, so a second id would change their
scores.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import first_position
from mlpfusion.checkpoint.tokenizer import load_tokenizer, read_tokenizer


def agree_on_padding(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Copies `config` with the padding id of `tokenizer`, in nested configs too.

    Models that count positions from above their padding id (RoBERTa) keep their id: positions were
    trained with it, and their heads do not use it.
    """
    copied = type(config).from_dict(config.to_dict())
    own, size = getattr(config, "pad_token_id", None), getattr(config.get_text_config(), "vocab_size", 0)
    usable = isinstance(own, int) and 0 <= own < size
    if usable and own != tokenizer.pad_token_id and first_position(config) > 0:
        return copied
    for part in _parts(copied):
        part.pad_token_id = tokenizer.pad_token_id
    return copied


def save_padding(model: PreTrainedModel, folder: Path) -> None:
    """Writes the padding token of the training into a saved tokenizer without one.

    A classifier's tokenizer is set to pad on the right; config and generation config get the
    padding id. Files that agree already keep their bytes. `folder` must hold the saved `model`.
    """
    own, used = read_tokenizer(folder), load_tokenizer(folder, model.config)
    changes: dict[str, Any] = {} if own.pad_token else {"pad_token": used.pad_token}
    if type(model).__name__.endswith("ForSequenceClassification") and own.padding_side != "right":
        changes["padding_side"] = "right"
    _change(folder / "tokenizer_config.json", changes)
    _change(folder / "config.json", _padding_of(model.config, json.loads((folder / "config.json").read_text("utf-8"))))
    if (folder / "generation_config.json").is_file():
        _change(folder / "generation_config.json", {"pad_token_id": used.pad_token_id})


def _padding_of(config: PreTrainedConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Entries of the config `data` with another padding id than `config`, corrected."""
    token = getattr(config.get_text_config(), "pad_token_id", None)
    nested = {name: value for name, value in data.items() if isinstance(value, dict) and "pad_token_id" in value}
    changes = {name: value | _padding_of(config, value) for name, value in nested.items()}
    return changes | ({"pad_token_id": token} if data.get("pad_token_id", token) != token else {})


def _change(file: Path, values: dict[str, Any]) -> None:
    data = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if data | values != data:
        file.write_text(json.dumps(data | values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and all nested configs with a padding id."""
    nested = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    text = [config.get_text_config()]
    inner = [part for value in nested for part in _parts(value)]
    return [config, *(part for part in (*text, *inner) if part is not config and hasattr(part, "pad_token_id"))]

"""What a calibration sees without any texts: `DataFree`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.tokenizer import load_tokenizer
from mlpfusion.data.unlabelled.calibration_texts import calibration_window, check_samples, window_batches
from mlpfusion.data.unlabelled.own_text import own_text
from mlpfusion.data.unlabelled.random_tokens import RandomTokens
from mlpfusion.data.unlabelled.windows import is_causal
from mlpfusion.progress import Progress

# In place of the name of a file.
_RANDOM, _WRITTEN = "random tokens", "text that the model wrote"


@dataclass(frozen=True)
class DataFree:
    """Text that a language model writes itself (`own_text`), random tokens for any other model (`RandomTokens`).

    `window` is the length of the written texts in tokens.
    """

    num_samples: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def batches(self, folder: Path, model: PreTrainedModel, seed: int, progress: Progress | None = None) -> list[Batch]:
        """Makes batches for `model` with the tokenizer in `folder`.

        Raises `InputError` if `folder` has no tokenizer, or the tokenizer knows special tokens only.
        """
        length = calibration_window(self.window, folder, model)
        if length is None:
            return RandomTokens(self.num_samples).batches(folder, model.config, seed)
        tokenizer = load_tokenizer(folder, model.config)
        return window_batches(own_text(model, tokenizer, self.num_samples, length, seed, progress))

    def record(self, model: PreTrainedModel) -> dict[str, Any]:
        """Origin of the batches, for a record."""
        return {"file": _WRITTEN if is_causal(model) else _RANDOM}


def is_data_free(calibration: Mapping[str, Any]) -> bool:
    """Returns True if a record of a calibration is that of a `DataFree`, and of no file of that name.

    >>> is_data_free({"file": "random tokens", "column": None}), is_data_free({"file": "random tokens"})
    (False, True)
    """
    return calibration.get("file") in (_RANDOM, _WRITTEN) and "column" not in calibration  # a file names a column

"""What a calibration sees without any texts: `DataFree`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.tokenizer import load_tokenizer
from mlpfusion.data.unlabelled.calibration_texts import (
    PreparedCalibration,
    calibration_window,
    check_samples,
    window_batches,
)
from mlpfusion.data.unlabelled.own_text import own_text
from mlpfusion.data.unlabelled.random_tokens import RandomTokens, ordinary_tokens
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

    def prepare(self, folder: Path, model: PreTrainedModel, seed: int) -> PreparedCalibration:
        """Makes the random tokens; a language model writes its text later, when it has weights.

        Raises `InputError` if `folder` has no tokenizer, if the tokenizer knows special tokens only, and for a window
        that the model cannot take.
        """
        length = calibration_window(self.window, folder, model)
        if length is None:
            drawn = RandomTokens(self.num_samples).batches(folder, model.config, seed)
            return PreparedCalibration(lambda _model, _progress: drawn, {"file": _RANDOM})
        tokenizer = load_tokenizer(folder, model.config)
        ordinary_tokens(tokenizer, model.config)

        def write(model: PreTrainedModel, progress: Progress) -> list[Batch]:
            return window_batches(own_text(model, tokenizer, self.num_samples, length, seed, progress))

        return PreparedCalibration(write, {"file": _WRITTEN})


def is_data_free(calibration: Mapping[str, Any]) -> bool:
    """Returns True if a record of a calibration is that of a `DataFree`, and of no file of that name.

    >>> is_data_free({"file": "random tokens", "column": None}), is_data_free({"file": "random tokens"})
    (False, True)
    """
    return calibration.get("file") in (_RANDOM, _WRITTEN) and "column" not in calibration  # a file names a column

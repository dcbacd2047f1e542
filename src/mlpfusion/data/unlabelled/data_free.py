"""What a calibration sees without any texts: `DataFree`, and its batches in Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.tokenizer import load_tokenizer
from mlpfusion.data.unlabelled.calibration_texts import (
    PreparedCalibration,
    calibration_window,
    check_samples,
    window_batches,
)
from mlpfusion.data.unlabelled.own_text import own_text
from mlpfusion.data.unlabelled.random_tokens import ordinary_tokens, random_texts
from mlpfusion.progress import Progress

# In place of the name of a file.
_RANDOM, _WRITTEN = "random tokens", "text that the model wrote"


@dataclass(frozen=True)
class DataFree:
    """Batches made by `data_free_batches`; all that can be checked is checked before the weights are there."""

    num_samples: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def prepare(self, folder: Path, model: PreTrainedModel, seed: int) -> PreparedCalibration:
        """Makes the random tokens; a language model writes its text later, when it has weights.

        Raises `InputError` if `folder` has no tokenizer, if the tokenizer knows special tokens only, and for a window
        that the model cannot take.
        """
        tokenizer = load_tokenizer(folder, model.config)
        length = calibration_window(self.window, tokenizer, model)
        ordinary_tokens(tokenizer, model.config)

        def made(model: PreTrainedModel, progress: Progress) -> list[Batch]:
            return data_free_batches(
                model, tokenizer, self.num_samples, window=self.window, seed=seed, progress=progress
            )

        return PreparedCalibration(made, {"file": _RANDOM if length is None else _WRITTEN})


def data_free_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int = 256,
    *,
    window: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> list[Batch]:
    """Makes up `num_samples` texts to calibrate `model` on where there is none, in batches as `compress` takes them.

    A language model (a class such as `LlamaForCausalLM`) writes them itself, `window` tokens each (default 128), every
    token drawn by its probability: on SmolLM2 nearer to real text than old books are. Any other model gets sequences
    of 4 to 39 random tokens, common ones more often. The same seed gives the same batches. Raises `InputError` for a
    number below 1, a window that the model cannot take, and a tokenizer of special tokens only.

    >>> from tokenizers import Tokenizer, models
    >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({f"word{number}": number for number in range(30)}, unk_token="word1"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word0")
    >>> model = BertModel(BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=1, intermediate_size=48))
    >>> [len(batch["input_ids"]) for batch in data_free_batches(model, tokenizer, 40)]
    [32, 8]
    """
    check_samples(num_samples)
    length = calibration_window(window, tokenizer, model)
    if length is None:
        return random_texts(tokenizer, model.config, num_samples, seed)
    return window_batches(own_text(model, tokenizer, num_samples, length, seed, progress))


def is_data_free(calibration: Mapping[str, Any]) -> bool:
    """Returns True if a record of a calibration is that of a `DataFree`, and of no file of that name.

    >>> is_data_free({"file": "random tokens", "column": None}), is_data_free({"file": "random tokens"})
    (False, True)
    """
    return calibration.get("file") in (_RANDOM, _WRITTEN) and "column" not in calibration  # a file names a column

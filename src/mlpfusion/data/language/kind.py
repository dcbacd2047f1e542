"""Language modelling: plain texts packed into windows, perplexity."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import MAX_LENGTH
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import model_class
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.files.folder import data_folder
from mlpfusion.data.files.hub import PREFIX
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.language.causal import (
    check_causal,
    check_head_stored,
    check_loss_is_of_the_next,
    check_sees_no_future,
)
from mlpfusion.data.language.labels import PadRight
from mlpfusion.data.language.task import LanguageData, LanguageTask, Texts
from mlpfusion.data.language.tokens import TokenKind
from mlpfusion.data.task import Parts, TaskData
from mlpfusion.data.unlabelled.windows import token_windows, window_length
from mlpfusion.errors import InputError
from mlpfusion.options.task import TaskOptions

_USED = ("task", "train", "text_column", "max_length")


class LanguageModelling(TokenKind):
    """Tasks of predicting the next token."""

    def load(self, task: LanguageTask, options: TaskOptions, validation: str | None, parts: Parts) -> LanguageData:
        """Reads the texts of `task`, or of your own files.

        Raises `InputError` for options of other kinds, a second text column, and a missing file.
        """
        self.check_options(task, options, _USED)
        if len(options.text_column) > 1:
            raise InputError(f"`text_column` must name one column for {task.name}, got {','.join(options.text_column)}")
        files = _files(task, options.train, validation, parts)
        column = next(iter(options.text_column), None)
        splits = {name: _texts(name, file, column) for name, file in files.items()}
        source = ", ".join(short_name(file) for file in files.values())
        return TaskData(task, splits.pop("train", Texts(())), splits, source)

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of the checkpoint."""
        return model_class(config)

    def config(self, checkpoint: Checkpoint, task: LanguageTask) -> PreTrainedConfig:
        """The config as it is. Raises `InputError` unless the checkpoint is a causal language model with its head."""
        check_causal(checkpoint.empty())
        check_head_stored(checkpoint)
        return checkpoint.training_config

    def check_model(self, model: PreTrainedModel, task: LanguageTask) -> None:
        """Raises `InputError` unless `model` predicts a token from those before it alone, and trains on that."""
        check_causal(model)
        check_sees_no_future(model)
        check_loss_is_of_the_next(model)

    def encode(
        self,
        data: LanguageData,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig | None,
        max_length: int | None,
    ) -> EncodedTask:
        """Packs the texts of every split into windows of `max_length` tokens, as `token_windows` does.

        The default is `MAX_LENGTH`, or the limit of the model if that is smaller. What is left of the training texts
        after the last whole window is not trained on. Raises `InputError` for a length that the model cannot take, and
        for a split with less than a window.
        """
        config = PreTrainedConfig() if config is None else config
        length = training_window(max_length, tokenizer, config)
        encoded = {
            name: packed(split.texts, tokenizer, config, length, field=name) for name, split in data.read.items()
        }
        train = encoded.pop("train", EncodedExamples([]))
        whole = train.subset([index for index, tokens in enumerate(train.lengths) if tokens == length])
        return EncodedTask(data.task, whole, encoded, data.source, PadRight(tokenizer), length)


def _files(task: LanguageTask, train: str | None, validation: str | None, parts: Parts) -> dict[str, str]:
    """The file or data set of every split."""
    own = {"train": train} | ({} if validation is None else {"validation": validation})
    names = parts.names(task.splits if validation is None else ("validation",))
    files = {name: own.get(name) or _own_file(task, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise InputError(f"`{missing[0]}` must be given for {task.name}, which has no texts of its own")
    return {name: file for name, file in files.items() if file is not None}


def _own_file(task: LanguageTask, split: str) -> str | None:
    """A split of a task with texts of its own, in the folder in MLPFUSION_DATA, else of the Hub."""
    if task.hub is None:
        return None
    folder = data_folder(task.folder)
    if folder is None:
        return PREFIX + ":".join((*task.hub, split))
    return str(Path(folder, f"{split}.txt.gz"))


def _texts(split: str, file: str, column: str | None) -> Texts:
    if file.startswith(PREFIX) and column is None:
        column = "text"  # of the data sets in the table
    return Texts(tuple(read_texts(file, column=column, field=split)))


def training_window(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Tokens of a window to train on: `asked`, else the smaller of `MAX_LENGTH` and the limit of the model.

    Raises `InputError`, with the name `max_length`, as `window_length` does.
    """
    return window_length(asked, tokenizer, config, usual=MAX_LENGTH, field="max_length")


def packed(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, length: int, field: str
) -> EncodedExamples:
    """Windows of `length` tokens. All tokens but the first of a window are predicted; the model shifts the labels.

    Raises `InputError`, with the name `field`, for texts shorter than a window.
    """
    windows = token_windows(texts, tokenizer, config, window=length, field=field, length_field="max_length")
    items = [window.input_ids.tolist() for window in windows]
    return EncodedExamples([{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in items])

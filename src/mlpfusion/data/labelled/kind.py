"""Classification and regression: a head for sequences, one label a text or pair."""

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import longest_text, text_length
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.tokenizer import tokenized, warn_if_cut
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.labelled.glue import CustomTask, LabelledTask
from mlpfusion.data.labelled.heads import check_head, check_order, classifier_class, has_head, in_order_of_head
from mlpfusion.data.labelled.load import LabelledData, load_files, load_glue
from mlpfusion.data.task import Parts
from mlpfusion.data.task_kind import SEQUENCE_CLASSIFIER, ModelNames, TaskKind
from mlpfusion.errors import InputError
from mlpfusion.options.fields import changed
from mlpfusion.options.task import TaskOptions


class Labelled(TaskKind):
    """Tasks of a class or a number a text."""

    def names(self, config: PreTrainedConfig) -> ModelNames:
        """Those of sequence classification."""
        return SEQUENCE_CLASSIFIER

    def load(self, task: LabelledTask, options: TaskOptions, validation: str | None, parts: Parts) -> LabelledData:
        """Reads a task of GLUE. Raises `InputError` for columns, which it has itself."""
        for name in ("text_column", "label_column", "regression"):
            value = changed(options).get(name)
            if value is not None:
                given = ",".join(value) if isinstance(value, tuple) else value
                raise InputError(
                    f"`{name}` must be left out with `task`, got {given}: {task.name} has its own columns and labels"
                )
        self.check_options(task, options, ("task", "train", "new_head", "max_length"))
        return load_glue(task, train=options.train, validation=validation, parts=parts)

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """Class of transformers for sequence classification."""
        return classifier_class(config)

    def config(self, checkpoint: Checkpoint, task: LabelledTask) -> PreTrainedConfig:
        """The config with the outputs and label names of `task`.

        Raises `InputError` for a model type without a head for sequences, and for a trained head of another size, with
        other classes or in another order (`fitted` reorders the data).
        """
        config = type(checkpoint.training_config).from_dict(checkpoint.training_config.to_dict())
        if has_head(checkpoint, classifier_class(config)):
            check_order(task, config)
        if config.is_encoder_decoder and config.pad_token_id == config.eos_token_id:
            raise InputError(
                "the tokenizer must have a padding token that is not its end token, where the head reads, "
                f"got {checkpoint.tokenizer.pad_token!r}; name another `pad_token` in tokenizer_config.json"
            )
        config.num_labels = task.num_labels
        config.problem_type = "regression" if task.is_regression else "single_label_classification"
        if task.label_names:
            config.id2label = dict(enumerate(task.label_names))
            config.label2id = {name: index for index, name in enumerate(task.label_names)}
        return config

    def check_model(self, model: PreTrainedModel, task: LabelledTask) -> None:
        """Raises `InputError` unless `model` is a sequence classifier with the outputs of `task`."""
        check_head(model, task.num_labels)

    def fitted(self, data: LabelledData, checkpoint: Checkpoint) -> LabelledData:
        """The classes in the order of a trained head. Raises `InputError` for one with other classes."""
        if has_head(checkpoint, classifier_class(checkpoint.training_config)):
            return in_order_of_head(data, checkpoint.training_config)
        return data

    def encode(
        self,
        data: LabelledData,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig | None,
        max_length: int | None,
    ) -> EncodedTask:
        """Cuts texts at `max_length` tokens, the longer one of a pair first.

        The default is `MAX_LENGTH`, or the limit of the model if that is smaller (a warning if a text was cut by it).
        Raises `InputError` for a `max_length` above that limit, and a text that the tokenizer refuses.
        """
        length = text_length(max_length, longest_text(tokenizer, config))
        splits = data.read
        items = {name: tokenized(split.texts, tokenizer, config, max_length=length) for name, split in splits.items()}
        if max_length is None:
            pairs = [pair for name in splits for pair in zip(splits[name].texts, items[name], strict=True)]
            warn_if_cut(pairs, tokenizer, length)
        encoded = {
            name: EncodedExamples(
                [item | {"labels": label} for item, label in zip(items[name], split.labels, strict=True)]
            )
            for name, split in splits.items()
        }
        train, collate = encoded.pop("train", EncodedExamples([])), DataCollatorWithPadding(tokenizer)
        return EncodedTask(data.task, train, encoded, data.source, collate, length)

    def choices(self, task: LabelledTask) -> tuple[str, ...]:
        """All metrics of `task`."""
        return task.metrics

    def evaluation_batch(self, batch_size: int) -> int:
        """Twice as many: without gradients they fit."""
        return 2 * batch_size

    def kept(self, logits: Any, labels: Tensor, *, shifted: bool) -> Tensor:
        """The logits; encoder-decoders give hidden states beside them."""
        return logits[0] if isinstance(logits, tuple) else logits

    def score(self, task: LabelledTask, kept: NDArray, labels: NDArray) -> dict[str, float]:
        """The metrics of `task`, from logits of shape (samples, num_labels) and labels (samples,)."""
        from mlpfusion.data.labelled.metrics import score  # scikit-learn, which `compress` does not need

        return score(task, kept, labels)

    def answer_logits(self, logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
        """All of them."""
        return logits


def load_custom(options: TaskOptions, validation: str | None, parts: Parts) -> LabelledData:
    """Reads your own labelled files. Raises `InputError` if one or a column is missing, or a third column given.

    The classes are those of the training file, or without one those of `validation`.
    """
    for name in ("source_column", "target_column", "group_column", "segment_ids"):
        if name in changed(options):
            raise InputError(f"`{name}` must be left out without `task`, got {changed(options)[name]}")
    columns = custom_task(options.text_column, options.label_column, regression=options.regression)
    files = {"train": options.train, "validation": validation}
    needed = parts.names(("validation",))
    first = options.train or validation
    if columns is None or first is None or not all(files[name] for name in needed):
        named = ", ".join(f"`{name}`" for name in (*needed, "text_column"))
        raise InputError(f"`task` must be given, or {named} and `label_column`")
    found = load_files(first, validation if parts.reported else None, columns)
    if parts.train:
        return found
    source = found.source if options.train else short_name(first)
    return replace(found, train=found.train.subset(()), source=source)


def custom_task(text_column: tuple[str, ...], label_column: str | None, *, regression: bool) -> CustomTask | None:
    """The columns, None if not all are named. Raises `InputError` for more than two of text."""
    if len(text_column) > 2:
        raise InputError(f"`text_column` must name one column or two, got {', '.join(text_column)}")
    return CustomTask(text_column, label_column, regression) if text_column and label_column else None

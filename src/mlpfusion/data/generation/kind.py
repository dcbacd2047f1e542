"""Generation: a model learns to write a text for a source, and is scored on what it writes."""

from dataclasses import replace
from typing import cast

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import model_class
from mlpfusion.data.encode import EncodedExamples
from mlpfusion.data.files.folder import data_folder
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.generation.chats import ChatExamples
from mlpfusion.data.generation.encode import (
    EncodedGeneration,
    chat_entries,
    chat_pairs,
    encoder,
    longest_pair,
)
from mlpfusion.data.generation.entries import GenerationExamples, Pair
from mlpfusion.data.generation.rows import GenerationColumns, read_generation
from mlpfusion.data.generation.task import GenerationTask
from mlpfusion.data.generation.webnlg import SEGMENT_TOKENS, read_webnlg
from mlpfusion.data.language.causal import (
    check_causal,
    check_head_stored,
    check_loss_is_of_the_next,
    check_sees_no_future,
)
from mlpfusion.data.language.labels import PadRight
from mlpfusion.data.language.tokens import TokenKind
from mlpfusion.data.task import Parts, TaskData, unused_option
from mlpfusion.errors import InputError
from mlpfusion.extras import GENERATION_SCORES
from mlpfusion.options.task import TaskOptions

Split = GenerationExamples | ChatExamples
GenerationData = TaskData[GenerationTask, Split]
_USED = ("task", "train", "source_column", "target_column", "group_column", "max_length")
_USED_OF_WEBNLG = ("task", "segment_ids", "max_length")


class Generation(TokenKind):
    """Tasks of writing a text for a source, by a causal model or one with encoder and decoder."""

    def new_tokens(self, task: GenerationTask) -> tuple[str, ...]:
        """Those of the linearisation of WebNLG."""
        return task.added_tokens

    def load(self, task: GenerationTask, options: TaskOptions, validation: str | None, parts: Parts) -> GenerationData:
        """Reads WebNLG, or your own tables. Raises `InputError` for options of other kinds, and a missing file."""
        GENERATION_SCORES.check()
        self.check_options(task, options, _USED_OF_WEBNLG if task.folder else _USED)
        if task.folder:
            if validation is not None:
                raise unused_option(task, "validation", validation)
            return _webnlg(task, options, parts)
        given = {"train": options.train, "validation": validation}
        needed = parts.names(("validation",))
        files = {name: file for name in needed if (file := given[name])}
        if len(files) < len(needed):
            raise InputError(f"{' and '.join(f'`{name}`' for name in needed)} must be given for {task.name}")
        splits = {name: read_generation(file, name, _columns(options)) for name, file in files.items()}
        if len(set(map(type, splits.values()))) > 1:
            raise InputError("`train` and `validation` must both be chats or both be tables, got one of each")
        source = ", ".join(map(short_name, files.values()))
        return TaskData(task, splits.pop("train", GenerationExamples(())), splits, source)

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of the checkpoint."""
        return model_class(config)

    def config(self, checkpoint: Checkpoint, task: GenerationTask) -> PreTrainedConfig:
        """The config as it is. Raises `InputError` unless the checkpoint writes texts, with its head."""
        check_writes(checkpoint.empty())
        check_head_stored(checkpoint)
        return checkpoint.training_config

    def check_model(self, model: PreTrainedModel, task: GenerationTask) -> None:
        """Raises `InputError` unless `model` predicts a token from those before it alone, and trains on that."""
        check_writes(model)
        if not model.config.is_encoder_decoder:
            check_sees_no_future(model)
            check_loss_is_of_the_next(model)

    def encode(
        self,
        data: GenerationData,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig | None,
        max_length: int | None,
    ) -> EncodedGeneration:
        """One example a source and text; nothing is cut.

        Raises `InputError` for one that is longer than `max_length` or what the model takes, and for a tokenizer
        without the end token, or without a chat template that is needed.
        """
        config = PreTrainedConfig() if config is None else config
        splits = data.read
        is_chat = any(isinstance(split, ChatExamples) for split in splits.values())
        made = encoder(data.task, tokenizer, config, is_chat=is_chat)
        limit = longest_pair(max_length, tokenizer, config)
        encoded = {name: made.examples(_pairs(split, tokenizer), limit, name) for name, split in splits.items()}
        entries = {name: _entries(split, tokenizer) for name, split in data.evaluation.items()}
        prompts = {name: made.prompts(split) for name, split in entries.items() if name in data.task.written}
        stops = {made.end, *cast("list[int]", tokenizer.convert_tokens_to_ids(list(data.task.stops)))}
        length = limit or max(max(examples.lengths) for examples in encoded.values())
        return EncodedGeneration(
            data.task,
            encoded.pop("train", EncodedExamples([])),
            encoded,
            data.source,
            PadRight(tokenizer),
            length,
            tokenizer=tokenizer,
            prompts=prompts,
            stops=tuple(sorted(stops)),
        )


def _webnlg(task: GenerationTask, options: TaskOptions, parts: Parts) -> GenerationData:
    folder = data_folder(task.folder)
    if folder is None:
        # Its one data set with all that is needed is made by a program, and `datasets` runs none since version 4.
        raise InputError(
            f"`MLPFUSION_DATA` must name a folder with {task.folder}/{{train,validation,test}}.jsonl.gz, as "
            "docs/jobs/tune.md says: the Hub has no WebNLG 2017 without a loading script, got no folder"
        )
    source = f"{task.folder} of MLPFUSION_DATA"
    if options.segment_ids:
        task, source = replace(task, segments=SEGMENT_TOKENS), f"{source}, with segment ids"
    splits: dict[str, Split] = {name: read_webnlg(folder, name) for name in parts.names(task.splits)}
    return TaskData(task, splits.pop("train", GenerationExamples(())), splits, source)


def check_writes(model: PreTrainedModel) -> None:
    """Raises `InputError` for a model that writes no texts, such as an encoder."""
    if type(model).__name__ not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        check_causal(model)


def _columns(options: TaskOptions) -> GenerationColumns | None:
    """The columns that were named; None for none, where a file may be one of chats."""
    if options.source_column is None and options.target_column is None and options.group_column is None:
        return None
    usual = GenerationColumns()
    return GenerationColumns(
        options.source_column or usual.source, options.target_column or usual.target, options.group_column
    )


def _pairs(split: Split, tokenizer: PreTrainedTokenizerBase) -> tuple[Pair, ...]:
    return chat_pairs(split, tokenizer) if isinstance(split, ChatExamples) else split.pairs()


def _entries(split: Split, tokenizer: PreTrainedTokenizerBase) -> GenerationExamples:
    return chat_entries(split, tokenizer) if isinstance(split, ChatExamples) else split

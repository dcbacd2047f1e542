"""Sources and their texts as token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import longest_text
from mlpfusion.checkpoint.tokenizer import special_frame, token_stream
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.generation.chats import MESSAGES, ChatExamples, Message
from mlpfusion.data.generation.entries import Entry, GenerationExamples, Pair, merged
from mlpfusion.data.generation.segments import check_takes_segments, segment_ids
from mlpfusion.data.generation.task import GenerationTask
from mlpfusion.data.language.labels import NOT_PREDICTED
from mlpfusion.data.task import unused_option
from mlpfusion.errors import InputError, one_line
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.fields import changed

SEPARATOR = "\n"  # between a source of your own and its text, for a model that reads both as one text


@dataclass(frozen=True)
class Prompts:
    """What the model writes to in one split: token ids of the sources, and the entries with their references.

    `segments`: segment ids of the sources, if the model gets any.
    """

    ids: tuple[Sequence[int], ...]
    entries: GenerationExamples
    segments: tuple[Sequence[int], ...] | None = None


@dataclass(frozen=True)
class EncodedGeneration(EncodedTask):
    """A tokenized generation task: pairs of source and text as examples, `prompts` of the reported splits.

    A generated text ends before the first of `stops`.
    """

    task: GenerationTask
    tokenizer: Any = None
    prompts: Mapping[str, Prompts] = field(default_factory=dict)
    stops: tuple[int, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def added_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that the task adds."""
        return tuple(self.tokenizer.convert_tokens_to_ids(list(self.task.added_tokens)))


def with_decoding(data: EncodedTask, decoding: Decoding) -> EncodedTask:
    """The task with these options of decoding. Raises `InputError` for any where no text is written."""
    if isinstance(data, EncodedGeneration):
        return replace(data, decoding=decoding)
    for name, value in changed(decoding).items():
        raise unused_option(data.task, name, value)
    return data


@dataclass(frozen=True)
class Encoder:
    """Makes token ids of sources and texts for one model.

    A source stands between the ids `before` and `after`; a causal model, which reads source and text as one, finds
    `separator` between them and nothing after the source. `end` is the token after a text. A chat brings its own
    special tokens. `segments` are the tokens that open segments; a model gets segment ids if there are any.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    before: Sequence[int]
    after: Sequence[int]
    separator: str
    end: int
    segments: frozenset[int] = frozenset()

    def source(self, text: str) -> list[int]:
        """Token ids of a source."""
        return [*self.before, *token_stream(text + self.separator, self.tokenizer, self.config), *self.after]

    def target(self, text: str) -> list[int]:
        """Token ids of a text to write, with the end token."""
        ids = token_stream(text, self.tokenizer, self.config)
        return ids if ids[-1:] == [self.end] else [*ids, self.end]

    def example(self, pair: Pair) -> dict[str, Any]:
        """One example; the loss is that of the text and its end."""
        source, target = self.source(pair.source), self.target(pair.reference)
        if self.config.is_encoder_decoder:
            return {"input_ids": source, "attention_mask": [1] * len(source), "labels": target}
        ids = source + target
        labels = [NOT_PREDICTED] * len(source) + target
        item = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        return item | {"token_type_ids": segment_ids(ids, self.segments)} if self.segments else item

    def prompts(self, entries: GenerationExamples) -> Prompts:
        """All sources of a split."""
        ids = tuple(self.source(entry.source) for entry in entries.entries)
        segments = tuple(segment_ids(one, self.segments) for one in ids) if self.segments else None
        return Prompts(ids, entries, segments)

    def examples(self, pairs: Sequence[Pair], limit: int | None, split: str) -> EncodedExamples:
        """All pairs of a split. Raises `InputError` for one that is longer than `limit` tokens."""
        items = [self.example(pair) for pair in pairs]
        longest = max(range(len(items)), key=lambda number: len(items[number]["input_ids"]))
        length = len(items[longest]["input_ids"])
        if limit is not None and length > limit:
            what = "source" if self.config.is_encoder_decoder else "source with its text"
            raise InputError(
                f"`{split}` must hold no {what} of more than {limit} tokens, `max_length` or what the model takes, "
                f"got {length} for {pairs[longest].source[:60]!r}"
            )
        return EncodedExamples(items)


def encoder(
    task: GenerationTask, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, is_chat: bool
) -> Encoder:
    """The encoder for a model of `config`.

    Raises `InputError` for a tokenizer without an end token, and a model that takes no segment ids where there are any.
    """
    end = end_token(task, tokenizer)
    if is_chat:
        return Encoder(tokenizer, config, (), (), "", end)
    before, after = special_frame(tokenizer)
    separator = "" if config.is_encoder_decoder or task.folder else SEPARATOR
    after = after if config.is_encoder_decoder else ()
    if task.segments:
        check_takes_segments(config)
    segments = frozenset(cast("list[int]", tokenizer.convert_tokens_to_ids(list(task.segments))))
    return Encoder(tokenizer, config, before, after, separator, end, segments)


def end_token(task: GenerationTask, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token after a text. Raises `InputError` for a tokenizer without one."""
    if task.end is not None:
        return cast("int", tokenizer.convert_tokens_to_ids(task.end))
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer must have an end token for {task.name}, got none; name an `eos_token` in "
            "tokenizer_config.json"
        )
    return cast("int", tokenizer.eos_token_id)


def longest_pair(max_length: int | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int | None:
    """Most tokens of an example: `max_length`, else what the model takes; None without any limit.

    Raises `InputError` for a `max_length` above that.
    """
    limit = longest_text(tokenizer, config)
    if max_length is None or (max_length >= 1 and (limit is None or max_length <= limit)):
        return max_length or limit
    allowed = "at least 1" if limit is None else f"between 1 and {limit}, what the model takes"
    raise InputError(f"`max_length` must be {allowed}, got {max_length}")


def chat_pairs(chats: ChatExamples, tokenizer: PreTrainedTokenizerBase) -> tuple[Pair, ...]:
    """Every turn of the assistant, with all that was said before it as its source: what a model is trained on."""
    turns = []
    for chat in chats.chats:
        messages = (*chat.prompt, Message("assistant", chat.answer))
        turns += [messages[: end + 1] for end, one in enumerate(messages) if end and one.role == "assistant"]
    return tuple(_rendered(messages, tokenizer) for messages in turns)


def chat_entries(chats: ChatExamples, tokenizer: PreTrainedTokenizerBase) -> GenerationExamples:
    """The last turns of the assistant, with their bare texts as references."""
    return merged(Entry(render(chat.prompt, tokenizer), (chat.answer,)) for chat in chats.chats)


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, answered: bool = False) -> str:
    """Text of a conversation by the tokenizer's chat template, up to where the assistant's turn begins.

    With `answered` that turn is the last of `messages`. Raises `InputError` without a template, and for messages that
    it refuses.
    """
    if tokenizer.chat_template is None:
        raise InputError(f"the tokenizer must have a chat template for a file with `{MESSAGES}`, it has none")
    told = [{"role": message.role, "content": message.content} for message in messages]
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=not answered))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InputError(f"`{MESSAGES}` must be such as the chat template takes: {one_line(error)}") from error


def _rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Pair:
    source, whole = render(messages[:-1], tokenizer), render(messages, tokenizer, answered=True)
    if not whole.startswith(source):
        raise InputError("the chat template must write a conversation the same with its last answer and without")
    return Pair(source, whole.removeprefix(source).rstrip())

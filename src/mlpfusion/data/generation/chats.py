"""Conversations: messages that end with the text to generate. A chat template is applied elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import Table, check_not_empty, column_value
from mlpfusion.data.generation.checked import text_value
from mlpfusion.data.generation.entries import Entry, GenerationExamples, merged
from mlpfusion.errors import InputError, shown

MESSAGES = "messages"  # the column of a conversation, as chat templates and fine-tuning services name it
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation: the messages before the answer, and the answer to generate."""

    prompt: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class ChatExamples:
    """The conversations of one split, in the order of the file."""

    chats: tuple[Chat, ...]

    def __len__(self) -> int:
        return len(self.chats)

    def entries(self, render: Callable[[tuple[Message, ...]], str]) -> GenerationExamples:
        """Entries with the rendered prompts as sources, neighbours of one prompt joined.

        `render` applies a chat template to the messages before the answer.

        >>> chats = ChatExamples((Chat((Message("user", "Hi"),), "Hello."),))
        >>> chats.entries(lambda messages: f"<{messages[-1].content}>").entries
        (Entry(source='<Hi>', references=('Hello.',), group=None),)
        """
        return merged(Entry(render(chat.prompt), (chat.answer,)) for chat in self.chats)


def chat_examples(table: Table, field: str) -> ChatExamples:
    """Conversations in the column `messages` of a table.

    Each is a list of {role, content}. Raises `InputError` for an empty table, a missing column, a
    role outside `ROLES`, a content of anything but text, further keys with a value, and messages
    that do not end with the assistant after at least one other.

    >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    >>> chat_examples(Table([Row({"messages": turns}, 1)], "a.jsonl"), "train").chats[0].answer
    'Hello.'
    """
    check_not_empty(table, field)
    return ChatExamples(tuple(_chat(table, row) for row in table.rows))


def _chat(table: Table, row: Row) -> Chat:
    value = column_value(table, row, MESSAGES, MESSAGES)
    if not isinstance(value, list | tuple) or not value:
        form = "a list of {role, content}"
        raise InputError(f"`{MESSAGES}` must be {form} in {table.place(row)}, got {shown(value)}")
    messages = tuple(_message(table, row, message) for message in value)
    roles = [message.role for message in messages]
    if roles[-1] != "assistant" or len(roles) < 2:
        form = "end with the assistant's turn after another one"
        raise InputError(f"`{MESSAGES}` must {form} in {table.place(row)}, got the roles {', '.join(roles)}")
    return Chat(messages[:-1], messages[-1].content)


def _message(table: Table, row: Row, value: Any) -> Message:
    # A key without a value is no news: Parquet files give every message the keys of all.
    keys = {key for key, content in value.items() if content is not None} if isinstance(value, dict) else set()
    if keys != {"role", "content"}:
        form = "a list of {role, content}, these two alone,"
        raise InputError(f"`{MESSAGES}` must be {form} in {table.place(row)}, got {shown(value)}")
    if value["role"] not in ROLES:
        raise InputError(f"`role` must be one of {', '.join(ROLES)} in {table.place(row)}, got {shown(value['role'])}")
    return Message(value["role"], text_value(table, row, value["content"], "content"))

"""Reads texts to generate from your own tables: a source and its references, or a conversation."""

from dataclasses import dataclass
from pathlib import Path

from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import Table, check_not_empty, column_value, read_table
from mlpfusion.data.generation.chats import MESSAGES, ChatExamples, chat_examples
from mlpfusion.data.generation.checked import reference_values, text_value
from mlpfusion.data.generation.entries import Entry, GenerationExamples, merged


@dataclass(frozen=True)
class GenerationColumns:
    """Column names of your own table of texts to generate.

    `group` names the column with the part of the evaluation that a row is scored in.
    """

    source: str = "source"
    target: str = "target"
    group: str | None = None


def read_generation(
    file: Path | str, field: str, columns: GenerationColumns | None = None
) -> GenerationExamples | ChatExamples:
    """Reads a table of sources and targets, or one of conversations.

    A table is one of conversations if no `columns` are given and its first row has the column
    `messages`. Raises the `InputError` of `read_table`, `table_examples` and `chat_examples`; the
    message names `field` or the column, the file and the row.

    >>> _ = (folder / "e2e.csv").write_text("mr,ref\\nname[Eden],Eden is here.\\nname[Eden],Here is Eden.\\n")
    >>> read_generation(folder / "e2e.csv", "train", GenerationColumns("mr", "ref")).references
    (('Eden is here.', 'Here is Eden.'),)
    """
    table = read_table(file, field)
    if columns is None and table.rows and MESSAGES in table.rows[0].values:
        return chat_examples(table, field)
    return table_examples(table, field, columns or GenerationColumns())


def table_examples(table: Table, field: str, columns: GenerationColumns) -> GenerationExamples:
    """Entries of a table, neighbouring rows of one source joined into one.

    A target is one reference, or a list of them. Raises `InputError` for an empty table, a missing
    column, a source or group of anything but text, and a row without a reference.

    >>> table = Table([Row({"source": "a", "target": ["A", "AA"]}, 1)], "a.jsonl")
    >>> table_examples(table, "train", GenerationColumns()).entries
    (Entry(source='a', references=('A', 'AA'), group=None),)
    """
    check_not_empty(table, field)
    return merged(_entry(table, row, columns) for row in table.rows)


def _entry(table: Table, row: Row, columns: GenerationColumns) -> Entry:
    source = text_value(table, row, column_value(table, row, columns.source, "source_column"), columns.source)
    target = column_value(table, row, columns.target, "target_column")
    group = None
    if columns.group is not None:
        group = text_value(table, row, column_value(table, row, columns.group, "group_column"), columns.group)
    return Entry(source, reference_values(table, row, target, columns.target), group)

"""The part of the page on an export."""

from xml.etree.ElementTree import Element

from mlpfusion.export.run import ExportRecord
from mlpfusion.options.flags import command_line
from mlpfusion.report.export import WHAT, compared_words, padding_words
from mlpfusion.report.html.blocks import code, paragraph, section, source, versions_table


def export_title(record: ExportRecord) -> str:
    """Title of the part."""
    return f"{record.model.name.rpartition('/')[2]}, exported to {record.to}"


def export_sections(record: ExportRecord) -> list[Element]:
    """Content of the part: what was written, how near its outputs are, and the command."""
    size = f"{record.parameters:,} parameters, {record.bytes:,} bytes, weights in {record.dtype}."
    values = {"to": record.to} | ({} if record.pad_to is None else {"pad_to": record.pad_to})
    values |= {"dtype": record.dtype} if record.to == "gguf" else {}
    command = command_line(["mlpfusion", "export", record.model.name, "OUT"], values)
    return [
        section(
            "What was exported",
            paragraph(*source(record.model), f" as {WHAT[record.to]}: {size} Written in {record.seconds:.1f} s."),
            paragraph(compared_words(record)),
            paragraph(padding_words(record)) if record.padding else None,
        ),
        section("How it was made", code(command), versions_table(record.versions)),
    ]

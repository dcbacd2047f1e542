"""An export in words: on the terminal, and as the card of the folder."""

from pathlib import Path

from rich.text import Text

from mlpfusion.export.run import ExportRecord
from mlpfusion.report.card import code, front_matter, plain
from mlpfusion.report.terminal.console import PlainConsole, bold

# Target -> what is written.
WHAT = {
    "hf": "a stock checkpoint of transformers",
    "onnx": "a graph for ONNX Runtime, `model.onnx`",
    "openvino": "a graph for OpenVINO, `openvino_model.xml`",
    "executorch": "a program for ExecuTorch on CPUs, `model.pte`",
    "gguf": "a file for llama.cpp, `model.gguf`",
}
_CARD = """\
---
{data}
---

# {title}

{source}, made smaller by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}, as {what}:
{parameters:,} parameters, {bytes:,} bytes, weights in {dtype}. It needs no mlpfusion.

{compared}

The licence is that of the source model. The full record is in `mlp_fusion_export_record.json`.
"""


def print_export(record: ExportRecord, out: str, repository: str | None = None) -> None:
    """Prints what was written, how near it is, and the repository of the Hub that has it too."""
    console = PlainConsole()
    console.print(Text.assemble(bold(out), f" is complete: {WHAT[record.to]}, {record.bytes:,} bytes."))
    if record.padding:
        console.print(padding_words(record), highlight=False)
    console.print(compared_words(record), highlight=False)
    if repository is not None:
        console.print(f"Pushed to {repository}.", highlight=False)


def export_card(record: ExportRecord, source: Path) -> str:
    """Text of README.md; licence, language and tags from the card in `source`."""
    return _CARD.format(
        data=front_matter(source, record.model),
        title=f"{plain(record.model.name.rpartition('/')[2])}, exported",
        source=code(record.model.name),
        version=record.versions["mlpfusion"],
        what=WHAT[record.to],
        parameters=record.parameters,
        bytes=record.bytes,
        dtype=record.dtype,
        compared=" ".join([compared_words(record), *([padding_words(record)] if record.padding else [])]),
    )


def compared_words(record: ExportRecord) -> str:
    """By what the export was run, and how near its outputs are."""
    return f"Run by {record.engine} without this package, {record.compared}."


def padding_words(record: ExportRecord) -> str:
    """How many parameters are zeros that were added."""
    share = 100 * record.padding / record.parameters
    return f"Neurons of zeros, for widths that fit, are {record.padding:,} of its parameters ({share:.1f} %)."

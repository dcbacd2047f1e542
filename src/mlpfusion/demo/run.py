"""The steps of `mlpfusion demo`, with everything printed on the way."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel

from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.commands.models import compress
from mlpfusion.commands.models.compress import CompressOptions, typed_command
from mlpfusion.compression.preview.inspection import inspect_checkpoint
from mlpfusion.demo.authors import LABEL, TEXT, author_rows, write_authors
from mlpfusion.demo.model import demo_batch, demo_checkpoint, demo_sentences, embeddings, last_hidden_state
from mlpfusion.demo.picture import write_picture
from mlpfusion.demo.tables import LAYER_LEGEND, example_table, layer_table, result_table, size_table, verdict
from mlpfusion.demo.train import CONFIG, Trained, start_server, train_apart
from mlpfusion.errors import InputError
from mlpfusion.measure.approximation import BlockError, Probe
from mlpfusion.measure.comparison import measure_checkpoint
from mlpfusion.measure.speed import forward_seconds
from mlpfusion.options.calibration import CalibrationOptions
from mlpfusion.options.selection import Selection
from mlpfusion.record import Record
from mlpfusion.report.html.beside import REPORT_FILE
from mlpfusion.report.inspection import print_inspection
from mlpfusion.report.numbers import FULL
from mlpfusion.report.terminal.console import PlainConsole, bold, progress_bar

_NEXT = """\
  Tune the cut model yourself; put your own JSONL or CSV files and columns in the place of the authors:
    {program} tune {out}/ntk-match TUNED --epochs 3 --learning-rate {rate:g} \\
      --train {data}/train.jsonl --validation {data}/test.jsonl \\
      --text-column {text} --label-column {label}
  Your own model: what would a cut give (needs the config only), and then the cut:
    {program} inspect MODEL --layers last:8 --keep-ratio 0.25
    {program} compress MODEL OUT --layers last:8 --keep-ratio 0.25
  In Python, with the Trainer or PEFT, the result is a model as any other:
    import mlpfusion
    model = AutoModelForSequenceClassification.from_pretrained("{out}/ntk-match", num_labels=4)
  README.md says what it is good for, and what not."""

_METHODS = {"Fusion": "fusion", "NTKMatch": "ntk-match"}
_DATA = "four-authors"
_PICTURE = "fine-tuning.png"
_EXAMPLE_LENGTH = 54  # characters, for a table of 80 columns


@dataclass(frozen=True)
class Cut:
    """The model cut by one method, and its errors on the demo's sentences.

    `similarity` is the mean cosine between the sentence embeddings before and after the cut.
    """

    folder: Path
    record: Record
    model: PreTrainedModel
    errors: list[BlockError]
    similarity: float


def run_demo(out: Path, seed: int) -> None:
    """Compresses all-MiniLM-L6-v2 by two methods, measures, and fine-tunes all three models.

    Replaces three folders and a picture in `out`, each complete or not there. Raises `InputError`
    if a saved model gives other outputs in a fresh process, or a training process ends early.
    """
    console, source, server = PlainConsole(soft_wrap=False), demo_checkpoint(), start_server()
    _heading(console, "1. Inspect all-MiniLM-L6-v2, a real pretrained sentence encoder")
    print_inspection(inspect_checkpoint(str(source), Selection("last:4", 0.25)), title="all-MiniLM-L6-v2")
    _heading(console, "2. A small task: whose sentence is it?")
    write_authors(out / _DATA)
    _print_task(console, out)
    _heading(console, "3. Cut the last 4 of 6 layers to 25 % of their neurons, in one shot, two ways")
    cuts_of = {name: _options(source, out, method, seed) for name, method in _METHODS.items()}
    records = {name: _compress(console, name, options, source) for name, options in cuts_of.items()}
    _heading(console, "4. Load them back in a fresh process, and measure")
    cuts = _measure(console, source, cuts_of, records)
    _heading(console, "5. Before and after")
    original = AutoModel.from_pretrained(source).eval()
    models = [original, *(cut.model for cut in cuts.values())]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, *(c.folder for c in cuts.values()))]
    console.print(size_table(records, sizes, forward_seconds(models, demo_batch(source))))
    _heading(console, "6. What the cut costs, layer by layer, before any fine-tuning")
    console.print(layer_table(records, {name: cut.errors for name, cut in cuts.items()}))
    similarities = ", ".join(f"{name} {cut.similarity:.3f}" for name, cut in cuts.items())
    console.print(LAYER_LEGEND.format(similarities=similarities), highlight=False, soft_wrap=True)
    page = Text.assemble("What was cut, on a page: open ", bold(str(cuts["NTKMatch"].folder / REPORT_FILE)), ".")
    console.print(page, soft_wrap=True)
    _heading(console, "7. Fine-tune all three: the same head, the same sentences in the same order")
    results = _train(server, {FULL: source} | {name: cut.folder for name, cut in cuts.items()}, out, seed)
    console.print(result_table(results))
    console.print(verdict(results), highlight=False, soft_wrap=True)
    write_picture(results, out / _PICTURE)
    picture = Text.assemble("Look at ", bold(str(out / _PICTURE)), ": how they learned, step by step.")
    console.print(picture, soft_wrap=True)
    _heading(console, "8. Try next")
    names = {
        "out": out,
        "data": out / _DATA,
        "text": TEXT,
        "label": LABEL,
        "rate": CONFIG.learning_rate,
        "program": _program(),
    }
    console.print(_NEXT.format(**names), highlight=False, soft_wrap=True)


def _program() -> str:
    """Command for this program: `mlpfusion` if on the PATH, else another."""
    started, on_path = Path(sys.argv[0]), shutil.which("mlpfusion")
    if started.name != "mlpfusion":
        return "python -m mlpfusion"
    return "mlpfusion" if on_path and Path(on_path).samefile(started) else os.path.relpath(started)


def _print_task(console: PlainConsole, out: Path) -> None:
    train, held_out, test = (author_rows(split) for split in ("train", "validation", "test"))
    short = {row[LABEL]: row for row in reversed(train) if len(row[TEXT]) <= _EXAMPLE_LENGTH}
    console.print(example_table([short[author] for author in sorted(short)]))
    console.print(
        f"{len(train):,} sentences of {len(short)} authors to learn from, {len(held_out)} more of the same books held\n"
        f"out, and {len(test)} of other books of theirs to be tested on. All are in the public\n"
        f"domain; {out / _DATA} has them and says more.",
        highlight=False,
        soft_wrap=True,
    )


def _options(source: Path, out: Path, method: str, seed: int) -> CompressOptions:
    selection, target = Selection(layers="last:4", keep_ratio=0.25), str(out / method)
    options = CompressOptions(str(source), target, method, selection=selection, seed=seed, overwrite=True)
    if method == "fusion":
        return options
    return replace(options, texts=CalibrationOptions(str(out / _DATA / "train.jsonl"), TEXT))


def _compress(console: PlainConsole, name: str, options: CompressOptions, source: Path) -> Record:
    console.print(f"$ {typed_command(options, os.path.relpath(source))}", style="dim", highlight=False, soft_wrap=True)
    with progress_bar("Compressing") as progress:
        record = compress.run(options, progress)
    assert isinstance(record, Record)  # the other processes of a launch have none
    console.print(f"{name}: {len(record.sites)} blocks in {record.seconds:.1f} s, saved in {options.out}")
    return record


def _measure(
    console: PlainConsole, source: Path, cuts_of: Mapping[str, CompressOptions], records: Mapping[str, Record]
) -> dict[str, Cut]:
    cuts = {}
    with progress_bar("Measuring") as progress:
        for index, (name, options) in enumerate(cuts_of.items()):
            progress(index, len(cuts_of) + 1, name)
            cuts[name] = _cut(source, options, records[name])
        progress(len(cuts_of), len(cuts_of) + 1, "in a fresh process")
        _check_reload(list(cuts.values()))
    console.print(f"The outputs on {len(demo_sentences())} sentences are the same, bit for bit.")
    return cuts


def _cut(source: Path, options: CompressOptions, record: Record) -> Cut:
    folder, batch = Path(options.out), demo_batch(source)
    original, model = AutoModel.from_pretrained(source).eval(), AutoModel.from_pretrained(folder).eval()
    errors = measure_checkpoint(open_checkpoint(str(source)), open_checkpoint(options.out), [batch], Probe()).blocks
    before, after = (embeddings(last_hidden_state(m, batch), batch["attention_mask"]) for m in (original, model))
    return Cut(folder, record, model, errors, float((before * after).sum(1).mean()))


def _check_reload(cuts: list[Cut]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs.safetensors"
        save_file({cut.folder.name: last_hidden_state(cut.model, demo_batch(cut.folder)) for cut in cuts}, outputs)
        folders = [str(cut.folder) for cut in cuts]
        command = [sys.executable, "-m", "mlpfusion.demo.reload", str(outputs), *folders]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise InputError(
                f"the models in {', '.join(folders)} give other outputs in a fresh process; please report this"
            )


def _train(server: Any, folders: Mapping[str, Path], out: Path, seed: int) -> dict[str, Trained]:
    results = {}
    for name, folder in folders.items():
        with progress_bar(f"Fine-tuning {name}") as progress:
            results[name] = train_apart(server, folder, out / _DATA, seed, progress)
    return results


def _heading(console: PlainConsole, text: str) -> None:
    console.print(Text.assemble("\n", bold(text)), soft_wrap=True)

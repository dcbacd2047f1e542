"""The steps of `mlpfusion demo` and what it prints."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel

from mlpfusion.demo.model import demo_batch, demo_checkpoint, demo_sentences, embeddings, last_hidden_state
from mlpfusion.errors import InputError
from mlpfusion.evaluate.approximation import BlockError, Probe
from mlpfusion.evaluate.comparison import measure_checkpoint
from mlpfusion.evaluate.speed import forward_seconds
from mlpfusion.recipe import Recipe, recipe_command, run_recipe
from mlpfusion.record import Record
from mlpfusion.report.inspection import inspect_checkpoint, print_inspection
from mlpfusion.report.terminal import progress_bar

_NEXT = """\
  Your own model: what would a cut give? (needs the config only)
    .venv/bin/mlpfusion inspect MODEL --layers last:8 --keep-ratio 0.25
  Compress it:
    .venv/bin/mlpfusion compress MODEL OUT --layers last:8 --keep-ratio 0.25
  Fine-tune the result as any other model, with the Trainer or PEFT:
    import mlpfusion
    model = AutoModelForSequenceClassification.from_pretrained("{out}", num_labels=2)
  README.md says what it is good for, and what not."""


_EXPLANATION = """\
Output: mean |H~ - H| over mean |H| of the block alone, on the inputs that the original model gives it. NTK: Frobenius
error of the Adam neural tangent kernel with all blocks in place; how the model learns, not what it computes. Fusion is
the paper's method; NTKMatch is ours, here calibrated on random tokens. Real text makes it better:
    .venv/bin/mlpfusion compress MODEL OUT --method ntk-match --calibration FILE
Mean cosine between the sentence embeddings before and after: Fusion {fusion:.3f}, NTKMatch {ntk_match:.3f}."""

_METHODS = {"fusion": "Fusion", "ntk-match": "NTKMatch"}


@dataclass(frozen=True)
class Cut:
    """What one method made of the demo's model, measured on the demo's sentences."""

    folder: Path
    record: Record
    model: PreTrainedModel
    errors: list[BlockError]
    similarity: float


def run_demo(out: Path, seed: int) -> None:
    """Inspects, compresses by two methods, saves, reloads and measures all-MiniLM-L6-v2. Replaces two folders in `out`.

    Raises `InputError` on failure.
    """
    console = Console()
    source = demo_checkpoint()
    _heading(console, "1. Inspect all-MiniLM-L6-v2, a real pretrained sentence encoder")
    print_inspection(inspect_checkpoint(str(source), layers="last:4"), title="all-MiniLM-L6-v2")
    _heading(console, "2. Cut the last 4 of 6 layers to 25 % of their neurons, in one shot, without data, two ways")
    recipes = [_recipe(source, out, method, seed) for method in _METHODS]
    records = [_compress(console, recipe, source) for recipe in recipes]
    _heading(console, "3. Load them back in a fresh process")
    original = AutoModel.from_pretrained(source).eval()
    cuts = [_cut(original, source, recipe, record) for recipe, record in zip(recipes, records, strict=True)]
    for cut in cuts:
        _check_reload(cut.model, cut.folder)
    console.print(f"The outputs on {len(demo_sentences())} sentences are the same, bit for bit.")
    _heading(console, "4. Before and after")
    console.print(_size_table(original, source, cuts))
    _heading(console, "5. What the cut costs, layer by layer, before any fine-tuning")
    console.print(_layer_table(cuts))
    similarities = {cut.record.recipe["method"].replace("-", "_"): cut.similarity for cut in cuts}
    console.print(_EXPLANATION.format(**similarities), highlight=False, soft_wrap=True)
    _heading(console, "6. Try next")
    console.print(_NEXT.format(out=cuts[-1].folder), highlight=False, soft_wrap=True)


def _recipe(source: Path, out: Path, method: str, seed: int) -> Recipe:
    recipe = Recipe(model=str(source), out=str(out / method), method=method, layers="last:4", keep_ratio=0.25)
    return replace(recipe, data_free=method != "fusion", seed=seed, overwrite=True)


def _compress(console: Console, recipe: Recipe, source: Path) -> Record:
    console.print(f"$ {recipe_command(recipe, os.path.relpath(source))}", style="dim", highlight=False, soft_wrap=True)
    with progress_bar("Compressing") as progress:
        record = run_recipe(recipe, progress)
    name = _METHODS[recipe.method]
    console.print(f"{name}: {len(record.sites)} blocks in {record.seconds:.1f} s, saved in {recipe.out}")
    return record


def _cut(original: PreTrainedModel, source: Path, recipe: Recipe, record: Record) -> Cut:
    folder, batch = Path(recipe.out), demo_batch(source)
    model = AutoModel.from_pretrained(folder).eval()
    errors = measure_checkpoint(str(source), recipe.out, [batch], Probe())
    before, after = (embeddings(last_hidden_state(m, batch), batch["attention_mask"]) for m in (original, model))
    return Cut(folder, record, model, errors, float((before * after).sum(1).mean()))


def _check_reload(model: PreTrainedModel, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs.safetensors"
        save_file({"last_hidden_state": last_hidden_state(model, demo_batch(folder))}, outputs)
        command = [sys.executable, "-m", "mlpfusion.demo.reload", str(folder), str(outputs)]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise InputError(f"the model in {folder} gives other outputs in a fresh process; please report this")


def _size_table(original: PreTrainedModel, source: Path, cuts: list[Cut]) -> Table:
    """Sizes and times of the original and of the cuts, which have the same shapes."""
    record, seconds = cuts[0].record, forward_seconds([original, *(cut.model for cut in cuts)], demo_batch(source))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, *(cut.folder for cut in cuts))]
    before, after = record.original.parameters, [cut.record.compressed.parameters for cut in cuts]
    mlp = sum(site.original_parameters for site in record.sites)
    rows = [
        ("parameters", [before, *after], ",d"),
        ("parameters of the 4 MLPs", [mlp, *(sum(s.parameters for s in cut.record.sites) for cut in cuts)], ",d"),
        ("bytes on disk", sizes, ",d"),
        ("seconds a forward pass", seconds, ".3f"),
    ]
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", *_METHODS.values(), "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, values, form in rows:
        table.add_row(name, *(format(value, form) for value in values), f"{values[-1] / values[0]:.2f}")
    return table


def _layer_table(cuts: list[Cut]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = [f"{error}\n{name}" for error in ("output", "NTK") for name in _METHODS.values()]
    for column in ("\nblock", "\nwidth", *columns):
        table.add_column(column, justify="left" if column == "\nblock" else "right", no_wrap=True)
    for index, site in enumerate(cuts[0].record.sites):
        errors = [cut.errors[index] for cut in cuts]
        outputs = [f"{error.output_error:.3f}" for error in errors]
        kernels = [f"{error.adam_kernel_error:.3f}" for error in errors]
        table.add_row(site.path, f"{site.original_width:,} -> {site.width:,}", *outputs, *kernels)
    return table


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)

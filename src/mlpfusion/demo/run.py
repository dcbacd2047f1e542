"""The steps of `mlpfusion demo` and what it prints."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel

from mlpfusion.demo.model import demo_batch, demo_checkpoint, demo_sentences, embeddings, last_hidden_state
from mlpfusion.errors import InputError
from mlpfusion.evaluate.output_error import output_errors
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
Output error: mean |H~ - H| over mean |H| of the block alone, on the inputs that the original model gives it. Inertia
left: variance of the neurons within their clusters. Largest: neurons in the largest cluster; single: clusters of one.
Mean cosine between the sentence embeddings before and after: {similarity:.3f}. Fusion is where fine-tuning starts."""


@dataclass(frozen=True)
class Comparison:
    """The original and the compressed model side by side, on the demo's sentences."""

    seconds: tuple[float, float]
    file_bytes: tuple[int, int]
    errors: dict[str, float]
    similarity: float


def run_demo(out: Path, seed: int) -> None:
    """Inspects, fuses, saves, reloads and measures all-MiniLM-L6-v2. Replaces `out`. Raises `InputError` on failure."""
    console = Console()
    source = demo_checkpoint()
    _heading(console, "1. Inspect all-MiniLM-L6-v2, a real pretrained sentence encoder")
    print_inspection(inspect_checkpoint(str(source), layers="last:4"), title="all-MiniLM-L6-v2")
    _heading(console, "2. Fuse the last 4 of 6 layers to 25 % of their neurons, in one shot, without data")
    recipe = Recipe(model=str(source), out=str(out), layers="last:4", keep_ratio=0.25, seed=seed, overwrite=True)
    console.print(f"$ {recipe_command(recipe, os.path.relpath(source))}", style="dim", highlight=False, soft_wrap=True)
    with progress_bar("Fusing") as progress:
        record = run_recipe(recipe, progress)
    console.print(f"{len(record.sites)} blocks fused in {record.seconds:.1f} s, saved in {out}")
    _heading(console, "3. Load it back in a fresh process")
    original, compressed = AutoModel.from_pretrained(source).eval(), AutoModel.from_pretrained(out).eval()
    _check_reload(compressed, out)
    console.print(f"The outputs on {len(demo_sentences())} sentences are the same, bit for bit.")
    _heading(console, "4. Before and after")
    comparison = _compare(original, compressed, source, out)
    console.print(_size_table(record, comparison))
    _heading(console, "5. What the cut costs, layer by layer, before any fine-tuning")
    console.print(_layer_table(record, comparison))
    console.print(_EXPLANATION.format(similarity=comparison.similarity), highlight=False, soft_wrap=True)
    _heading(console, "6. Try next")
    console.print(_NEXT.format(out=out), highlight=False, soft_wrap=True)


def _check_reload(model: PreTrainedModel, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs.safetensors"
        save_file({"last_hidden_state": last_hidden_state(model, demo_batch(folder))}, outputs)
        command = [sys.executable, "-m", "mlpfusion.demo.reload", str(folder), str(outputs)]
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise InputError(f"the model in {folder} gives other outputs in a fresh process; please report this")


def _compare(original: PreTrainedModel, compressed: PreTrainedModel, source: Path, out: Path) -> Comparison:
    batch = demo_batch(source)
    mask = batch["attention_mask"]
    before, after = (embeddings(last_hidden_state(model, batch), mask) for model in (original, compressed))
    seconds = forward_seconds([original, compressed], batch)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, out)]
    similarity = float((before * after).sum(1).mean())
    return Comparison(
        (seconds[0], seconds[1]), (sizes[0], sizes[1]), output_errors(original, compressed, [batch]), similarity
    )


def _size_table(record: Record, comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "before", "after", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    before, after = record.original, record.compressed
    mlp = [sum(getattr(site, name) for site in record.sites) for name in ("original_parameters", "parameters")]
    rows = [
        ("parameters", before.parameters, after.parameters, ",d"),
        ("parameters of the 4 MLPs", *mlp, ",d"),
        ("bytes on disk", *comparison.file_bytes, ",d"),
        ("seconds a forward pass", *comparison.seconds, ".3f"),
    ]
    for name, first, second, form in rows:
        table.add_row(name, format(first, form), format(second, form), f"{second / first:.2f}")
    return table


def _layer_table(record: Record, comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("block", "width", "output error", "inertia left", "largest", "single"):
        table.add_column(column, justify="left" if column == "block" else "right", no_wrap=True)
    for site in record.sites:
        metrics = site.metrics
        table.add_row(
            site.path,
            f"{site.original_width:,} -> {site.width:,}",
            f"{comparison.errors[site.path]:.3f}",
            f"{100 * metrics['inertia_ratio']:.1f} %",
            f"{metrics['largest_cluster']:,}",
            f"{metrics['singletons']:,}",
        )
    return table


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)

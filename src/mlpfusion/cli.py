"""The command line. Every command parses, calls one function of the library, and prints what it returns."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mlpfusion.cli_reproduce import reproduce
from mlpfusion.cli_tune import distill, dynamics, split_list, tune
from mlpfusion.errors import printable
from mlpfusion.report.errors import reported_errors


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlpfusion")
@click.option("--debug", is_flag=True, envvar="MLPFUSION_DEBUG", help="Show where in the program an error came up.")
def main(debug: bool) -> None:
    """Makes the MLPs of language models narrower in one shot, without data, and keeps how they fine-tune.

    \b
    Start with:  mlpfusion demo
    Then:        mlpfusion inspect MODEL
                 mlpfusion compress MODEL OUT --layers last:8 --keep-ratio 0.25
    """


@main.command(short_help="Shows the MLPs of MODEL and what a cut would give.")
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--architecture", metavar="FILE", help="Row file for a model type that has no row of its own.")
@click.option("--layers", default="all", show_default=True, help="Layers of the cut that is shown.")
@click.option("--keep-ratio", type=float, default=0.25, show_default=True, help="Cut that is shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, as_json: bool, **options: Any) -> None:
    """Shows the MLPs of MODEL (a folder or a Hub id), their share of the parameters, and what a cut would give.

    Only the config is needed, no weights. For a model type without a row of its own, a row that would serve is
    looked for and printed.
    """
    with reported_errors():
        from mlpfusion.commands.inspect import inspect_checkpoint, print_inspection

        inspection = inspect_checkpoint(model, **options)
        if as_json:
            click.echo(json.dumps(inspection.to_dict(), indent=2))
        else:
            print_inspection(inspection)


def _calibration_options(command: Any) -> Any:
    """The flags that say on what a calibrated method is calibrated."""
    for option in (
        click.option("--calibration-samples", type=int, help="Texts of --calibration to use (default 256)."),
        click.option(
            "--calibration",
            metavar="FILE",
            help="Texts for a calibrated method, as for --data, or hub:owner/name[[:config]:split].",
        ),
    ):
        command = option(command)
    return command


def _task_options(command: Any) -> Any:
    """The flags that say on what a task method learns, those of `tune`."""
    for option in (
        click.option("--max-length", type=int, help="Tokens, longer texts are cut (default 128, or what MODEL takes)."),
        click.option("--max-train-samples", type=int, help="Random part of train, the same that tune takes."),
        click.option("--new-head", is_flag=True, help="Draw the head anew, also where MODEL has a trained one."),
        click.option("--regression", is_flag=True, help="The label is a number to predict, not a class."),
        click.option("--label-column", metavar="NAME", help="Column of the label."),
        click.option("--text-column", callback=split_list, metavar="A[,B]", help="Column of the text, or of a pair."),
        click.option("--train", metavar="FILE", help="Own training data: .jsonl, .json, .csv, .tsv, .parquet."),
        click.option("--task", help="Task that lth, gem-miner, flop and moefication learn on: sst2, mnli, ..."),
    ):
        command = option(command)
    return command


@main.command(short_help="Compresses MODEL into the new folder OUT.", options_metavar="--keep-ratio SHARE [OPTIONS]")
@click.argument("model", required=False, metavar="MODEL")
@click.argument("out", required=False, metavar="OUT")
@click.option("--method", help="fusion (default) or another: `mlpfusion methods` lists them.")
@click.option("--layers", help="all (default), last:8, first:2, 4-11 or 0,3,5; in each stack by itself.")
@click.option("--keep-ratio", type=float, help="Share of the neurons to keep, e.g. 0.25; or --width, or --budget.")
@click.option("--width", type=int, help="Neurons to keep, instead of --keep-ratio.")
@click.option("--budget", metavar="SHARE", help="Share of the whole model to keep instead, spread: 60% or 60%flops.")
@click.option("--round-to", type=int, help="Round the widths of --keep-ratio and --budget to a multiple of this.")
@click.option("--seed", type=int, help="Seed of all random steps (default 0).")
@click.option("--device", help="cpu (default) or cuda: where the arithmetic is done.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--architecture", metavar="FILE", help="Row file for a model type that has no row of its own.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="Of the method: see `mlpfusion methods NAME`."
)
@_calibration_options
@click.option("--column", help="Column of --calibration that holds the text.")
@click.option("--sequential", is_flag=True, help="Calibrate each block on what the blocks compressed before it leave.")
@click.option("--data-free", is_flag=True, help="Calibrate on random tokens instead of texts.")
@_task_options
@click.option("--recipe", metavar="FILE", help="YAML with the same fields; flags win over it.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, if a former run wrote all that it holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def compress(recipe: str | None, as_json: bool, options: tuple[str, ...], **flags: Any) -> None:
    """Compresses MODEL (a folder or a Hub id) into the new folder OUT.

    One size must be given: --keep-ratio, --width or --budget. All of it can stand in the file of --recipe.

    OUT appears complete or not at all. It holds all tensors of MODEL but for the MLPs that were cut, byte for byte, its
    tokenizer, a record of the run and a model card. So do the methods that learn on a task: OUT is of MODEL's class,
    without a head for the task.
    """
    with reported_errors():
        from mlpfusion.commands.compress import Recipe, run_recipe
        from mlpfusion.options.fields import read_job, with_fields
        from mlpfusion.report.console import progress_bar
        from mlpfusion.report.terminal import print_record
        from mlpfusion.storage.yaml import parse_option

        chosen = read_job(Recipe(), recipe, flags)
        chosen = with_fields(chosen, {"options": chosen.options | dict(parse_option(option) for option in options)})
        with progress_bar("Compressing") as progress:
            record = run_recipe(chosen, progress)
        if as_json:
            click.echo(record.to_json(), nl=False)
        else:
            print_record(record, chosen.model, chosen.out)


@main.command(short_help="Output and kernel error of every method on MODEL (Table 1).")
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="Texts, one a line, or a table with --column.")
@click.option("--column", help="Column of a table that holds the text.")
@click.option("--max-samples", type=int, default=256, show_default=True, help="Texts to measure on.")
@click.option("--methods", default="all", show_default=True, help="all, or names like fusion,fusion:refine=false.")
@click.option("--architecture", metavar="FILE", help="Row file for a model type that has no row of its own.")
@click.option("--layers", default="0", show_default=True, help="Layers, each of which is cut alone.")
@click.option("--keep-ratio", type=float, default=0.25, show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Each drives the random head and the compression.")
@click.option("--scalar", default="logit", show_default=True, help="f of the kernel: logit or prob0 (the authors').")
@_calibration_options
@click.option("--authors-quirks", is_flag=True, help="Also the numbers of the authors' code, in fields of their own.")
@click.option("--out", metavar="DIR", help="New folder for comparison.json, .md and .png.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if a former run wrote all that it holds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(model: str, out: str | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Table 1 of the paper on MODEL: output error and kernel error of every method, one layer cut at a time."""
    with reported_errors():
        from mlpfusion.checks import user_path
        from mlpfusion.commands.compare import run_comparison, write_comparison
        from mlpfusion.report.comparison_chart import chart_note
        from mlpfusion.report.console import progress_bar
        from mlpfusion.report.terminal import print_comparison
        from mlpfusion.storage.output import check_output

        reads = (model, options["data"], options["calibration"])
        replaced = check_output(user_path("out", out), overwrite=overwrite, reads=reads) if out else None
        with progress_bar("Comparing") as progress:
            record = run_comparison(model, progress=progress, **options)
        written = write_comparison(record, user_path("out", out), replaced) if out else []
        if as_json:
            click.echo(json.dumps(record, indent=2))
            return
        print_comparison(record)
        for path in written:
            click.echo(f"written: {printable(str(path))}")
        if written:
            click.echo(chart_note("comparison.png"), nl=False)


@main.command(short_help="Output and kernel error of COMPRESSED against ORIGINAL.")
@click.argument("original")
@click.argument("compressed")
@click.option("--data", required=True, metavar="FILE", help="Texts, one a line, or a table with --column.")
@click.option("--column", help="Column of a table that holds the text.")
@click.option("--max-samples", type=int, default=256, show_default=True, help="Texts to measure on.")
@click.option("--scalar", default="logit", show_default=True, help="f of the kernel: logit or prob0 (the authors').")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random head.")
@click.option("--authors-quirks", is_flag=True, help="Also the numbers of the authors' code, in fields of their own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(original: str, compressed: str, as_json: bool, **options: Any) -> None:
    """Output error and kernel error of every block of COMPRESSED, all in place, against its source ORIGINAL."""
    with reported_errors():
        from mlpfusion.commands.measure import run_measurement
        from mlpfusion.report.terminal import print_block_errors

        errors = run_measurement(original, compressed, **options)
        if as_json:
            click.echo(json.dumps([asdict(error) for error in errors], indent=2))
        else:
            print_block_errors(errors)


@main.command(short_help="Lists the methods, or the options of one.")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """Lists the methods, what each makes of a block and what it needs; of NAME the options and their defaults."""
    with reported_errors():
        from mlpfusion.report.methods import print_method, print_methods

        print_methods() if name is None else print_method(name)


@main.command(short_help="Cuts a real pretrained model, measures and fine-tunes it.")
@click.option("--out", default="demo-out", show_default=True, help="Folder for models, data and picture.")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: str, seed: int) -> None:
    """Cuts a real pretrained model two ways, measures both, and fine-tunes all three on a small task. Offline."""
    with reported_errors():
        from mlpfusion.demo import run_demo

        run_demo(Path(out), seed)


main.add_command(tune)
main.add_command(distill)
main.add_command(dynamics)
main.add_command(reproduce)

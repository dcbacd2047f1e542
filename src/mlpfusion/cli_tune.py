"""The commands that train: `tune`, `distill` and `dynamics`."""

import json
from typing import Any

import click

from mlpfusion.errors import printable, shown
from mlpfusion.extras import check_training_installed
from mlpfusion.report.errors import reported_errors

_RESUME = "Once it trains, the same command with --resume goes on where it was."


def split_list(_context: click.Context, parameter: click.Parameter, value: str | None) -> list[Any] | None:
    """A list written with commas. Raises `click.BadParameter` if an item is not of the kind of the flag."""
    kinds: dict[str | None, Any] = {"learning_rate": float, "seeds": int}
    try:
        return None if value is None else [kinds.get(parameter.name, str)(item) for item in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"must be a list with commas, got {shown(value)}") from error


@click.command(
    short_help="Fine-tunes MODEL on a task into the new folder OUT.", options_metavar="--task NAME [OPTIONS]"
)
@click.argument("model", required=False, metavar="MODEL")
@click.argument("out", required=False, metavar="OUT")
@click.option("--task", help="sst2, mnli, mrpc, cola, stsb, qnli, rte, qqp or wnli; from MLPFUSION_DATA or the Hub.")
@click.option("--train", metavar="FILE", help="Own training data: .jsonl, .json, .csv, .tsv, .parquet.")
@click.option("--validation", metavar="FILE", help="Own data to report on.")
@click.option("--text-column", callback=split_list, metavar="A[,B]", help="Column of the text, or columns of a pair.")
@click.option("--label-column", metavar="NAME", help="Column of the label.")
@click.option("--regression", is_flag=True, help="The label is a number to predict, not a class.")
@click.option("--learning-rate", callback=split_list, metavar="LR[,LR..]", help="One (default 2e-5) or a grid.")
@click.option(
    "--seeds", callback=split_list, metavar="N[,N..]", help="Head, order and dropout (default 0); mean and std."
)
@click.option("--epochs", type=int, help="Default 3.")
@click.option("--batch-size", type=int, help="Sentences a step and device (default 32).")
@click.option("--new-head", is_flag=True, help="Draw the head anew, also where MODEL has a trained one.")
@click.option("--max-length", type=int, help="Tokens, longer texts are cut (default 128, or what MODEL takes).")
@click.option("--warmup-ratio", type=float, help="Share of the steps with a rising rate (default 0.06).")
@click.option("--weight-decay", type=float, help="AdamW's, not on biases and norms (default 0.1).")
@click.option("--holdout", type=float, help="Share of train to choose epoch and rate on (default 0.1).")
@click.option("--select-on", help="holdout (default), validation (the paper's habit, optimistic) or last (no choice).")
@click.option("--metric-for-best-model", help="Metric to choose by (default: the task's first).")
@click.option("--patience", type=int, help="Stop after as many epochs without a better score.")
@click.option("--max-train-samples", type=int, help="Random part of train, the same for all seeds.")
@click.option("--split-seed", type=int, help="Draws --holdout and --max-train-samples (default 0).")
@click.option("--lora", metavar="r=8[,alpha=16]", help="Train LoRA factors and the head only; also dropout, targets.")
@click.option("--layerwise", type=int, metavar="EPOCHS", help="Layer-wise tuning of the blocks first (Eq. 6).")
@click.option("--teacher", metavar="ORIGINAL", help="The model before compression, for --layerwise.")
@click.option("--layerwise-learning-rate", type=float, help="Default: the first --learning-rate.")
@click.option("--cache", metavar="DIR", help="Keeps the hidden states of the teacher on disk, for further runs.")
@click.option("--precision", help="fp32 (default), bf16 or fp16 autocast; weights stay fp32.")
@click.option("--device", help="auto (default), cpu or cuda.")
@click.option("--save-steps", type=int, help="Save the state for --resume this often, not only after epochs.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--log-dir", metavar="DIR", help="Logs for TensorBoard, if it is installed.")
@click.option("--recipe", metavar="FILE", help="YAML with the same fields; flags win over it.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run beside OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT (only what a former run wrote), drop an unfinished run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def tune(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Fine-tunes MODEL (a folder or a Hub id, compressed or not) on a task into the new folder OUT.

    The best epoch is chosen on a held-out part of train; the reported split is not used for that. OUT appears complete
    or not at all; until then, OUT.unfinished holds what --resume needs.
    """
    with reported_errors(_RESUME):
        check_training_installed()
        from mlpfusion.commands.tune import TuneJob, run_tuning
        from mlpfusion.options.fields import read_job
        from mlpfusion.report.console import progress_bar
        from mlpfusion.report.tuning import print_tuning

        job = read_job(TuneJob(), recipe, flags)
        with progress_bar("Tuning") as progress:
            record = run_tuning(job, progress)
        if not is_main_process():
            return
        if as_json:
            click.echo(record.to_json(), nl=False)
        else:
            print_tuning(record, job.out)


@click.command(
    short_help="Trains COMPRESSED on what ORIGINAL says, without labels.", options_metavar="--data FILE [OPTIONS]"
)
@click.argument("original", required=False, metavar="ORIGINAL")
@click.argument("compressed", required=False, metavar="COMPRESSED")
@click.argument("out", required=False, metavar="OUT")
@click.option("--data", metavar="FILE", help="Texts, one a line, or a table with --column.")
@click.option("--column", help="Column of a table that holds the text.")
@click.option("--task", help="Training texts of a task instead, without their labels: sst2, mnli, ...")
@click.option("--max-samples", type=int, help="Texts to take, from the beginning.")
@click.option("--max-length", type=int, help="Tokens, longer texts are cut (default 128, or what MODEL takes).")
@click.option("--objective", help="layerwise (default: Eq. 6, blocks only), hidden, logits, logits+hidden.")
@click.option("--temperature", type=float, help="Of the logits (default 2).")
@click.option("--learning-rate", type=float, help="Default 2e-5.")
@click.option("--epochs", type=int, help="Default 1.")
@click.option("--batch-size", type=int, help="Texts a step and device (default 32).")
@click.option("--seed", type=int, help="Held-out part, order, dropout, missing head (default 0).")
@click.option("--holdout", type=float, help="Share of the texts to measure the loss on (default 0.1).")
@click.option("--cache", metavar="DIR", help="Keeps the hidden states of ORIGINAL on disk, for further runs.")
@click.option("--precision", help="fp32 (default), bf16 or fp16 autocast; weights stay fp32.")
@click.option("--device", help="auto (default), cpu or cuda.")
@click.option("--save-steps", type=int, help="Save the state for --resume this often, not only after epochs.")
@click.option("--log-dir", metavar="DIR", help="Logs for TensorBoard, if it is installed.")
@click.option("--recipe", metavar="FILE", help="YAML with the same fields; flags win over it.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run beside OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT (only what a former run wrote), drop an unfinished run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def distill(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Trains COMPRESSED on what ORIGINAL says to unlabelled texts, into the new folder OUT.

    The default is the layer-wise task-specific tuning of the paper (Eq. 6): only the compressed blocks move.
    """
    with reported_errors(_RESUME):
        check_training_installed()
        from mlpfusion.commands.distill import DistillJob, run_distillation
        from mlpfusion.options.fields import read_job
        from mlpfusion.report.console import progress_bar
        from mlpfusion.report.tuning import print_distillation

        job = read_job(DistillJob(), recipe, flags)
        with progress_bar("Distilling") as progress:
            record = run_distillation(job, progress)
        if not is_main_process():
            return
        if as_json:
            click.echo(record.to_json(), nl=False)
        else:
            print_distillation(record, job.out)


@click.command(
    short_help="Compares how MODEL and its compressed forms learn.", options_metavar="--task NAME --out DIR [OPTIONS]"
)
@click.argument("model", required=False, metavar="MODEL")
@click.option("--task", help="sst2, mnli, mrpc, cola, stsb, qnli, rte, qqp or wnli; from MLPFUSION_DATA or the Hub.")
@click.option("--train", metavar="FILE", help="Own training data: .jsonl, .json, .csv, .tsv, .parquet.")
@click.option("--validation", metavar="FILE", help="Own data to measure the logits on.")
@click.option("--text-column", callback=split_list, metavar="A[,B]", help="Column of the text, or columns of a pair.")
@click.option("--label-column", metavar="NAME", help="Column of the label.")
@click.option("--regression", is_flag=True, help="The label is a number to predict, not a class.")
@click.option("--new-head", is_flag=True, help="Draw the head anew, also where MODEL has a trained one.")
@click.option("--max-length", type=int, help="Tokens, longer texts are cut (default 128, or what MODEL takes).")
@click.option("--methods", callback=split_list, metavar="A[,B..]", help="Names as of compare; default: six of them.")
@click.option("--architecture", metavar="FILE", help="Row file for a model type that has no row of its own.")
@click.option("--layers", help="Layers to compress, as of compress (default all).")
@click.option("--keep-ratio", type=float, help="Share of the neurons to keep (default 0.25).")
@click.option("--steps", type=int, help="Steps of a run (default 100).")
@click.option("--learning-rate", type=float, help="Constant (default 5e-5).")
@click.option("--batch-size", type=int, help="Examples a step (default 32).")
@click.option("--every", type=int, help="Measure every so many steps (default 25), and after 1, 2, 5, 10 and the last.")
@click.option("--seeds", callback=split_list, metavar="N[,N..]", help="Head, order and compression (default 0,1,2).")
@click.option("--eval-samples", type=int, help="Held-out examples to measure on (default 256).")
@click.option("--calibration", metavar="FILE", help="Texts for calibrated methods (default: unlabelled training ones).")
@click.option("--column", help="Column of --calibration that holds the text.")
@click.option("--calibration-samples", type=int, help="Texts to calibrate on (default 256).")
@click.option("--sequential", is_flag=True, help="Calibrate each block on what the blocks compressed before it leave.")
@click.option("--device", help="auto (default), cpu or cuda.")
@click.option("--revision", help="Branch, tag or commit of a Hub id.")
@click.option("--recipe", metavar="FILE", help="YAML with the same fields; flags win over it.")
@click.option("--out", metavar="DIR", help="New folder for dynamics.json, .md and .png.")
@click.option("--overwrite", is_flag=True, help="Replace --out (only what a former run wrote), drop an unfinished run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def dynamics(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Trains MODEL and compressed forms of it alike, and shows how far their logits' paths are from MODEL's.

    The same batches in the same order, the same head, no dropout. The distance is ||df_c(t) - df(t)|| / ||df(t)||, df
    the change of the logits on held-out examples since the beginning. Killed, and started again with the same --out, it
    repeats no run that was complete.
    """
    with reported_errors("The same command with the same --out goes on where it was."):
        check_training_installed()
        from mlpfusion.commands.dynamics import DynamicsJob, run_dynamics
        from mlpfusion.options.fields import read_job
        from mlpfusion.report.comparison_chart import chart_note
        from mlpfusion.report.console import progress_bar
        from mlpfusion.report.dynamics import dynamics_markdown

        job = read_job(DynamicsJob(), recipe, flags)
        with progress_bar("Training") as progress:
            record = run_dynamics(job, progress)
        if as_json:
            click.echo(json.dumps(record, indent=1))
        else:
            click.echo(printable(dynamics_markdown(record), keep="\n"))
            click.echo(f"{printable(job.out)} is complete.")
            click.echo(chart_note("dynamics.png"), nl=False)


def is_main_process() -> bool:
    """Under torchrun or accelerate launch every process runs the command; one speaks."""
    from accelerate import PartialState

    return PartialState().is_main_process

"""The command line of `mlpfusion reproduce`."""

import json
from typing import Any

import click

from mlpfusion.cli_tune import is_main_process, split_list
from mlpfusion.errors import printable
from mlpfusion.extras import check_training_installed
from mlpfusion.report.errors import reported_errors


@click.command(short_help="Runs a table or figure of the paper: methods, tasks, seeds.")
@click.argument("recipe", required=False)
@click.option("--model", help="Model to run it on, instead of the recipe's.")
@click.option("--architecture", metavar="FILE", help="Row file for a model type that has no row of its own.")
@click.option("--out", metavar="DIR", help="Folder of the experiment; what is finished there is not run again.")
@click.option("--tasks", callback=split_list, metavar="A[,B..]", help="Tasks, instead of the recipe's.")
@click.option("--methods", callback=split_list, metavar="A[,B..]", help="Methods, instead of the recipe's.")
@click.option("--seeds", callback=split_list, metavar="N[,N..]", help="Seeds, instead of the recipe's.")
@click.option("--new-head", is_flag=True, help="Draw the head anew, also where the model has a trained one.")
@click.option("--device", help="auto (default), cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def reproduce(recipe: str | None, as_json: bool, **flags: Any) -> None:
    """Runs the grid of RECIPE, a table or figure of the paper: compress, fine-tune, over methods, tasks and seeds.

    RECIPE is a name (without one, all are listed) or a YAML file. Every run leaves a file in DIR/runs: killed, and
    started again, it repeats no finished run. Started several times with the same DIR, one for each GPU say, the
    processes share the runs. In the end DIR holds RECIPE.json, .md and .png.
    """
    with reported_errors("The same command with the same --out goes on where it was."):
        from mlpfusion.reproduce.named import recipe_list

        if recipe is None:
            click.echo(recipe_list())
            return
        check_training_installed()
        from mlpfusion.commands.reproduce import report_experiment
        from mlpfusion.report.comparison_chart import chart_note
        from mlpfusion.report.console import progress_bar
        from mlpfusion.reproduce.experiment import read_experiment

        experiment = read_experiment(recipe, flags)
        with progress_bar("Reproducing") as progress:
            record, text = report_experiment(experiment, progress)
        if not is_main_process():
            return
        click.echo(json.dumps(record, indent=1) if as_json else printable(text, keep="\n"))
        if not as_json:
            out, name = printable(experiment.out), printable(experiment.name)
            click.echo(f"{out} holds {name}.json, .md, .png and a file a run in runs/.")
            click.echo(chart_note(f"{name}.png"), nl=False)

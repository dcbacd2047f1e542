"""`mlpfusion reproduce`: the grid of an experiment, and its report in the folder of the experiment."""

import json
import tempfile
from pathlib import Path

from accelerate import PartialState

from mlpfusion.checks import user_path
from mlpfusion.progress import Progress
from mlpfusion.report.experiment import experiment_markdown
from mlpfusion.report.experiment_chart import write_experiment_chart
from mlpfusion.reproduce.experiment import Experiment
from mlpfusion.reproduce.grid import Row
from mlpfusion.reproduce.schedule import run_experiment
from mlpfusion.storage.atomic import write_file


def report_experiment(experiment: Experiment, progress: Progress = lambda done, total, what: None) -> tuple[Row, str]:
    """Runs what is not finished yet; the record and the Markdown report.

    They and the chart stand in `experiment.out` too, as `NAME.json`, `.md` and `.png`: several experiments with runs in
    common may have the same folder. Raises as `run_experiment` does.
    """
    record = run_experiment(experiment, progress)
    text = experiment_markdown(record)
    out = user_path("out", experiment.out)
    if PartialState().is_main_process:
        write_file(out / f"{experiment.name}.json", json.dumps(record, indent=1) + "\n")
        write_file(out / f"{experiment.name}.md", text)
        with tempfile.TemporaryDirectory() as folder:
            for chart in write_experiment_chart(record, Path(folder) / f"{experiment.name}.png"):
                write_file(out / chart.name, chart.read_bytes())
    return record, text

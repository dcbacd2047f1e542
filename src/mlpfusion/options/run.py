"""Options of a run that trains: where it logs, and what becomes of an unfinished one."""

from dataclasses import dataclass

from mlpfusion.options.fields import option


@dataclass(frozen=True)
class RunOptions:
    """Logs, and what is done with an unfinished run beside OUT."""

    log_dir: str | None = option(None, "Logs for TensorBoard, if it is installed.", metavar="DIR", free=True)
    resume: bool = option(False, "Go on with the unfinished run beside OUT.", free=True)
    no_report: bool = option(False, "Write no report.html beside the model.", free=True)
    overwrite: bool = option(False, "Replace OUT (only what a former run wrote), drop an unfinished run.", free=True)

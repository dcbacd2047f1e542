"""Options of a labelled task: one by name, or files with their columns."""

from dataclasses import dataclass

from mlpfusion.options.fields import option


@dataclass(frozen=True)
class TaskOptions:
    """Either `task`, or `train` with `text_column` (two for pairs) and `label_column`.

    With both, the files take the place of the task's own. A trained head keeps its classes, matched to those of the
    data by name; `new_head` draws another from the seed instead. Without `max_length` texts are cut at 128 tokens, or
    at what the model takes if that is less.
    """

    task: str | None = option(None, "GLUE task, as sst2 or mnli, from MLPFUSION_DATA or the Hub.", metavar="NAME")
    train: str | None = option(
        None, "Training data of your own: .jsonl, .json, .csv, .tsv, .parquet.", metavar="FILE", free=True
    )
    text_column: tuple[str, ...] = option((), "Column of the text, or columns of a pair.", metavar="A[,B]")
    label_column: str | None = option(None, "Column of the label.", metavar="NAME")
    regression: bool = option(False, "The label is a number to predict, not a class.")
    new_head: bool = option(False, "Draw the head anew, also where MODEL has a trained one.")
    max_length: int | None = option(None, "Tokens; longer texts are cut (at 128, or at what MODEL takes if less).")

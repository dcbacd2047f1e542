"""Options of a labelled task: one by name, or files with their columns."""

from dataclasses import dataclass

from mlpfusion.options.fields import option


@dataclass(frozen=True)
class TaskOptions:
    """Either `task`, or `train` with `text_column` (two for pairs) and `label_column`.

    With both, the files take the place of the task's own; the task `language-modelling` has no others, and takes plain
    texts. A trained head keeps its classes, matched to those of the data by name; `new_head` draws another from the
    seed instead. Texts are cut at `max_length` tokens, for language modelling they are packed into windows of as many:
    128, or what the model takes if that is less. `segment_ids` are those of WebNLG's protocol, for GPT-2 and its like;
    a model that was tuned with them needs them wherever it is used.
    """

    task: str | None = option(
        None, "As sst2 (GLUE), wikitext2, webnlg; for your files language-modelling or generation.", metavar="NAME"
    )
    train: str | None = option(
        None,
        "Training data of your own: .jsonl, .json, .csv, .tsv, .parquet; texts also .txt.",
        metavar="FILE",
        free=True,
    )
    text_column: tuple[str, ...] = option((), "Column of the text, or columns of a pair.", metavar="A[,B]")
    source_column: str | None = option(None, "Column of the source of a text to write, if not source.", metavar="NAME")
    target_column: str | None = option(None, "Column of the text to write, if not target.", metavar="NAME")
    group_column: str | None = option(None, "Column of the part that a row is scored in too.", metavar="NAME")
    label_column: str | None = option(None, "Column of the label.", metavar="NAME")
    segment_ids: bool = option(False, "Of webnlg: add the word embedding of its segment to every token.")
    regression: bool = option(False, "The label is a number to predict, not a class.")
    new_head: bool = option(False, "Draw the head anew, also where MODEL has a trained one.")
    max_length: int | None = option(
        None, "Tokens of a window, or where longer texts are cut: 128, or what MODEL takes if less."
    )

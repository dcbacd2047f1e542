"""`mlpfusion evaluate`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import SAME_OUT, Command
from mlpfusion.errors import InputError
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.fields import argument, changed, leaves, option, part
from mlpfusion.options.task import TaskOptions
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.measure.evaluation.harness import HarnessEvaluation
    from mlpfusion.measure.evaluation.task import TaskEvaluation
    from mlpfusion.measure.evaluation.text import Evaluation

_DECODING = tuple(leaf.name for leaf in leaves(Decoding))
_OF_TEXT = ("column", "window", "stride", "max_tokens", "seed")
# What each way of scoring does not use, beside the data of the others.
_NOT_USED = {
    "data": ("validation", "out", "overwrite", "lm_eval_include", *_DECODING),
    "task": (*_OF_TEXT, "new_head", "lm_eval_include"),
    "lm_eval": (*_OF_TEXT, "validation", *_DECODING),
}


@dataclass(frozen=True)
class EvaluateOptions:
    """Perplexity of the causal language model MODEL on a text, or the scores of MODEL on a task or on those of lm-eval.

    With `data` the texts are joined by empty lines and read in windows. The number depends on the text, the tokenizer,
    the window and the stride: compare models only where all four are the same. With `task` the reported splits are
    scored, or `validation`; a generator writes its texts, which are kept in `out` if it is named. Killed, and started
    again with the same --out, it writes no text twice.
    """

    model: str = argument("MODEL")
    data: str | None = option(None, "Texts, one a line, or a table with --column.", metavar="FILE")
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    window: int | None = option(None, "Tokens that are read together: 512, or what MODEL takes if less.")
    stride: int | None = option(None, "Tokens from one window to the next: a window, without overlap.")
    max_tokens: int | None = option(None, "Take the first tokens of the texts only.")
    of_task: TaskOptions = part(TaskOptions)
    validation: str | None = option(None, "Data of your own to score on.", metavar="FILE")
    decoding: Decoding = part(Decoding)
    lm_eval: tuple[str, ...] = option((), "Tasks of lm-eval, run in this process.", metavar="A[,B..]")
    lm_eval_include: str | None = option(None, "Folder of YAML files with tasks of your own for it.", metavar="DIR")
    out: str | None = option(None, "New folder for evaluation.json, and the texts of a generator.", metavar="DIR")
    overwrite: bool = option(False, "Replace --out, if a former run wrote all that it holds.")
    device: str = option("cpu", "cpu (fp32) or cuda (in the dtype of MODEL; a task in fp32).")
    seed: int = option(0, "Of the bootstrap over the windows, for the interval.")


def run(options: EvaluateOptions, progress: Progress) -> "Evaluation | TaskEvaluation | HarnessEvaluation":
    """Returns the scores. All that can be checked without the weights is checked first. Raises `InputError`."""
    from mlpfusion.checks import seed_number, usable_device

    told = changed(options)
    asked = {"data": options.data is not None, "task": bool(changed(options.of_task)), "lm_eval": bool(options.lm_eval)}
    if sum(asked.values()) != 1:
        raise InputError("exactly one of `data`, `task` and `lm_eval` must be given")
    way = next(name for name, is_asked in asked.items() if is_asked)
    for name in _NOT_USED[way]:
        if name in told:
            raise InputError(f"`{name}` must be left out with `{way}`, got {told[name]}")
    seed_number("seed", options.seed)
    usable_device(options.device)
    if way == "lm_eval":
        return _by_harness(options)
    return _on_task(options, progress) if way == "task" else _on_text(options, progress)


def _on_text(options: EvaluateOptions, progress: Progress) -> "Evaluation":
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.data.files.text import read_texts
    from mlpfusion.data.language.causal import check_causal
    from mlpfusion.data.unlabelled.windows import window_length
    from mlpfusion.measure.evaluation.text import TextSource, evaluate_checkpoint

    assert options.data is not None
    source = open_checkpoint(options.model)
    check_causal(source.empty())
    window = window_length(options.window, source.tokenizer, source.config)
    texts = read_texts(options.data, column=options.column)
    text = TextSource(options.data, options.column, window, options.stride, options.max_tokens)
    return evaluate_checkpoint(source, texts, text, device=options.device, seed=options.seed, progress=progress)


def _on_task(options: EvaluateOptions, progress: Progress) -> "TaskEvaluation":
    from mlpfusion.checkpoint.open import open_for_training
    from mlpfusion.data.chosen import chosen_data
    from mlpfusion.data.generation.encode import with_decoding
    from mlpfusion.data.task import REPORTED
    from mlpfusion.data.tasks import check_new_tokens
    from mlpfusion.extras import check_training_installed
    from mlpfusion.measure.evaluation.task import encode_for_scores, evaluate_on_task

    check_training_installed()
    told = options.of_task
    source = open_for_training(options.model, with_adapter=True)
    check_new_tokens(source.tokenizer, told.task)
    data = chosen_data(told, options.validation, REPORTED)
    encoded = with_decoding(encode_for_scores(source, data, told.max_length), options.decoding)
    return evaluate_on_task(source, encoded, options.out, options.device, progress, overwrite=options.overwrite)


def _by_harness(options: EvaluateOptions) -> "HarnessEvaluation":
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.data.generation.kind import check_writes
    from mlpfusion.data.language.causal import check_head_stored
    from mlpfusion.measure.evaluation.harness import evaluate_by_harness, harness_tasks

    manager = harness_tasks(options.lm_eval, options.lm_eval_include)
    source = open_checkpoint(options.model)
    check_writes(source.empty())
    check_head_stored(source)
    return evaluate_by_harness(
        source, options.lm_eval, manager, options.out, options.device, overwrite=options.overwrite
    )


def show(evaluation: "Evaluation | TaskEvaluation | HarnessEvaluation", options: EvaluateOptions) -> None:
    """Prints the scores, and on what they were measured."""
    from mlpfusion.measure.evaluation.harness import HarnessEvaluation
    from mlpfusion.measure.evaluation.task import TaskEvaluation
    from mlpfusion.report.terminal.results import print_evaluation
    from mlpfusion.report.terminal.scores import print_harness_evaluation, print_task_evaluation

    if isinstance(evaluation, TaskEvaluation):
        print_task_evaluation(evaluation, options.out)
    elif isinstance(evaluation, HarnessEvaluation):
        print_harness_evaluation(evaluation, options.out)
    else:
        print_evaluation(evaluation)


COMMAND = Command(
    "evaluate",
    "Perplexity of a language model on a text, or scores on a task or of lm-eval.",
    EvaluateOptions,
    run,
    show,
    title="Evaluating",
    usage="--data FILE | --task NAME | --lm-eval TASKS [OPTIONS]",
    go_on=SAME_OUT,
)

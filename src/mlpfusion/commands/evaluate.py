"""`mlpfusion evaluate`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import argument, option
from mlpfusion.progress import Progress

if TYPE_CHECKING:
    from mlpfusion.measure.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluateOptions:
    """Perplexity of the causal language model MODEL, compressed or not, on a text.

    The texts are joined by empty lines and read in windows. The number depends on the text, the tokenizer, the window
    and the stride: compare models only where all four are the same.
    """

    model: str = argument("MODEL")
    data: str = option("", "Texts, one a line, or a table with --column.", metavar="FILE", required=True)
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    window: int | None = option(None, "Tokens that are read together: 512, or what MODEL takes if less.")
    stride: int | None = option(None, "Tokens from one window to the next: a window, without overlap.")
    max_tokens: int | None = option(None, "Take the first tokens of the texts only.")
    device: str = option("cpu", "cpu (fp32) or cuda (in the dtype of MODEL).")
    seed: int = option(0, "Of the bootstrap over the windows, for the interval.")


def run(options: EvaluateOptions, progress: Progress) -> "Evaluation":
    """Returns the perplexity. All that can be checked without the weights is checked first. Raises `InputError`."""
    from mlpfusion.checkpoint.open import open_checkpoint
    from mlpfusion.checks import seed_number, usable_device
    from mlpfusion.data.files.text import read_texts
    from mlpfusion.data.language.causal import check_causal
    from mlpfusion.data.unlabelled.windows import window_length
    from mlpfusion.measure.evaluation import TextSource, evaluate_checkpoint

    seed_number("seed", options.seed)
    usable_device(options.device)
    source = open_checkpoint(options.model)
    check_causal(source.empty())
    window = window_length(options.window, source.tokenizer, source.config)
    texts = read_texts(options.data, column=options.column)
    text = TextSource(options.data, options.column, window, options.stride, options.max_tokens)
    return evaluate_checkpoint(source, texts, text, device=options.device, seed=options.seed, progress=progress)


def show(evaluation: "Evaluation", _options: EvaluateOptions) -> None:
    """Prints the perplexity, its interval, and on what it was measured."""
    from mlpfusion.report.terminal import print_evaluation

    print_evaluation(evaluation)


SUMMARY = "Perplexity of a causal language model on a text."
COMMAND = Command("evaluate", SUMMARY, EvaluateOptions, run, show, title="Evaluating", usage="--data FILE [OPTIONS]")

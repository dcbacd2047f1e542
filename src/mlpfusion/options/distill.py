"""Options of `mlpfusion distill`, and how a compressed model learns from the original."""

from dataclasses import dataclass

from mlpfusion.checks import check_above_zero, check_fields, check_range, check_that
from mlpfusion.errors import InputError
from mlpfusion.options.fields import argument, option, part
from mlpfusion.options.run import RunOptions
from mlpfusion.options.task import TaskOptions
from mlpfusion.options.training import PRECISIONS

OBJECTIVES = ("layerwise", "hidden", "logits", "logits+hidden")


@dataclass(frozen=True)
class Distill:
    """Options of learning from the original model.

    Objectives: `layerwise` is the paper's tuning (Eq. 6; only compressed blocks train, eval mode,
    Adam at a constant rate). The others train all parameters with dropout and a linear schedule:
    `hidden` on the same loss, `logits` on T^2 KL(teacher / T || student / T) at T = `temperature`
    (Hinton et al. 2015), `logits+hidden` on the sum. The share `holdout` of the data is held out to
    measure the loss before and after. `freeze_router` keeps the routers of mixtures of experts as they are.
    """

    objective: str = option("layerwise", "layerwise (Eq. 6, blocks only), hidden, logits or logits+hidden.")
    learning_rate: float = option(2e-5, "Constant for layerwise, else falling.")
    epochs: int = option(1, "Passes over the texts.")
    batch_size: int = option(32, "Texts a step and device.")
    temperature: float = option(2.0, "Of the logits.")
    seed: int = option(0, "Of held-out part, order, dropout and a missing head.")
    holdout: float = option(0.1, "Share of the texts to measure the loss on.")
    precision: str = option("fp32", "fp32, bf16 or fp16 autocast; weights stay fp32.")
    device: str = option("auto", "auto, cpu or cuda.")
    save_steps: int | None = option(None, "Save the state for --resume this often, not only after epochs.")
    freeze_router: bool = option(False, "Train all but the routers of mixtures of experts.")

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(self.objective in OBJECTIVES, "objective", f"one of {', '.join(OBJECTIVES)}", self.objective)
        check_that(0 < self.learning_rate < 1, "learning_rate", "above 0 and below 1", self.learning_rate)
        check_range("epochs", self.epochs, 1)
        check_range("batch_size", self.batch_size, 1)
        check_above_zero("temperature", self.temperature)
        check_that(0 < self.holdout < 1, "holdout", "above 0 and below 1", self.holdout)
        check_that(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        check_that(self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda", self.device)
        if self.save_steps is not None:
            check_range("save_steps", self.save_steps, 1)
        if self.temperature != type(self).temperature and not self.objective.startswith("logits"):
            raise InputError(f"`temperature` must be left out for {self.objective}, which has no logits")
        if self.freeze_router and self.objective == "layerwise":
            raise InputError("`freeze_router` must be left out for layerwise, which trains compressed blocks only")


@dataclass(frozen=True)
class DistillOptions:
    """Trains COMPRESSED on what ORIGINAL predicts for unlabelled texts, into the new folder OUT.

    The default is the layer-wise task-specific tuning of the paper (Eq. 6): only the compressed blocks move. Of a task
    the training texts are taken, without labels; where texts are to be written, logits are matched at these alone.
    """

    original: str = argument("ORIGINAL", free=True)
    compressed: str = argument("COMPRESSED", free=True)
    out: str = argument("OUT", free=True)
    data: str | None = option(
        None,
        "Texts, one a line, or a table with --column; packed into windows for decoders.",
        metavar="FILE",
        free=True,
    )
    column: str | None = option(None, "Column of a table that holds the text.", metavar="NAME")
    of_task: TaskOptions = part(TaskOptions)
    max_samples: int | None = option(None, "Texts, or windows, to take from the beginning.")
    training: Distill = part(Distill)
    cache: str | None = option(
        None, "Keeps the hidden states of ORIGINAL on disk, for further runs.", metavar="DIR", free=True
    )
    run: RunOptions = part(RunOptions)

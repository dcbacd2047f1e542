"""What a fine-tuning run is told, checked when it is made."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields, check_that
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.continued import Continued
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.fields import key, option, own

SELECT_ON = ("holdout", "validation", "last")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Finetune:
    """One fine-tuning run: AdamW without decay on biases and norms, linear schedule with warm-up, clipping at 1.

    The defaults are those of the paper's GLUE runs, but for the number of epochs and the length. `select_on` says what
    the best epoch is chosen on: a random part `holdout` of train, the reported split itself (`validation`, the paper's
    habit), or nothing (`last`: the last epoch of all of train). `split_seed` draws the held-out part and the
    `max_train_samples`; `seed` the head, the order of the data and the dropout. `metric_for_best_model` is the
    headline metric of the task unless given. `patience` epochs without a better score end the run. `save_steps` saves
    the state for resuming within epochs as well. `eval_steps` steps apart the run is scored on the first reported split
    without any choice: a curve of its recovery. `freeze_router`: the routers of mixtures of experts do not train.
    """

    learning_rate: float = own(2e-5)
    epochs: int = option(3, "Passes over train.")
    batch_size: int = option(32, "Examples a step and device.")
    warmup_ratio: float = option(0.06, "Share of the steps with a rising rate.")
    weight_decay: float = option(0.1, "AdamW's, not on biases and norms.")
    adam_beta1: float = key(0.9)
    adam_beta2: float = key(0.98)
    adam_epsilon: float = key(1e-6)
    seed: int = own(0)
    split_seed: int = option(0, "Draws --holdout and --max-train-samples.")
    holdout: float = option(0.1, "Share of train to choose epoch and rate on.")
    select_on: str = option("holdout", "holdout, validation (the paper's habit, optimistic) or last (no choice).")
    metric_for_best_model: str | None = option(None, "Metric to choose by, if not the first of the task.")
    patience: int | None = option(None, "Stop after as many epochs without a better score.")
    max_train_samples: int | None = option(None, "Random part of train, the same for all seeds.")
    lora: Lora | None = own(None)
    dsee: Dsee | None = own(None)
    continued: Continued | None = own(None)
    precision: str = option("fp32", "fp32, bf16 or fp16 autocast; weights stay fp32.")
    device: str = option("auto", "auto, cpu or cuda.")
    save_steps: int | None = option(None, "Save the state for --resume this often, not only after epochs.")
    eval_steps: int | None = option(None, "With --select-on last: score the first reported split this often.")
    freeze_router: bool = option(False, "Train all but the routers of mixtures of experts.")

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(0 < self.learning_rate < 1, "learning_rate", "above 0 and below 1", self.learning_rate)
        for name in ("epochs", "batch_size"):
            check_that(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("patience", "max_train_samples", "save_steps", "eval_steps"):
            value = getattr(self, name)
            check_that(value is None or value >= 1, name, "at least 1", value)
        for name in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            check_that(0 <= getattr(self, name) < 1, name, "at least 0 and below 1", getattr(self, name))
        check_that(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        check_that(0 < self.holdout < 1, "holdout", "above 0 and below 1", self.holdout)
        check_that(self.select_on in SELECT_ON, "select_on", f"one of {', '.join(SELECT_ON)}", self.select_on)
        check_that(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        check_that(self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda", self.device)
        check_that(
            self.holdout == type(self).holdout or self.select_on == "holdout",
            "holdout",
            f"left out for select_on={self.select_on}, which holds nothing out",
            self.holdout,
        )
        check_that(
            self.metric_for_best_model is None or self.select_on != "last",
            "metric_for_best_model",
            "left out for select_on=last, which chooses nothing",
            self.metric_for_best_model,
        )
        check_that(
            self.patience is None or self.select_on != "last", "patience", "left out for select_on=last", self.patience
        )
        check_that(
            self.eval_steps is None or self.select_on == "last",
            "eval_steps",
            f"left out for select_on={self.select_on}, which scores after every epoch",
            self.eval_steps,
        )
        if self.lora is not None and self.dsee is not None:
            raise InputError("`dsee` must be left out with `lora`, got both")
        if self.continued is not None and self.adapter is not None:
            raise InputError("`adapter` must be left out with `lora` and `dsee`, which make a new one")

    @property
    def adapter(self) -> Lora | Dsee | None:
        """The new adapter that trains in place of the weights, None without."""
        return self.dsee if self.lora is None else self.lora

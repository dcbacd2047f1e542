"""Options of `mlpfusion dynamics`, and of one of its runs."""

from dataclasses import dataclass, replace

from mlpfusion.checks import check_fields, check_range, check_that
from mlpfusion.options.calibration import CalibrationOptions
from mlpfusion.options.fields import argument, option, own, part
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.selection import Selection
from mlpfusion.options.task import TaskOptions

# Always measured: in the first steps the kernel of the start describes the training best.
FIRST_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Dynamics:
    """One run of AdamW at a constant rate, fp32, without dropout.

    All parameters train. Betas and epsilon are those of `Finetune`; no weight decay and no
    clipping, so that only gradients move the logits. `seed` draws the order of the data, nothing
    else. Logits are kept before the first step, after steps 1, 2, 5 and 10, after every multiple of
    `every`, and after the last step.
    """

    steps: int = option(100, "Steps of a run.")
    learning_rate: float = option(5e-5, "Constant.")
    batch_size: int = option(32, "Examples a step.")
    every: int = option(25, "Measure every so many steps, and after 1, 2, 5, 10 and the last.")
    seed: int = own(0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("steps", self.steps, 1)
        check_that(0 < self.learning_rate < 1, "learning_rate", "above 0 and below 1", self.learning_rate)
        check_range("batch_size", self.batch_size, 1)
        check_range("every", self.every, 1)

    def measured_at(self) -> tuple[int, ...]:
        """Steps with kept logits, ascending, without step 0.

        >>> Dynamics(steps=60).measured_at()
        (1, 2, 5, 10, 25, 50, 60)
        """
        steps = {*FIRST_STEPS, *range(self.every, self.steps, self.every), self.steps}
        return tuple(sorted(step for step in steps if step <= self.steps))


@dataclass(frozen=True)
class DynamicsOptions:
    """Trains MODEL and compressed forms of it alike, and shows how far their logits' paths are from MODEL's.

    The same batches in the same order, the same head, no dropout. The distance is ||df_c(t) - df(t)|| / ||df(t)||, df
    the change of the logits on held-out examples since the beginning. Killed, and started again with the same --out, it
    repeats no run that was complete.
    """

    model: str = argument("MODEL", free=True)
    out: str = option("", "New folder for dynamics.json, .md and .png.", metavar="DIR", required=True, free=True)
    data: TaskOptions = part(TaskOptions)
    validation: str | None = option(None, "Data of your own to measure the logits on.", metavar="FILE", free=True)
    methods: tuple[str, ...] = option(
        ("fusion", "folded-fusion", "clustering", "svd", "neuron-pruning", "ntk-match"),
        "Names as for compare.",
        metavar="A[,B..]",
    )
    layers: str = option("all", "Layers to compress, as for compress.")
    keep_ratio: float = option(0.25, "Share of the neurons to keep.")
    training: Dynamics = part(Dynamics)
    seeds: tuple[int, ...] = option((0, 1, 2), "Of head, order and compression.", metavar="N[,N..]")
    eval_samples: int = option(256, "Held-out predictions to measure on.")
    texts: CalibrationOptions = part(CalibrationOptions)
    device: str = option("auto", "auto, cpu or cuda.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.", free=True)
    mlps: MLPOptions = part(MLPOptions)
    overwrite: bool = option(False, "Replace --out (only what a former run wrote), drop an unfinished run.", free=True)

    def dynamics(self, seed: int) -> Dynamics:
        """Returns the config of the runs of one seed. Raises `InputError` for a value out of range."""
        return replace(self.training, seed=seed)

    def selection(self) -> Selection:
        """Returns layers and size. Raises `InputError` for a value out of range."""
        return Selection(self.layers, self.keep_ratio)

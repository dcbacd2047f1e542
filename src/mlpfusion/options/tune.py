"""Options of `mlpfusion tune`."""

from dataclasses import dataclass, replace

from mlpfusion.options.adapters.continued import Continued
from mlpfusion.options.adapters.dsee import parse_dsee
from mlpfusion.options.adapters.lora import parse_lora
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.distill import Distill
from mlpfusion.options.fields import argument, option, part
from mlpfusion.options.run import RunOptions
from mlpfusion.options.task import TaskOptions
from mlpfusion.options.training import Finetune


@dataclass(frozen=True)
class TuneOptions:
    """Fine-tunes MODEL (a folder or a Hub id, compressed or not) on a task into the new folder OUT.

    The best epoch is chosen on a held-out part of train; the reported split is not used for that. OUT appears complete
    or not at all; until then, OUT.unfinished holds what --resume needs.
    """

    model: str = argument("MODEL", free=True)
    out: str = argument("OUT", free=True)
    data: TaskOptions = part(TaskOptions)
    validation: str | None = option(None, "Data of your own to report on.", metavar="FILE", free=True)
    learning_rate: tuple[float, ...] = option((2e-5,), "One, or several to choose from.", metavar="LR[,LR..]")
    seeds: tuple[int, ...] = option((0,), "Of head, order and dropout; several: mean and std.", metavar="N[,N..]")
    training: Finetune = part(Finetune)
    lora: str | None = option(
        None, "Train LoRA factors and the head only; also dropout, targets.", metavar="r=8[,alpha=16]"
    )
    dsee: str | None = option(
        None,
        "Train low-rank updates, few entries of each matrix and the head only; also omega, targets, "
        "omega_seed, rank_step, rounds, power, tau, samples.",
        metavar="rank=16[,alpha=32,sparse=64]",
    )
    adapter: str | None = option(
        None,
        "Train this adapter of DSEE or LoRA again; MODEL stays as it is, zeros too, OUT/adapter has the adapter.",
        metavar="DIR",
        free=True,
    )
    merge: bool = option(False, "With --adapter: add it to the weights in the end, which fills their zeros.")
    layerwise: int = option(0, "Layer-wise tuning of the blocks first (Eq. 6).", metavar="EPOCHS")
    layerwise_learning_rate: float | None = option(None, "Of --layerwise, if not the first --learning-rate.")
    teacher: str | None = option(None, "The model before compression, for --layerwise.", metavar="ORIGINAL", free=True)
    cache: str | None = option(
        None, "Keeps the hidden states of the teacher on disk, for further runs.", metavar="DIR", free=True
    )
    decoding: Decoding = part(Decoding)
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.", free=True)
    run: RunOptions = part(RunOptions)

    def finetune(self, learning_rate: float, seed: int) -> Finetune:
        """Returns the config of one run. Raises `InputError` for a value out of range."""
        lora = None if self.lora is None else parse_lora(self.lora)
        dsee = None if self.dsee is None else parse_dsee(self.dsee)
        continued = None if self.adapter is None else Continued(self.adapter, self.merge)
        return replace(self.training, learning_rate=learning_rate, seed=seed, lora=lora, dsee=dsee, continued=continued)

    def layerwise_config(self) -> Distill:
        """Returns the config of the layer-wise stage. Raises `InputError` for a value out of range."""
        return Distill(
            epochs=self.layerwise,
            learning_rate=self.layerwise_learning_rate or self.learning_rate[0],
            batch_size=self.training.batch_size,
            seed=self.seeds[0],
            precision=self.training.precision,
            device=self.training.device,
            save_steps=self.training.save_steps,
        )

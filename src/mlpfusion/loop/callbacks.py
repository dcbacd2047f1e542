"""Callbacks of transformers' Trainer: progress and the time of steps, states within an epoch, an early end."""

import statistics
import time
from typing import Any

import torch
from transformers import TrainerCallback

from mlpfusion.data.tasks import merit
from mlpfusion.progress import Progress


class StepWatch(TrainerCallback):
    """Reports progress and keeps the wall seconds of every step."""

    def __init__(self, progress: Progress, what: str):
        self.progress, self.what, self.started = progress, what, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.progress(state.global_step, state.max_steps, self.what)
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock, after the GPU has finished."""
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports the end of the run."""
        self.progress(state.max_steps, state.max_steps, "")

    def seconds_per_step(self) -> float | None:
        """Median seconds; None without any step (a run resumed at its end)."""
        return statistics.median(self.seconds) if self.seconds else None


class SaveWithinEpochs(TrainerCallback):
    """Saves a state every `steps` steps within an epoch.

    The state at the end of an epoch is saved by the Trainer, after evaluation.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the Trainer for a state every `steps` steps."""
        if state.global_step % self.steps == 0 and state.epoch % 1 != 0:
            control.should_save = True


class Patience(TrainerCallback):
    """Ends a run after `patience` evaluations without a better score.

    Unlike transformers' own callback it counts in the log, a part of every state, so it survives a
    kill.
    """

    def __init__(self, patience: int, metric: str):
        self.patience, self.metric = patience, metric

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the run if the best score is old enough."""
        control.should_training_stop = self.is_over(state.log_history)

    def is_over(self, log: list[dict[str, float]]) -> bool:
        """True if the best score in `log` is `patience` evaluations old.

        >>> Patience(2, "accuracy").is_over([{"eval_accuracy": score} for score in (0.5, 0.4, 0.3)])
        True
        """
        name = f"eval_{self.metric}"
        scores = [merit(self.metric, entry[name]) for entry in log if name in entry]
        return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self.patience

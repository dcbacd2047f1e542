"""Fine-tunes the models of the demo, each in a process for its peak memory."""

import multiprocessing
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import sqrt
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.data.task_kind import TaskKind
from mlpfusion.data.task_model import load_for_task
from mlpfusion.data.tasks import encode_task, kind_of_task
from mlpfusion.data.unlabelled.examples import labelled_batches
from mlpfusion.demo.authors import load_authors
from mlpfusion.demo.model import MAX_LENGTH
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import held_out_logits
from mlpfusion.options.training import Finetune
from mlpfusion.progress import Progress
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.record import RunRecord, run_from_dict

# The rate was chosen once, with the full model, on the held-out sentences, among 1e-4, 2e-4 and 5e-4.
CONFIG = Finetune(learning_rate=2e-4, epochs=1, batch_size=16, select_on="last", device="cpu")
WATCHED_STEPS = 20  # between looks at the held-out sentences: five points in a run; not tuned


@dataclass(frozen=True)
class Trained:
    """One fine-tuned model: record, and held-out logits along the run.

    `tested` is the number of test sentences.
    """

    record: RunRecord
    steps: tuple[int, ...]
    logits: Float[Tensor, "steps samples authors"]
    labels: Int[Tensor, " samples"]
    tested: int

    def accuracy(self) -> list[float]:
        """Share of held-out sentences with the right author, at every watched step."""
        return (self.logits.argmax(-1) == self.labels).double().mean(1).tolist()

    def distance(self, other: "Trained") -> list[float]:
        """|logits - logits of `other`| / |logits of `other`| at every watched step."""
        theirs = other.logits.flatten(1)
        return ((self.logits.flatten(1) - theirs).norm(dim=1) / theirs.norm(dim=1)).tolist()


def binomial_error(share: float, count: int) -> float:
    """Standard error of a share, sqrt(p (1 - p) / n).

    >>> binomial_error(0.5, 100)
    0.05
    """
    return sqrt(share * (1 - share) / count)


class HeldOutWatch(TrainerCallback):
    """Keeps logits on held-out sentences: before step 1, every `WATCHED_STEPS`, at the end."""

    def __init__(self, batches: list[Mapping[str, Tensor]], kind: TaskKind):
        self.batches, self.kind, self.logits = batches, kind, dict[int, Tensor]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the untrained model."""
        self._look(0, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks every `WATCHED_STEPS` steps and after the last."""
        if state.global_step % WATCHED_STEPS == 0 or state.global_step == state.max_steps:
            self._look(state.global_step, kwargs["model"])

    def _look(self, step: int, model: Any) -> None:
        # the Trainer's next step calls train()
        self.logits[step] = held_out_logits(model.eval(), self.batches, self.kind)


def train(checkpoint: Path, data: Path, seed: int, progress: Progress) -> Trained:
    """Fine-tunes `checkpoint` on the authors in `data`; `seed` draws head, data order, dropout."""
    source = open_for_training(str(checkpoint))
    encoded = encode_task(load_authors(data), source.tokenizer, max_length=MAX_LENGTH)
    held_out = encoded.evaluation["validation"]
    held_out = held_out.subset(sorted(range(len(held_out)), key=lambda index: held_out.lengths[index]))
    watch = HeldOutWatch(labelled_batches(held_out, encoded.collate, BATCH_SIZE), kind_of_task(encoded.task))
    model = load_for_task(source, encoded.task, seed)
    test = encoded.evaluation["test"]
    reported = replace(encoded, evaluation={"test": test})
    _, record = finetune(model, reported, replace(CONFIG, seed=seed), RunContext(None, progress, [watch]))
    labels = torch.tensor([item["labels"] for item in held_out.items])
    return Trained(record, tuple(watch.logits), torch.stack(list(watch.logits.values())), labels, len(test))


def start_server() -> Any:
    """Starts importing torch and transformers in the background, for `train_apart`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.bert.modeling_bert"])
    forkserver.ensure_running()
    return context


def train_apart(server: Any, checkpoint: Path, data: Path, seed: int, progress: Progress) -> Trained:
    """Runs `train` in a separate process.

    The process ends with this call, also by an exception. Raises the `InputError` of `train`, and
    one for a process that ended without a result.
    """
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=_serve, args=(sender, checkpoint, data, seed), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, message = receiver.recv()
            if kind == "progress":
                progress(*message)
            elif kind == "error":
                raise InputError(message)
            else:
                record, steps, logits, labels, tested = message
                return Trained(run_from_dict(record), steps, torch.tensor(logits), torch.tensor(labels), tested)
    except EOFError as error:
        raise InputError(f"the process that fine-tuned {checkpoint} ended without a result") from error
    finally:
        process.kill()
        process.join()


def _serve(sender: Connection, checkpoint: Path, data: Path, seed: int) -> None:
    """Child process: trains, sends its progress, and sends the result as plain data."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        trained = train(checkpoint, data, seed, lambda *state: sender.send(("progress", state)))
    except InputError as error:
        sender.send(("error", str(error)))
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C reaches parent and child; the parent says so
    else:
        logits, labels = trained.logits.tolist(), trained.labels.tolist()
        sender.send(("done", (asdict(trained.record), trained.steps, logits, labels, trained.tested)))

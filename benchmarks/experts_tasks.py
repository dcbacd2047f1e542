"""Scores of small mixtures of experts fine-tuned after a cut, beside dropping and merging whole experts.

    python benchmarks/experts_tasks.py MODEL --out benchmarks/results/NAME.json [--keeps 0.5,..] [--tasks sst2,..]

MODEL is a Mixtral or a Qwen3-MoE, as examples/small_moe.py and examples/small_qwen3_moe.py make them. Every start is
fine-tuned on a random part of each task by the package's own `finetune`, its routers frozen, the loss that of the
classification alone, the last epoch taken. Beside the whole model stands one of its shape that has learned nothing
before, to tell what a task says of what was cut. A seed draws the head, the order of the examples, the 256 texts of
the task that a cut sees, and Fusion's first centres. Sizes are those of benchmarks/experts.py. A run that the record
holds is not repeated, so a command that was stopped goes on.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from experts import REFIT, width_at
from whole_experts import DROP, MERGE, with_experts_dropped, with_experts_merged

import mlpfusion
from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint, open_for_training
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.task_model import encode_for, load_for_task
from mlpfusion.data.tasks import load_task
from mlpfusion.data.unlabelled.examples import calibration_batches
from mlpfusion.methods.names import method_label
from mlpfusion.methods.needs import needs_batches
from mlpfusion.options.training import Finetune
from mlpfusion.record import versions
from mlpfusion.report.numbers import FULL
from mlpfusion.seeds import seeded
from mlpfusion.storage.atomic import write_file
from mlpfusion.tune.finetune import finetune


@dataclass(frozen=True)
class Size:
    """How much of the training texts of a task a run takes, and for how long."""

    samples: int
    epochs: int


# So that all runs on both mixtures take 50 processor minutes; a text of MRPC is as long as five of CoLA.
TASKS = {"sst2": Size(3000, 2), "cola": Size(1500, 2), "mrpc": Size(600, 2)}
RATE, BATCH, MAX_LENGTH = 1e-3, 16, 128
CALIBRATION_SAMPLES = 256
UNTRAINED = "weights drawn anew"
METHODS: tuple[Any, ...] = (mlpfusion.Fusion(), REFIT)
WHOLE: dict[str, Callable[[Any, Sequence[Batch], int], Any]] = {DROP: with_experts_dropped, MERGE: with_experts_merged}


@dataclass(frozen=True)
class Row:
    """One run: its scores on the validation texts after the training, and processor seconds."""

    task: str
    start: str
    keep: float
    seed: int
    parameters: int
    scores: dict[str, float]
    training_loss: float | None  # of the last steps, where so many were made
    seconds: float

    @property
    def key(self) -> tuple[str, str, float, int]:
        """Tells rows of the record apart."""
        return self.task, self.start, self.keep, self.seed


@dataclass(frozen=True)
class Record:
    """All runs of one mixture so far, and on what they were made.

    `majority` is the score of an answer that is always the same, by task.
    """

    model: str
    settings: dict[str, Any]
    versions: dict[str, str]
    threads: int
    majority: dict[str, float]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file that `write` made."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"rows": [Row(**row) for row in values["rows"]]})

    def write(self, path: Path) -> None:
        """Writes the record, complete or not at all."""
        write_file(path, json.dumps(asdict(self), indent=1) + "\n")


def config_of(task: str, seed: int) -> Finetune:
    """What a run is told."""
    size = TASKS[task]
    return Finetune(
        learning_rate=RATE,
        epochs=size.epochs,
        batch_size=BATCH,
        seed=seed,
        max_train_samples=size.samples,
        select_on="last",
        freeze_router=True,
        device="cpu",
    )


def starts(keeps: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Names and sizes of all starts."""
    yield FULL, 1.0
    yield UNTRAINED, 1.0
    for keep in keeps:
        for name in (*map(method_label, METHODS), *WHOLE):
            yield name, keep


def made(model: Any, start: str, keep: float, seed: int, batches: Sequence[Batch]) -> Any:
    """The classifier `model` with fewer parameters; `model` may be changed."""
    if start == UNTRAINED:
        with seeded(seed):
            return type(model)(model.config)
    if start in WHOLE:
        return WHOLE[start](model, batches, round(keep * model.config.num_local_experts))
    for method in METHODS:
        if method_label(method) == start:
            seen = batches if needs_batches(method) else None
            mlpfusion.compress(model, method, width=width_at(model, keep), seed=seed, calibration=seen)
    return model


def run(source: Checkpoint, data: EncodedTask, start: str, keep: float, seed: int) -> Row:
    """Cuts, fine-tunes and measures."""
    config, begun = config_of(data.task.name, seed), time.process_time()
    train, _ = split_train(data, config)
    batches = calibration_batches(train, data.collate, source.training_config, CALIBRATION_SAMPLES, seed)
    model = made(load_for_task(source, data.task, seed), start, keep, seed, batches)
    tuned, record = finetune(model, data, config)
    return Row(
        data.task.name,
        start,
        keep,
        seed,
        tuned.num_parameters(),
        record.scores["validation"],
        record.training_loss[-1][1] if record.training_loss else None,
        round(time.process_time() - begun, 2),
    )


def majority(data: EncodedTask) -> float:
    """The accuracy of the most frequent class of the validation texts."""
    counts = Counter(item["labels"] for item in data.evaluation["validation"].items)
    return max(counts.values()) / counts.total()


def empty_record(source: Checkpoint, tasks: dict[str, EncodedTask]) -> Record:
    """What is known before any run."""
    config = source.config
    told = {name: asdict(config_of(name, 0)) for name in tasks}
    return Record(
        f"{config.model_type}, {config.num_local_experts} experts, {config.num_experts_per_tok} a token",
        {"finetune": told, "max_length": MAX_LENGTH, "calibration_samples": CALIBRATION_SAMPLES},
        versions(),
        torch.get_num_threads(),
        {name: majority(data) for name, data in tasks.items()},
        [],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keeps", default="0.5,0.25,0.75")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    source = open_for_training(arguments.model)
    tasks = {name: encode_for(source, load_task(name), MAX_LENGTH, config_of(name, 0)) for name in TASKS}
    record = Record.read(arguments.out) if arguments.out.exists() else empty_record(source, tasks)
    keeps = [float(keep) for keep in arguments.keeps.split(",")]
    for start, keep in starts(keeps):
        for seed in [int(seed) for seed in arguments.seeds.split(",")]:
            for name in arguments.tasks.split(","):
                if (name, start, keep, seed) not in {row.key for row in record.rows}:
                    record.rows.append(run(source, tasks[name], start, keep, seed))
                    print(json.dumps(asdict(record.rows[-1])), flush=True)
                    record.write(arguments.out)


if __name__ == "__main__":
    main()

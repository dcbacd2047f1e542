"""Fine-tuning by transformers' Trainer against `tune`, full and fused, at the same examples: time, memory, score.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/finetune.py [MPNET] [--out benchmarks/results/finetune.json]

all-MiniLM-L6-v2, and MPNET if it is given (examples/mpnet.py makes it). Every run is a process of its own on an
otherwise idle machine, all loops of a seed after each other; a seed draws the head, the order and the dropout. Every
loop sees the same tokens in batches of 32 with the same rate, decay and schedule, and scores the validation split
once. Padded to 128 is what run_glue.py does, the collator's padding what the Trainer does by itself, and it can group
by length when told so. Fused: all layers at a quarter of their width, cut in the same process. bf16: autocast, the
weights stay fp32. A run that the record holds is not repeated, so a command that was stopped goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlpfusion.storage.atomic import write_file


@dataclass(frozen=True)
class Loop:
    """How a run trains: by transformers' Trainer or by `tune`, the full model or the fused one."""

    by_trainer: bool = False
    is_padded: bool = False
    is_grouped: bool = False
    is_fused: bool = False
    precision: str = "fp32"


LOOPS = {
    "Trainer, padded to 128": Loop(by_trainer=True, is_padded=True),
    "Trainer": Loop(by_trainer=True),
    "Trainer, grouped by length": Loop(by_trainer=True, is_grouped=True),
    "Trainer, bf16": Loop(by_trainer=True, precision="bf16"),
    "tune, full": Loop(),
    "tune, fused": Loop(is_fused=True),
    "tune, full, bf16": Loop(precision="bf16"),
    "tune, fused, bf16": Loop(is_fused=True, precision="bf16"),
}
BATCH, MAX_LENGTH, KEEP_RATIO, WARM_UP, DECAY = 32, 128, 0.25, 0.06, 0.1
# Task -> training examples of one epoch. SST-2 has 13 tokens a text, MRPC 53, RTE 70 and up to the limit.
TASKS = {"sst2": 3200, "mrpc": 1280, "rte": 960}
RATES = {"MiniLM": 1e-4, "MPNet": 5e-5}


@dataclass(frozen=True)
class Run:
    """One fine-tuning run; `loop` is a name in `LOOPS`."""

    model: str
    task: str
    loop: str
    seed: int


@dataclass(frozen=True)
class Row:
    """What a run took: wall seconds from the start of the process, of the training and of the evaluation apart.

    `tokens` are those of the texts, without padding. `peak_bytes` is the memory of the process.
    """

    run: Run
    steps: int
    tokens: int
    start_seconds: float
    training_seconds: float
    evaluation_seconds: float
    peak_bytes: int
    scores: Mapping[str, float]


def measured(run: Run, folder: Path, started: float) -> Row:
    """Makes one run in this process; `started` is the time at which it began."""
    import torch

    from mlpfusion.checkpoint.open import open_for_training
    from mlpfusion.data.task_model import encode_for, load_for_task
    from mlpfusion.data.tasks import load_task
    from mlpfusion.options.training import Finetune
    from mlpfusion.record import peak_bytes

    config = Finetune(
        learning_rate=RATES[run.model],
        epochs=1,
        batch_size=BATCH,
        warmup_ratio=WARM_UP,
        weight_decay=DECAY,
        seed=run.seed,
        select_on="last",
        max_train_samples=TASKS[run.task],
        device="cpu",
        precision=LOOPS[run.loop].precision,
    )
    source = open_for_training(str(folder))
    data = encode_for(source, load_task(run.task), MAX_LENGTH, config)
    model = load_for_task(source, data.task, run.seed)
    loop = by_trainer if LOOPS[run.loop].by_trainer else by_tune
    ready = time.time()
    steps, training, scores = loop(run, model, data, config)
    return Row(
        run=run,
        steps=steps,
        tokens=sum(data.train.lengths),
        start_seconds=ready - started,
        training_seconds=training,
        evaluation_seconds=time.time() - ready - training,
        peak_bytes=peak_bytes(torch.device("cpu")),
        scores=scores,
    )


def by_tune(run: Run, model: Any, data: Any, config: Any) -> tuple[int, float, Mapping[str, float]]:
    """Steps, seconds and scores of this package's loop. The cut counts as training."""
    import mlpfusion
    from mlpfusion.tune.finetune import finetune

    started = time.time()
    if LOOPS[run.loop].is_fused:
        mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=KEEP_RATIO, seed=run.seed)
    cut = time.time() - started
    _, record = finetune(model, data, config)
    return record.steps, cut + record.seconds, record.scores["validation"]


def by_trainer(run: Run, model: Any, data: Any, config: Any) -> tuple[int, float, Mapping[str, float]]:
    """Steps, seconds and scores of transformers' Trainer as it is."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    from mlpfusion.data.tasks import kind_of_task

    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    loop = LOOPS[run.loop]
    padding = "max_length" if loop.is_padded else "longest"
    with TemporaryDirectory() as states:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=states,
                num_train_epochs=config.epochs,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                warmup_steps=config.warmup_ratio,
                train_sampling_strategy="group_by_length" if loop.is_grouped else "random",
                seed=run.seed,
                save_strategy="epoch",  # as `tune` does
                use_cpu=True,
                bf16=loop.precision == "bf16",
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=data.train,
            data_collator=DataCollatorWithPadding(tokenizer, padding, MAX_LENGTH),
        )
        started = time.time()
        steps = trainer.train().global_step
        training = time.time() - started
        output: Any = trainer.predict(data.evaluation["validation"])
    return steps, training, kind_of_task(data.task).score(data.task, output.predictions, output.label_ids)


def in_own_process(run: Run, folder: Path) -> dict[str, Any]:
    """The row of a run, made by a process of its own."""
    task = json.dumps(asdict(run) | {"folder": str(folder), "started": time.time()})
    process = subprocess.run([sys.executable, __file__, "--one", task], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mpnet", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetune.json"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        task = json.loads(arguments.one)
        folder, started = Path(task.pop("folder")), task.pop("started")
        print(json.dumps(asdict(measured(Run(**task), folder, started))))
        return
    import torch

    from mlpfusion.demo.model import demo_checkpoint
    from mlpfusion.record import versions

    folders = {"MiniLM": demo_checkpoint()} | ({"MPNet": arguments.mpnet} if arguments.mpnet else {})
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.is_file() else []
    for model, folder in folders.items():
        for seed in map(int, arguments.seeds.split(",")):
            for task in arguments.tasks.split(","):
                for run in (Run(model, task, loop, seed) for loop in LOOPS):
                    if asdict(run) in [row["run"] for row in rows]:
                        continue
                    rows.append(in_own_process(run, folder))
                    record = {
                        "batch_size": BATCH,
                        "keep_ratio": KEEP_RATIO,
                        "samples": TASKS,
                        "rates": RATES,
                        "threads": torch.get_num_threads(),
                        "cores": os.cpu_count(),
                        "machine": platform.machine(),
                        "versions": versions(),
                        "rows": rows,
                    }
                    write_file(arguments.out, json.dumps(record, indent=1) + "\n")
                    print(run, f"{rows[-1]['training_seconds']:.1f} s", rows[-1]["scores"], flush=True)


if __name__ == "__main__":
    main()

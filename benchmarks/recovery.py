"""How fast a cut language model recovers by ordinary training: perplexity on held-out text against optimiser steps.

    python benchmarks/recovery.py MODEL TRAIN TEST --out benchmarks/results/NAME_recovery.json [--keep-ratio 0.8]

MODEL is the folder of a causal language model, TRAIN and TEST are texts. From every start, and from the uncut model,
the same windows of TRAIN follow in the same order. A run that the record holds is not repeated, so a command that was
stopped goes on, and one with other starts, sizes, rates or seeds adds to the record.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, default_data_collator

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.compression.compress import compress
from mlpfusion.data.encode import EncodedExamples
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
from mlpfusion.data.unlabelled.windows import Window, token_windows
from mlpfusion.loop.callbacks import StepWatch
from mlpfusion.measure.language import language_loss
from mlpfusion.methods.names import method_label, parse_method
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import METHODS
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.record import versions
from mlpfusion.report.numbers import FULL
from mlpfusion.seeds import seeded
from mlpfusion.storage.atomic import write_file
from mlpfusion.tune.trainer import StageTrainer, training_arguments

STARTS = (
    "ntk-match",
    "ntk-match:match=none",
    "ntk-match:match=none:refine_epochs=0",
    "fusion",
    "folded-fusion",
    "clustering",
    "neuron-pruning",
)
TUNINGS = ("full", "lora")  # all weights, or LoRA on all linear maps of the layers
MEASURED_AT = (0, 10, 25, 50, 100, 200, 500, 1000)  # steps
CALIBRATION_WINDOWS, WARM_UP = 256, 10  # windows of TRAIN; steps
NEAR = 1.1  # times the perplexity of the uncut model before any training: where a start has recovered
END_OF_STORY = "<|endoftext|>"  # a line of TinyStories; a tokenizer without such a token would read its letters


@dataclass(frozen=True)
class Start:
    """A model that training begins from: a method at one size, or the uncut model for None."""

    method: Any
    keep_ratio: float

    @property
    def label(self) -> str:
        """Its name in tables."""
        return FULL if self.method is None else method_label(self.method)

    @property
    def sees_text(self) -> bool:
        """Whether the method is calibrated on TRAIN."""
        return self.method is not None and METHODS[type(self.method)].sees == "inputs" and needs_batches(self.method)


@dataclass(frozen=True)
class Run:
    """One training: `seed` draws the order of the windows, and the factors of LoRA."""

    start: Start
    tuning: str
    rate: float
    seed: int

    @property
    def key(self) -> tuple[str, float, str, float, int]:
        """Tells runs apart, as `Row.key` does."""
        return self.start.label, self.start.keep_ratio, self.tuning, self.rate, self.seed


@dataclass(frozen=True)
class Row:
    """What came of a run; `steps_to_recover` is None where `NEAR` was not reached."""

    start: str
    keep_ratio: float
    tuning: str
    rate: float
    seed: int
    sees_text: bool
    parameters: int
    trained_parameters: int
    perplexity: list[float]
    steps_to_recover: float | None
    seconds_per_step: float
    compress_seconds: float

    @property
    def key(self) -> tuple[str, float, str, float, int]:
        """Tells rows of the record apart."""
        return self.start, self.keep_ratio, self.tuning, self.rate, self.seed


@dataclass(frozen=True)
class Settings:
    """What is the same for all runs of a record."""

    model: str
    train: str
    test: str
    window: int
    batch_tokens: int
    tokens: int
    steps: int
    device: str

    @property
    def measured_at(self) -> list[int]:
        """The steps after which the perplexity is measured."""
        return [step for step in MEASURED_AT if step < self.steps] + [self.steps]


@dataclass(frozen=True)
class Record:
    """All runs so far, and on what they were made."""

    settings: Settings
    measured_at: list[int]
    optimizer: str
    lora: str
    calibration: str
    near: float
    perplexity: float
    machine: str
    threads: int
    versions: dict[str, str]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file that `write` made."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {"settings": Settings(**values["settings"]), "rows": [Row(**row) for row in values["rows"]]}
        return cls(**values)

    def write(self, path: Path) -> None:
        """Writes the record, complete or not at all."""
        write_file(path, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Bench:
    """The uncut model in fp32, and the texts as it reads them."""

    model: PreTrainedModel
    train: EncodedExamples
    held_out: list[Window]
    calibration: list[Batch]
    settings: Settings


class Curve(TrainerCallback):
    """Measures the perplexity of `model` on `windows` before training and after the steps `measured_at`."""

    def __init__(self, model: PreTrainedModel, windows: Sequence[Window], measured_at: Sequence[int]):
        self.model, self.windows, self.measured_at = model, windows, measured_at
        self.perplexity: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.measured_at:
            self.measure(state.global_step)

    def measure(self, step: int) -> None:
        """Adds a point and prints it."""
        self.perplexity.append(language_loss(self.model, self.windows).perplexity)
        print(f"  step {step}: perplexity {self.perplexity[-1]:.2f}", flush=True)


def steps_to(target: float, measured_at: Sequence[int], perplexity: Sequence[float]) -> float | None:
    """The first step at `target`, log perplexity being linear between two points; None if the curve stays above."""
    if perplexity[0] <= target:
        return 0.0
    for (before, high), (after, low) in pairwise(zip(measured_at, perplexity, strict=True)):
        if low <= target:
            return before + (after - before) * math.log(high / target) / math.log(high / low)
    return None


def texts_of(file: Path) -> list[str]:
    """The lines of a text without those that only end a story."""
    return [text for text in read_texts(file) if text != END_OF_STORY]


def prepared(folder: Path, train: Path, test: Path, settings: Settings) -> Bench:
    """Reads the model and packs the texts."""
    source = open_checkpoint(str(folder))
    texts, window = texts_of(train), settings.window
    windows = token_windows(texts, source.tokenizer, source.config, window=window)
    ids = [one.input_ids.tolist() for one in windows if len(one.input_ids) == window]  # the last may be shorter
    held_out = token_windows(texts_of(test), source.tokenizer, source.config, window=window, max_tokens=settings.tokens)
    model: Any = source.load()
    drawn = CalibrationTexts(train.name, None, CALIBRATION_WINDOWS, tuple(texts)).batches(folder, model, seed=0)
    examples = EncodedExamples([{"input_ids": one, "labels": one} for one in ids])
    return Bench(model.float(), examples, held_out, drawn, settings)


def begun(bench: Bench) -> Record:
    """A record without rows."""
    defaults, lora = Finetune(), Lora()
    return Record(
        settings=bench.settings,
        measured_at=bench.settings.measured_at,
        optimizer=f"AdamW, betas {defaults.adam_beta1} and {defaults.adam_beta2}, epsilon {defaults.adam_epsilon}, no "
        f"weight decay, gradients clipped at 1, constant rate after {WARM_UP} steps of linear warm-up, fp32",
        lora=f"r {lora.r}, alpha {lora.alpha:g}, all linear maps of the layers",
        calibration=f"{CALIBRATION_WINDOWS} windows of 128 tokens of the train split, seed 0",
        near=NEAR,
        perplexity=language_loss(bench.model, bench.held_out).perplexity,
        machine=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        versions=versions(),
        rows=[],
    )


def cut_model(bench: Bench, start: Start) -> tuple[PreTrainedModel, float]:
    """A copy of the model, cut, and the seconds of the cut."""
    model, started = deepcopy(bench.model), time.perf_counter()
    if start.method is not None:
        calibration = bench.calibration if start.sees_text else None
        compress(model, start.method, keep_ratio=start.keep_ratio, calibration=calibration)
    return model, time.perf_counter() - started


def with_lora(model: PreTrainedModel) -> Any:
    """`model` with factors of LoRA beside the linear maps of its layers; only they train.

    The product's `add_adapter` is for classifiers, whose head trains too.
    """
    lora = Lora()
    config = LoraConfig(r=lora.r, lora_alpha=int(lora.alpha), target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    return get_peft_model(model, config)


def training(run: Run, settings: Settings, folder: Path) -> TrainingArguments:
    """The product's AdamW for fine-tuning, but for the schedule and the weight decay."""
    defaults = Finetune()
    return training_arguments(
        folder,
        device=settings.device,
        precision="fp32",
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_tokens // settings.window,
        learning_rate=run.rate,
        weight_decay=0.0,
        adam_beta1=defaults.adam_beta1,
        adam_beta2=defaults.adam_beta2,
        adam_epsilon=defaults.adam_epsilon,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARM_UP,
        seed=run.seed,
        save_strategy="no",
    )


def recovered(bench: Bench, model: PreTrainedModel, run: Run, target: float, compress_seconds: float) -> Row:
    """Trains `model` and measures the curve."""
    settings, parameters = bench.settings, model.num_parameters()
    curve = Curve(model, bench.held_out, settings.measured_at)
    watch = StepWatch(lambda done, total, what: None, "")
    with TemporaryDirectory() as folder, seeded(run.seed):
        trained = with_lora(model) if run.tuning == "lora" else model
        StageTrainer(
            model=trained,
            args=training(run, settings, Path(folder)),
            train_dataset=bench.train,
            data_collator=default_data_collator,
            callbacks=[watch, curve],  # in this order: the seconds of a step are without the measurement after it
        ).train()
    return Row(
        start=run.start.label,
        keep_ratio=run.start.keep_ratio,
        tuning=run.tuning,
        rate=run.rate,
        seed=run.seed,
        sees_text=run.start.sees_text,
        parameters=parameters,
        trained_parameters=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        perplexity=curve.perplexity,
        steps_to_recover=steps_to(target, settings.measured_at, curve.perplexity),
        seconds_per_step=round(watch.seconds_per_step() or 0.0, 4),
        compress_seconds=round(compress_seconds, 2),
    )


def told(row: Row) -> str:
    """A row in one line."""
    reached = "not reached" if row.steps_to_recover is None else f"in {row.steps_to_recover:.0f} steps"
    return (
        f"{row.start}, {100 * row.keep_ratio:g} %, {row.tuning}, rate {row.rate:g}, seed {row.seed}: "
        f"{row.perplexity[0]:.2f} -> {row.perplexity[-1]:.2f}, {NEAR} x the full model's {reached}, "
        f"{row.seconds_per_step:.3f} s a step"
    )


def parsed() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--starts", nargs="+", default=STARTS, help="methods, as `mlpfusion compare` takes them")
    parser.add_argument("--keep-ratio", type=float, default=0.8)
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=TUNINGS)
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4], help="learning rates, each for every start")
    parser.add_argument("--lora-rates", nargs="+", type=float, default=[2e-3], help="the same for LoRA")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="tokens of a step, a multiple of a window's")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of TEST to measure on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.batch_tokens < arguments.window or arguments.batch_tokens % arguments.window:
        parser.error(f"--batch-tokens must be a multiple of {arguments.window}, got {arguments.batch_tokens}")
    return arguments


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What all runs of the command share."""
    return Settings(
        model=arguments.model.name,
        train=arguments.train.name,
        test=arguments.test.name,
        window=arguments.window,
        batch_tokens=arguments.batch_tokens,
        tokens=arguments.tokens,
        steps=arguments.steps,
        device=arguments.device,
    )


def runs_from(start: Start, arguments: argparse.Namespace) -> list[Run]:
    """The runs that the command asks for."""
    rates = {"full": arguments.rates, "lora": arguments.lora_rates}
    return [
        Run(start, tuning, rate, seed)
        for seed in arguments.seeds
        for tuning in arguments.tunings
        for rate in rates[tuning]
    ]


def main() -> None:
    arguments = parsed()
    settings, out = settings_of(arguments), arguments.out
    starts = [Start(None, 1.0), *(Start(parse_method(name), arguments.keep_ratio) for name in arguments.starts)]
    bench = prepared(arguments.model, arguments.train, arguments.test, settings)
    record = Record.read(out) if out.exists() else begun(bench)
    assert record.settings == settings, f"{out} was made with {record.settings}"
    held = {row.key for row in record.rows}
    for start in starts:
        missing = [run for run in runs_from(start, arguments) if run.key not in held]
        if missing:
            cut, seconds = cut_model(bench, start)
            for run in missing:
                row = recovered(bench, deepcopy(cut), run, NEAR * record.perplexity, seconds)
                print(told(row), flush=True)
                record = replace(record, rows=[*record.rows, row])
                record.write(out)


if __name__ == "__main__":
    main()

"""Fine-tunes a model on a task: one run, one seed."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from mlpfusion.checkpoint.stage import GENERATED
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.language.labels import is_shifted
from mlpfusion.data.tasks import check_metric, kind_of_task, merit
from mlpfusion.dsee.record import DseeRecord
from mlpfusion.generation.run import generate_and_score
from mlpfusion.loop.callbacks import Patience, SaveWithinEpochs, StepWatch
from mlpfusion.loop.rows import RowDecay, used_rows
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.training import Finetune
from mlpfusion.progress import Progress
from mlpfusion.record import peak_bytes
from mlpfusion.seeds import seeded
from mlpfusion.sites.sites import check_in_memory
from mlpfusion.storage.processes import is_first, of_first
from mlpfusion.tune.adapter import add_adapter, check_unmoved, frozen_sha256, load_adapter, split_targets, take_off
from mlpfusion.tune.frozen import frozen, frozen_routers
from mlpfusion.tune.record import EpochRecord, GeneratedRecord, RunRecord
from mlpfusion.tune.trainer import StageTrainer, training_arguments

_TOGETHER = 8  # examples a batch of the pass for gradients: their sum is the same for any


@dataclass(frozen=True)
class RunContext:
    """Folder for the states of a run (None: temporary), progress callback, Trainer callbacks.

    If the folder holds states, the run resumes from the newest complete one.
    """

    folder: Path | None = None
    progress: Progress = lambda done, total, what: None
    callbacks: Sequence[TrainerCallback] = ()


def finetune(
    model: PreTrainedModel, data: EncodedTask, config: Finetune, context: RunContext | None = None
) -> tuple[PreTrainedModel, RunRecord]:
    """Fine-tunes `model` in place and returns (model, record of the run).

    The model needs the head of the task, and ends in eval mode with the weights of the best epoch.
    With LoRA or DSEE the adapter is saved as `adapter` in the folder of `context`, if given, and merged; one that was
    `continued` is not merged unless asked for. On the CPU the same seed gives the same bytes, also after a kill and a
    resumed run. Global random streams are restored. Raises `InputError`, before any change, for a head of another
    size, an offloaded model, `freeze_router` without a mixture, too few examples to hold some out, an unknown
    metric, and a missing device; and if an adapter's run moved the weights under it.
    After a `DivergenceError` (loss of NaN or Inf) or an interrupt the model has the weights of the
    last step: no copy is kept.
    """
    context = context or RunContext()
    trained, record = _train_all(model, data, config, context)
    if trained is not model:
        model = take_off(trained, config, context.folder if is_first() else None)
    return model.eval(), record


def train_adapter(
    model: PreTrainedModel, data: EncodedTask, config: Finetune, context: RunContext | None = None
) -> tuple[Any, RunRecord]:
    """As `finetune` with LoRA or DSEE, but the adapter stays beside the weights, in a `PeftModel` in eval mode.

    Nothing is saved but the states.
    """
    assert config.adapter is not None
    trained, record = _train_all(model, data, config, context or RunContext())
    return trained.eval(), record


def train_again(trained: Any, data: EncodedTask, config: Finetune, context: RunContext | None = None) -> RunRecord:
    """Trains a model further, in place, and returns the record of the run, with the scores before it.

    Of a `PeftModel` the adapter trains, as in `finetune` with one that is `continued`, and the weights under it stay as
    they are. A plain model trains as a whole, but for the zeros of masked maps.
    """
    assert config.adapter is config.continued is None
    model = trained if isinstance(trained, PreTrainedModel) else trained.get_base_model()
    _, record = _train_all(model, data, config, context or RunContext(), trained)
    trained.eval()
    return record


def _train_all(
    model: PreTrainedModel, data: EncodedTask, config: Finetune, context: RunContext, again: Any = None
) -> tuple[Any, RunRecord]:
    """The trained model, under its adapter if any, and the record.

    `again` trains further: `model`, or `model` under an old adapter.
    """
    metric, kind = check_metric(data.task, config.metric_for_best_model), kind_of_task(data.task)
    check_in_memory(model)
    kind.check_model(model, data.task)
    train, selection = split_train(data, config)
    routers = frozen_routers(model, freeze=config.freeze_router)
    use_cache = getattr(model.config, "use_cache", None)
    trains_weights = config.adapter is config.continued is None and (again is None or again is model)
    rows_of = (
        used_rows(model, train, data.collate)
        if trains_weights and not torch.distributed.is_initialized()
        else nullcontext()
    )
    with TemporaryDirectory() as scratch, seeded(config.seed), frozen(routers.values()), rows_of as rows:
        together = kind.evaluation_batch(config.batch_size)
        arguments = _arguments(context.folder or Path(scratch), config, metric, together, chooses=selection is not None)
        if config.continued is not None:
            again = load_adapter(model, config.continued)
        trained = again
        if again is None:
            trained = _with_new_adapter(model, config, data, train, routers, arguments.device)
        scored = selection if config.eval_steps is None else next(iter(data.evaluation.values()))
        sha256 = None if again is None or again is model else frozen_sha256(again)
        watch = StepWatch(context.progress, f"learning rate {config.learning_rate:g}, seed {config.seed}")
        patience = [] if config.patience is None else [Patience(config.patience, metric)]
        within = [] if config.save_steps is None else [SaveWithinEpochs(config.save_steps)]
        decay = [] if rows is None else [RowDecay(rows)]
        trainer = StageTrainer(
            model=trained,
            args=arguments,
            train_dataset=train,
            eval_dataset=None if scored is None else scored.by_length(),
            data_collator=data.collate,
            compute_metrics=lambda output: kind.score(data.task, output.predictions, output.label_ids),
            preprocess_logits_for_metrics=partial(kind.kept, shifted=is_shifted(model.config)),
            callbacks=[watch, *patience, *within, *decay, *context.callbacks],
        )
        before = None if again is None else _all_scores(trainer, data)
        seconds = _train(trainer, patience)
        scores = _all_scores(trainer, data)
        generated = (
            _generated(model, trainer.folder, data, context, scores) if isinstance(data, EncodedGeneration) else None
        )
        record = _run_record(trainer, config, metric, kind.choices(data.task), scores, seconds, watch)
        record = replace(record, generated=generated, dsee=_dsee_record(trained), before=before)
        if rows is not None:
            record = replace(record, trained_parameters=record.trained_parameters + rows.num_others)
    if use_cache is not None:  # the Trainer switches it off
        model.config.use_cache = use_cache
    if sha256 is not None:
        check_unmoved(trained, sha256)
    return trained, record


def _arguments(folder: Path, config: Finetune, metric: str, together: int, *, chooses: bool) -> Any:
    every = {"eval_strategy": "epoch" if chooses else "no"}
    if config.eval_steps is not None:
        every = {"eval_strategy": "steps", "eval_steps": config.eval_steps}
    return training_arguments(
        folder,
        device=config.device,
        precision=config.precision,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=together,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="linear",
        seed=config.seed,
        save_strategy="epoch",
        load_best_model_at_end=chooses,
        metric_for_best_model=f"eval_{metric}" if chooses else None,
        greater_is_better=merit(metric, 1.0) > 0 if chooses else None,
        **every,
    )


def _with_new_adapter(
    model: PreTrainedModel,
    config: Finetune,
    data: EncodedTask,
    train: EncodedExamples,
    routers: Mapping[str, nn.Parameter],
    device: torch.device,
) -> Any:
    """The model with the adapter that trains in place of its weights; the model itself if they do."""
    if config.adapter is None:
        return model
    gradients, new_tokens = None, data.added_ids if isinstance(data, EncodedGeneration) else ()
    if config.dsee is not None:
        model.to(device)  # pyright: ignore[reportArgumentType]  # Omega is drawn there
        gradients = _gradients(model, config.dsee, data, train)
    task_type = kind_of_task(data.task).names(model.config).adapter
    return add_adapter(model, config.adapter, task_type, routers, new_tokens, gradients)


def _gradients(
    model: PreTrainedModel, dsee: Dsee, data: EncodedTask, train: EncodedExamples
) -> dict[str, Tensor] | None:
    """What `omega=gradient` reads, from the first examples to train on; None for any other."""
    if dsee.support.omega != "gradient":
        return None
    from mlpfusion.dsee.gradients import loss_gradients

    items = train.items[: dsee.support.samples]
    batches = (data.collate(items[start : start + _TOGETHER]) for start in range(0, len(items), _TOGETHER))
    return loss_gradients(model, batches, split_targets(dsee))


def _dsee_record(trained: Any) -> DseeRecord | None:
    config = getattr(trained, "peft_config", {}).get("default")
    if config is None or config.peft_type != "DSEE":
        return None
    from mlpfusion.dsee.adapter.describe import describe

    return describe(trained)


def _train(trainer: StageTrainer, patience: Sequence[Patience]) -> float:
    """Trains from the newest state, if any, and returns the wall seconds.

    A run ended by `patience` before the kill trains no further.
    """
    state = trainer.newest_state()
    if state is not None:
        log = TrainerState.load_from_json(str(state / "trainer_state.json"))
        if any(callback.is_over(log.log_history) for callback in patience):
            assert log.epoch is not None
            trainer.args.num_train_epochs = round(log.epoch)
    started = time.perf_counter()
    trainer.train_on(state)
    return time.perf_counter() - started


def _all_scores(trainer: StageTrainer, data: EncodedTask) -> dict[str, dict[str, float]]:
    return {name: _scores(trainer, data, examples) for name, examples in data.evaluation.items()}


def _scores(trainer: StageTrainer, data: EncodedTask, examples: EncodedExamples) -> dict[str, float]:
    output = trainer.predict(cast(Any, examples.by_length()))
    kept, labels = cast(Any, output.predictions), cast(Any, output.label_ids)
    return kind_of_task(data.task).score(data.task, kept, labels)


def _generated(
    model: PreTrainedModel,
    folder: Path,
    data: EncodedGeneration,
    context: RunContext,
    scores: dict[str, dict[str, float]],
) -> GeneratedRecord:
    """Lets the model write, adds what its texts score to `scores`, groups of a split as splits of their own.

    With LoRA `model` has the factors in it.
    """
    found = of_first(lambda: generate_and_score(model, data, folder / GENERATED, context.progress))
    for name, numbers in found.numbers(data.task).items():
        scores[name] = scores.get(name, {}) | numbers
    return GeneratedRecord(found.signatures, dict(found.cut))


def _run_record(
    trainer: StageTrainer,
    config: Finetune,
    metric: str,
    choices: Sequence[str],
    scores: dict[str, Any],
    seconds: float,
    watch: StepWatch,
) -> RunRecord:
    state = trainer.state
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    trained = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    return RunRecord(
        learning_rate=config.learning_rate,
        seed=config.seed,
        selected_on=None if config.select_on == "last" else config.select_on,
        selection_metric=metric,
        selection_score=state.best_metric,
        best_step=state.best_global_step or state.global_step,
        steps=state.global_step,
        train_samples=len(cast(Any, trainer.train_dataset)),
        epochs=tuple(
            EpochRecord(
                epoch=entry["epoch"],
                step=int(entry["step"]),
                loss=entry["eval_loss"],
                scores={name: entry[f"eval_{name}"] for name in choices},
            )
            for entry in evaluations
        ),
        training_loss=trainer.loss_log(),
        scores=scores,
        trained_parameters=trained,
        seconds=round(seconds, 3),
        seconds_per_step=watch.seconds_per_step(),
        peak_bytes=peak_bytes(trainer.args.device),
    )

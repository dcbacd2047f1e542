"""Trains a compressed model on the original's hidden states or logits, without labels."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

from mlpfusion.batch import Batch, to_device
from mlpfusion.compression.provenance import check_source
from mlpfusion.data.encode import Collate, EncodedExamples, without_labels
from mlpfusion.data.labelled.heads import teacher_order
from mlpfusion.data.language.labels import NOT_PREDICTED, is_shifted
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.data.unlabelled.examples import labelled_batches
from mlpfusion.errors import InputError
from mlpfusion.loop.callbacks import SaveWithinEpochs, StepWatch
from mlpfusion.options.distill import Distill
from mlpfusion.options.training import Finetune
from mlpfusion.record import peak_bytes
from mlpfusion.seeds import seeded
from mlpfusion.sites.sites import base_model, check_in_memory
from mlpfusion.tune.finetune import RunContext
from mlpfusion.tune.frozen import frozen, frozen_routers
from mlpfusion.tune.layerwise import layer_states, layerwise_loss, only_blocks_trained
from mlpfusion.tune.record import DistillRun
from mlpfusion.tune.teacher import CachedTeacher, Teacher, cache_states
from mlpfusion.tune.trainer import Loss, StageTrainer, training_arguments


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    examples: EncodedExamples,
    collate: Collate,
    config: Distill,
    context: RunContext | None = None,
    cache: Path | None = None,
) -> DistillRun:
    """Trains `student` in place to match `teacher`.

    Labels of texts are ignored. Labels of tokens say where logits are matched: only at those that predict a token.
    The student ends in eval mode. `cache` is a folder for the teacher's hidden states (objectives
    without logits). On the CPU the same seed gives the same bytes, also after a kill and a resumed
    run. Raises `InputError`, before any change, for a teacher that does not fit (`check_pair`), an
    offloaded model, too few examples to hold some out, and a cache for logits. Raises
    `DivergenceError` for a loss of NaN or Inf; the student then has the weights of the last step.
    """
    for model in (student, teacher):
        check_in_memory(model)
    check_pair(student, teacher, config)
    if cache is not None and config.objective.startswith("logits"):
        raise InputError(f"`cache` must be left out for the objective {config.objective}: only hidden states are kept")
    context = context or RunContext()
    started, (train, held_out) = time.perf_counter(), split_examples(examples, config)
    rest = frozen(frozen_routers(student, freeze=config.freeze_router).values())
    fixed = only_blocks_trained(student) if config.objective == "layerwise" else rest
    watch = StepWatch(context.progress, config.objective)
    with TemporaryDirectory() as scratch, seeded(config.seed), fixed:
        loss = make_loss(Teacher(teacher.eval()), student, config)
        callbacks = [watch, *context.callbacks]
        trainer = _trainer(student, loss, train, collate, config, context.folder or Path(scratch), callbacks)
        cast(nn.Module, teacher).to(trainer.args.device)
        before = mean_loss(trainer, loss, _inputs(held_out, config), student.config)
        if cache is not None:
            trainer.loss = make_loss(cache_states(teacher, train, collate, cache), student, config)
        trainer.train_on(trainer.newest_state())
        after = mean_loss(trainer, loss, _inputs(held_out, config), student.config)
    student.eval()
    return DistillRun(
        objective=config.objective,
        seed=config.seed,
        steps=trainer.state.global_step,
        train_samples=len(train),
        held_out_samples=len(held_out),
        loss_before=before,
        loss_after=after,
        training_loss=trainer.loss_log(),
        seconds=round(time.perf_counter() - started, 3),
        seconds_per_step=watch.seconds_per_step(),
        peak_bytes=peak_bytes(trainer.args.device),
    )


def _trainer(
    student: PreTrainedModel,
    loss: Loss,
    train: EncodedExamples,
    collate: Collate,
    config: Distill,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> StageTrainer:
    whole = config.objective.startswith("logits")
    within = [] if config.save_steps is None else [SaveWithinEpochs(config.save_steps)]
    return StageTrainer(
        model=student if whole else base_model(student),
        args=_arguments(folder, config),
        train_dataset=_inputs(train, config),
        data_collator=collate,
        loss=loss,
        dropout=config.objective != "layerwise",
        callbacks=[*callbacks, *within],
    )


def check_pair(student: PreTrainedModel, teacher: PreTrainedModel, config: Distill, field: str = "original") -> None:
    """Raises `InputError` unless `teacher` fits `student` for the objective.

    Layer-wise: the student must be compressed, the teacher its source. Hidden states: equal number
    of layers and hidden size. Logits: equal class, outputs and class names, in any order. Messages
    call the teacher `field`. With `freeze_router` the student must have a mixture of experts.
    """
    frozen_routers(student, freeze=config.freeze_router)
    if config.objective == "layerwise":
        check_source(teacher, student, ("the teacher", "the student"), field)
        return
    sizes = [(c.num_hidden_layers, c.hidden_size) for c in (student.config, teacher.config)]
    if "hidden" in config.objective and sizes[0] != sizes[1]:
        raise InputError(f"`original` must have layers and hidden size {sizes[0]} like the student, got {sizes[1]}")
    if not config.objective.startswith("logits"):
        return
    if base_model(teacher) is teacher and teacher.get_output_embeddings() is None:  # a T5 has its head in itself
        raise InputError(
            f"`original` must have a head for the objective {config.objective}, got {type(teacher).__name__}"
        )
    if type(student) is not type(teacher) or student.config.num_labels != teacher.config.num_labels:
        raise InputError(
            f"`compressed` must be a {type(teacher).__name__} of {teacher.config.num_labels} outputs, "
            f"got {type(student).__name__} of {student.config.num_labels}"
        )
    teacher_order(student, teacher)


def make_loss(teacher: Teacher | CachedTeacher, student: PreTrainedModel, config: Distill) -> Loss:
    """Makes the loss of `config.objective`, a function of student and batch.

    The student comes as wrapped for training (DDP, PEFT).
    """
    student_config = student.config
    whole = config.objective.startswith("logits")
    order = teacher_order(student, cast(Teacher, teacher).model) if whole else None

    def states_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return layerwise_loss(layer_states(model, student_config, batch)[1], teacher.states(batch))

    def logits_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        whole_teacher = cast(Teacher, teacher)
        with head_at_predicted(student, batch) as inputs, head_at_predicted(whole_teacher.model, batch) as same_inputs:
            outputs, states = layer_states(model, student_config, inputs)
            target, target_states = whole_teacher.outputs(same_inputs)
        logits = target.logits if order is None else target.logits[..., order]
        loss = logits_divergence(outputs.logits, logits, matched(inputs, student_config), config.temperature)
        return loss + layerwise_loss(states, target_states) if "hidden" in config.objective else loss

    return logits_loss if whole else states_loss


def matched(batch: Batch, config: PreTrainedConfig) -> Tensor:
    """Where logits are matched, (samples, tokens): at labelled tokens, without labels at all but padding.

    The logits of a causal model stand one place before the token that they predict.

    >>> from transformers import GPT2Config
    >>> matched({"labels": torch.tensor([[-100, -100, 7, 8]])}, GPT2Config())
    tensor([[False,  True,  True, False]])
    """
    if "labels" not in batch:
        return batch["attention_mask"].bool()
    mask = batch["labels"] != NOT_PREDICTED
    return nn.functional.pad(mask[:, 1:], (0, 1)) if is_shifted(config) else mask


def logits_divergence(logits: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher / T || student / T), mean over samples, or over the tokens in `mask`.

    `logits` has shape (samples, classes), or (samples, tokens, classes) with `mask` (samples,
    tokens).

    >>> logits = torch.tensor([[1.0, -1.0]])
    >>> float(logits_divergence(logits, logits, torch.ones(1, 3), temperature=2.0))
    0.0
    """
    if logits.ndim == 3:
        logits, teacher = logits[mask.bool()], teacher[mask.bool()]
    student_log, teacher_log = (torch.log_softmax(x.float() / temperature, dim=-1) for x in (logits, teacher))
    return temperature**2 * nn.functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def split_examples(examples: EncodedExamples, config: Distill) -> tuple[EncodedExamples, EncodedExamples]:
    """Returns (training examples, held-out examples), split at random by `seed`.

    Raises `InputError` if a part would be empty.

    >>> examples = EncodedExamples([{"input_ids": [5]}] * 10)
    >>> [len(part) for part in split_examples(examples, Distill(holdout=0.2))]
    [8, 2]
    """
    num_held_out = round(config.holdout * len(examples))
    if not 1 <= num_held_out < len(examples):
        raise InputError(f"`holdout` must leave examples on both sides, got {config.holdout:g} of {len(examples)}")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(config.seed)).tolist()
    return examples.subset(order[num_held_out:]), examples.subset(order[:num_held_out])


def numbered(examples: EncodedExamples) -> EncodedExamples:
    """Replaces the labels of the examples by their numbers, as `index`.

    >>> numbered(EncodedExamples([{"input_ids": [5], "labels": 1}]))[0]
    {'input_ids': [5], 'index': 0}
    """
    items = enumerate(without_labels(examples).items)
    return EncodedExamples([item | {"index": number} for number, item in items])


def _inputs(examples: EncodedExamples, config: Distill) -> EncodedExamples:
    """What student and teacher get: without labels of texts, with those of tokens where logits are matched."""
    if not config.objective.startswith("logits") or not isinstance(examples[0].get("labels"), list):
        return numbered(examples)
    return EncodedExamples([item | {"index": number} for number, item in enumerate(examples.items)])


@torch.no_grad()
def mean_loss(trainer: StageTrainer, loss: Loss, examples: EncodedExamples, config: PreTrainedConfig) -> float:
    """Mean loss over `examples`, weighted by the tokens in `matched`; `config` is that of the model.

    For Eq. 6 that equals the loss of all examples as one batch.
    """
    model, device = trainer.network.eval(), trainer.args.device
    total, tokens = 0.0, 0
    for one in labelled_batches(examples, trainer.data_collator, trainer.args.per_device_train_batch_size):
        batch = to_device(one, device)
        weight = int(matched(batch, config).sum())
        total, tokens = total + weight * float(loss(model, batch)), tokens + weight
    return total / tokens


def _arguments(folder: Path, config: Distill) -> Any:
    layerwise = config.objective == "layerwise"
    return training_arguments(
        folder,
        device=config.device,
        precision=config.precision,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant" if layerwise else "linear",
        warmup_steps=0 if layerwise else Finetune.warmup_ratio,  # the paper's for fine-tuning; not tuned here
        weight_decay=0.0,
        seed=config.seed,
        save_strategy="epoch",
        remove_unused_columns=False,
    )

"""transformers' Trainer with repeatable order, complete states, and a stop at NaN."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from mlpfusion.checks import num_not_finite, user_path
from mlpfusion.data.encode import EncodedExamples
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.errors import DivergenceError as DivergenceError
from mlpfusion.errors import InputError
from mlpfusion.extras import TENSORBOARD
from mlpfusion.seeds import seeded, set_streams, streams
from mlpfusion.storage.processes import on_cpu
from mlpfusion.storage.states import keep_states, last_sealed, newest_state, remove_state, seal_state, state_folder
from mlpfusion.storage.trees import load_tree, save_tree

# Arguments of a loss function: the model, as wrapped for training, and a batch on its device.
Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
_OPTIMIZER, _SCHEDULE, _SCALER = "optimizer", "schedule", "scaler"


class LengthGroupedOrder(Sampler[int]):
    """Random order of similar lengths side by side, a function of seed and epoch.

    transformers' own sampler draws from the global random stream: an epoch resumed in the middle
    would go on in another order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch for the next order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # Seeds have 32 bits and a generator 64: no two pairs of seed and epoch share an order.
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def __len__(self) -> int:
        return len(self.lengths)


class StageTrainer(Trainer):
    """Trainer of one stage: fine-tuning, layer-wise tuning or distillation.

    `loss` replaces the model's own loss. States are sealed, without pickles (except DeepSpeed's and
    FSDP's own), and pruned to the last and the best. Raises `DivergenceError` at the first loss of
    NaN or Inf, and before saving a state with such weights.
    """

    def __init__(self, *, loss: Loss | None = None, dropout: bool = True, **options: Any):
        super().__init__(**options)
        self.loss, self.dropout = loss, dropout
        self.folder, self.network = Path(str(self.args.output_dir)), cast(nn.Module, self.model)
        self.resumed: Path | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Resumption(self))

    def newest_state(self) -> Path | None:
        """Finds the newest undamaged state and removes damaged ones; None without any."""
        return newest_state(self.folder, pickles=self._is_sharded())

    def train_on(self, state: Path | None) -> None:
        """Trains from a saved state, or from the beginning for None."""
        self.resumed = state
        if self.args.world_size > 1 and not self._is_sharded():
            handler: Any = self.accelerator.ddp_handler  # the Trainer looks at its argument before the model is there
            handler.find_unused_parameters = self.leaves_some_idle()
        self.train(resume_from_checkpoint=None if state is None else str(state))

    def loss_log(self) -> tuple[tuple[int, float], ...]:
        """Pairs (step, mean training loss since the last pair)."""
        return tuple((int(entry["step"]), entry["loss"]) for entry in self.state.log_history if "loss" in entry)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Loss of one batch: `loss` if given, else the model's own."""
        if self.loss is None:
            with head_at_predicted(cast(PreTrainedModel, self.network), inputs) as predicted:
                return super().compute_loss(model, predicted, *args, **kwargs)
        model.train(self.dropout)  # training_step has called train()
        return self.loss(model, inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Runs forward and backward of one batch. Raises `DivergenceError` for a loss of NaN or Inf."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._diverged(f"the loss became {loss.item()}")
        return loss

    def leaves_some_idle(self) -> bool:
        """True if a trainable parameter gets no gradient.

        Only then must DDP search for such parameters in every step.
        """
        examples = cast(EncodedExamples, self.train_dataset)
        batch = self._prepare_inputs(cast(Any, self.data_collator)([examples[0]]))
        network = self.network.to(self.args.device)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with seeded(0):
            loss = network(**batch).loss if self.loss is None else self.loss(network, batch)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return any(gradient is None for gradient in gradients)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedOrder:
        dataset = cast(EncodedExamples, self.train_dataset if train_dataset is None else train_dataset)
        batch_size = self.args.train_batch_size * self.args.world_size
        return LengthGroupedOrder(dataset.lengths, batch_size, self.args.seed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        bad = [name for name, value in self.network.named_parameters() if num_not_finite(value)]
        if bad:
            self._diverged(f"{bad[0]} holds NaN or Inf")
        state = state_folder(self.folder, self.state.global_step)
        if self.is_world_process_zero():
            remove_state(state)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal_state(state)
            keep_states(self.folder, {self.state.global_step, self.state.best_global_step or 0})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with _own_names(self.model):
            super()._save(output_dir, state_dict)
        (Path(output_dir or self.folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # pickled, never read

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded():
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_tree(cast(Any, self.optimizer).state_dict(), Path(output_dir), _OPTIMIZER)
            save_tree(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir), _SCHEDULE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._is_sharded():
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            cast(Any, self.optimizer).load_state_dict(load_tree(Path(checkpoint), _OPTIMIZER))
            cast(Any, self.lr_scheduler).load_state_dict(load_tree(Path(checkpoint), _SCHEDULE))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and self.args.should_save:
            save_tree(scaler.state_dict(), Path(output_dir), _SCALER)

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and checkpoint is not None:
            scaler.load_state_dict(load_tree(Path(checkpoint), _SCALER))

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves random streams and the losses since the last log entry, per process."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # several processes come here, in any order
        loss = {"sum": float(cast(Tensor, self._tr_loss)), "since": self._globalstep_last_logged}
        save_tree(
            {"streams": streams(self.args.device), "loss": loss}, Path(output_dir), f"process-{self.args.process_index}"
        )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_streams(self._of_this_process(Path(checkpoint))["streams"], self.args.device)

    def _of_this_process(self, state: Path) -> dict[str, Any]:
        name = f"process-{self.args.process_index}"
        if not (state / f"{name}.json").is_file():
            raise InputError(f"the run must be resumed by as many processes as it was begun by: {state} has no {name}")
        return load_tree(state, name)

    def go_on(self) -> None:
        """Restores two things forgotten by the Trainer: unlogged losses, and the best state."""
        if self.resumed is not None:
            loss = self._of_this_process(self.resumed)["loss"]
            self._tr_loss += loss["sum"]
            self._globalstep_last_logged = loss["since"]
            best = self.state.best_global_step
            self.state.best_model_checkpoint = None if not best else str(state_folder(self.folder, best))

    def _is_sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Asserts a perfect fit of state and model; tied weights are stored once."""
        values = dict(self.network.named_parameters(remove_duplicate=False)) | dict(self.network.named_buffers())
        loaded = {id(value) for name, value in values.items() if name not in load_result.missing_keys}
        lost = [name for name in load_result.missing_keys if name not in values or id(values[name]) not in loaded]
        assert not lost, lost
        assert not load_result.unexpected_keys, load_result.unexpected_keys

    def _diverged(self, what: str) -> NoReturn:
        state = last_sealed(self.folder)
        kept = f"the last good state is {state}" if state else "no state had been saved yet"
        raise DivergenceError(
            f"`learning_rate` must be small enough for a finite loss, got {self.args.learning_rate:g}: {what} "
            f"in step {self.state.global_step + 1}; {kept}"
        )


@contextmanager
def _own_names(model: Any) -> Iterator[None]:
    """Makes `model` save its tensors under its own names, by which the Trainer reads a state back.

    The files of a mixture otherwise hold one tensor an expert, which would be passed over. An adapter is saved alone:
    of the embeddings under it only rows that it has itself train.
    """
    holder: Any = model
    if isinstance(model, PreTrainedModel):
        holder.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    elif hasattr(model, "peft_config"):
        holder.save_pretrained = partial(holder.save_pretrained, save_embedding_layers=False)
    else:
        yield
        return
    try:
        yield
    finally:
        del holder.save_pretrained


class _Resumption(TrainerCallback):
    """Calls `go_on` when a run begins, after the Trainer has reset its counts."""

    def __init__(self, trainer: StageTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.go_on()


def training_arguments(folder: Path, *, device: str, precision: str, **options: Any) -> TrainingArguments:
    """Arguments of a silent Trainer with states in `folder`.

    Raises `InputError` for a missing device, and for fp16 on the CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("`device` must be cpu or auto on this machine, got 'cuda', but torch sees no CUDA device")
    cuda = torch.cuda.is_available() and not on_cpu(device)
    if precision == "fp16" and not cuda:
        raise InputError("`precision` must be fp32 or bf16 on the CPU, got 'fp16'")
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu(device),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        disable_tqdm=True,
        report_to="none",
        log_level_replica="passive",  # or every process but the first prints transformers' warnings
        logging_steps=10,  # a curve of a hundred points for a thousand steps
        logging_nan_inf_filter=False,
        dataloader_pin_memory=cuda,
        save_total_limit=None,
        **options,
    )


def log_callbacks(log_dir: str | None, name: str) -> list[TrainerCallback]:
    """Callback for TensorBoard; none without `log_dir`. Raises `InputError` if not installed."""
    if log_dir is None:
        return []
    folder = user_path("log_dir", log_dir)
    TENSORBOARD.check()
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder / name)))] if name else []

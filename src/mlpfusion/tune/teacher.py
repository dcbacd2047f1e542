"""Hidden states and logits of the original model, computed or cached."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedModel

from mlpfusion.batch import Batch, to_device
from mlpfusion.checkpoint.stage import is_whole
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.data.encode import Collate, EncodedExamples, without_labels
from mlpfusion.sites.sites import base_model
from mlpfusion.storage.manifest import seal
from mlpfusion.storage.output import staged_folder
from mlpfusion.storage.processes import of_first
from mlpfusion.storage.raw import raw_bytes
from mlpfusion.storage.unfinished import give_back
from mlpfusion.tune.layerwise import States, layer_states

_STATES = "states.npy"


@dataclass(frozen=True)
class Teacher:
    """The original model in eval mode, without gradients."""

    model: PreTrainedModel

    @torch.no_grad()
    def states(self, batch: Batch) -> States:
        """Hidden states after every layer, without padding."""
        return layer_states(base_model(self.model), self.model.config, batch)[1]

    @torch.no_grad()
    def outputs(self, batch: Batch) -> tuple[Any, States]:
        """Outputs with logits, and the hidden states."""
        return layer_states(self.model, self.model.config, batch)


@dataclass(frozen=True)
class CachedTeacher:
    """Hidden states of all examples in a memory-mapped file: (tokens, layers, hidden), fp32.

    `lengths` are the numbers of tokens of the examples, in their order.
    """

    file: Path
    lengths: tuple[int, ...]

    def states(self, batch: Batch) -> States:
        """Hidden states of the examples numbered in `batch["index"]`."""
        mapped = np.load(self.file, mmap_mode="r", allow_pickle=False)
        ends = np.cumsum(self.lengths)
        numbers = batch["index"].tolist()
        rows = [mapped[ends[number] - self.lengths[number] : ends[number]] for number in numbers]
        states = torch.from_numpy(np.concatenate(rows)).to(batch["input_ids"].device)
        return list(states.unbind(dim=1))


def cache_states(teacher: PreTrainedModel, examples: EncodedExamples, collate: Collate, folder: Path) -> CachedTeacher:
    """Writes the teacher's hidden states of `examples` below `folder`, or finds them there.

    The name holds a hash of teacher and examples. A cache appears complete or not at all; a damaged
    one is written again. Size: 4 bytes x tokens x layers x hidden size.
    """
    key = hashlib.sha256(f"{model_sha256(teacher)} {examples.sha256()}".encode()).hexdigest()
    cache = folder / f"teacher-states-{key[:32]}"  # 128 bits: no two caches share a name
    of_first(lambda: _fill_cache(cache, Teacher(teacher), examples, collate))
    return CachedTeacher(cache / _STATES, tuple(examples.lengths))


def _fill_cache(cache: Path, teacher: Teacher, examples: EncodedExamples, collate: Collate) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache.with_name(f".{cache.name}.lock"))
    lock.acquire()  # while another process writes the same cache, wait: then it is there
    try:
        if not is_whole(cache):
            with staged_folder(cache, listed=False) as staged:
                _write_states(teacher, examples, collate, staged / _STATES)
                seal(staged)
    finally:
        give_back(lock)


def model_sha256(model: PreTrainedModel) -> str:
    """Hash of the config and all parameters of the base model."""
    digest = hashlib.sha256(base_model(model).config.to_json_string().encode())
    for name, value in base_model(model).named_parameters():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()


def _write_states(teacher: Teacher, examples: EncodedExamples, collate: Collate, file: Path) -> None:
    order = sorted(range(len(examples)), key=lambda number: examples.lengths[number])
    ends = np.cumsum(examples.lengths)
    examples = without_labels(examples)
    mapped = None
    for start in range(0, len(order), BATCH_SIZE):
        numbers = order[start : start + BATCH_SIZE]
        batch = to_device(collate([examples[number] for number in numbers]), teacher.model.device)
        states = torch.stack(list(teacher.states(batch)), dim=1).float().cpu().numpy()
        if mapped is None:
            shape = (int(ends[-1]), *states.shape[1:])
            mapped = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        parts = np.split(states, np.cumsum([examples.lengths[number] for number in numbers])[:-1])
        for number, part in zip(numbers, parts, strict=True):
            mapped[ends[number] - examples.lengths[number] : ends[number]] = part
    assert mapped is not None
    mapped.flush()

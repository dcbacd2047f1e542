"""The scores of a checkpoint on a task, without training it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from mlpfusion.batch import to_device
from mlpfusion.checkpoint.files import adapter_beside
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.stage import GENERATED
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.checks import user_path
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.labelled.heads import has_head
from mlpfusion.data.language.labels import is_shifted
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.data.task import TaskData
from mlpfusion.data.task_model import encode_for, load_for_task
from mlpfusion.data.tasks import kind_of_task
from mlpfusion.data.unlabelled.examples import labelled_batches
from mlpfusion.dsee.load import put_beside_on
from mlpfusion.errors import InputError
from mlpfusion.generation.run import generate_and_score
from mlpfusion.generation.scores import Signatures
from mlpfusion.options.decoding import Decoding
from mlpfusion.progress import Progress
from mlpfusion.record import Origin, versions
from mlpfusion.storage.listing import file_sha256
from mlpfusion.storage.record_job import RecordJob
from mlpfusion.storage.unfinished import normalised

RECORD_FILE = "evaluation.json"


@dataclass(frozen=True)
class TaskEvaluation:
    """Scores of a checkpoint by split, groups of a split as splits of their own.

    `cut`: by split, how many generated texts reached the limit. `signatures` say how texts were scored.
    """

    model: Origin
    task: str
    data: str
    scores: dict[str, dict[str, float]]
    decoding: Decoding | None
    signatures: Signatures | None
    cut: dict[str, int]
    parameters: int
    device: str
    threads: int
    versions: dict[str, str]


def encode_for_scores(source: Checkpoint, data: TaskData[Any, Any], max_length: int | None) -> EncodedTask:
    """Tokenizes `data`, its reported splits.

    Raises `InputError` for a checkpoint without a trained head for the task.
    """
    kind = kind_of_task(data.task)
    head = kind.model_class(kind.config(source, data.task))
    if kind.row_is_example and not has_head(source, head):
        raise InputError(f"`model` must have a trained head for {data.task.name}, {source.name} has none")
    return encode_for(source, data, max_length)


def evaluate_on_task(
    source: Checkpoint, data: EncodedTask, out: str | None, device: str, progress: Progress, *, overwrite: bool = False
) -> TaskEvaluation:
    """Scores `source` on `data`, in fp32.

    Generated texts and the record are written into the new folder `out`, if one is named; `overwrite` replaces a
    former one. A run that was killed goes on with the texts that are missing when it is started again.
    """
    if out is None:
        with TemporaryDirectory() as scratch:
            return _evaluated(source, data, Path(scratch), device, progress)
    job = RecordJob(user_path("out", out), RECORD_FILE, overwrite, (source.name,))
    splits = {name: examples.sha256() for name, examples in data.evaluation.items()}
    told = {"decoding": asdict(data.decoding)} if isinstance(data, EncodedGeneration) else {}
    beside = adapter_beside(source.folder)
    told |= {} if beside is None else {"adapter": file_sha256(beside / "adapter_model.safetensors")}
    settings = normalised({"model": source.sha256, "task": data.task.name, "versions": versions()} | splits | told)

    def keep_texts(_record: dict[str, Any], staged: Path) -> None:
        for file in sorted((job.folder / GENERATED).glob("*.jsonl")):
            (staged / file.name).write_bytes(file.read_bytes())

    return _from_dict(
        job.record(settings, lambda: asdict(_evaluated(source, data, job.folder, device, progress)), keep_texts)
    )


def _evaluated(source: Checkpoint, data: EncodedTask, folder: Path, device: str, progress: Progress) -> TaskEvaluation:
    kind, model = kind_of_task(data.task), load_for_task(source, data.task, 0).eval()
    kind.check_model(model, data.task)
    put_beside_on(model, source.folder)
    cast(nn.Module, model).to(device)
    scores = {name: task_scores(model, data, examples) for name, examples in data.evaluation.items()}
    decoding, signatures, cut = None, None, dict[str, int]()
    if isinstance(data, EncodedGeneration):
        generated = generate_and_score(model, data, folder / GENERATED, progress)
        for name, numbers in generated.numbers(data.task).items():
            scores[name] = scores.get(name, {}) | numbers
        decoding, signatures, cut = data.decoding, generated.signatures, dict(generated.cut)
    return TaskEvaluation(
        source.origin,
        data.task.name,
        data.source,
        scores,
        decoding,
        signatures,
        cut,
        model.num_parameters(),
        device,
        torch.get_num_threads(),
        versions(),
    )


def _from_dict(data: dict[str, Any]) -> TaskEvaluation:
    parts: dict[str, Any] = {"model": Origin(**data["model"])}
    if data["decoding"] is not None:
        parts |= {"decoding": Decoding(**data["decoding"]), "signatures": Signatures(**data["signatures"])}
    return TaskEvaluation(**data | parts)


@torch.no_grad()
def task_scores(model: PreTrainedModel, data: EncodedTask, examples: EncodedExamples) -> dict[str, float]:
    """Every score of one split that needs no text to be written."""
    kind, kept, labels = kind_of_task(data.task), [], []
    for batch in labelled_batches(examples, data.collate, max(1, BATCH_SIZE // kind.answers)):
        placed = to_device(batch, model.device)
        with head_at_predicted(model, placed) as inputs:
            logits = model(**inputs).logits
        kept.append(kind.kept(logits, placed["labels"], shifted=is_shifted(model.config)).cpu())
        labels.append(batch["labels"].flatten())
    return kind.score(data.task, torch.cat(kept).numpy(), torch.cat(labels).numpy())

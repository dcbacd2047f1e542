"""Scores of a checkpoint on tasks of lm-eval, the harness of EleutherAI, in this process."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checks import user_path
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.extras import LM_EVAL
from mlpfusion.measure.evaluation.task import RECORD_FILE
from mlpfusion.record import Origin, versions
from mlpfusion.seeds import seeded
from mlpfusion.storage.output import check_output, staged_folder

_BATCH = 8  # requests that are run together; not tuned, the numbers do not depend on it but for rounding
# What its table needs; the rest of its results are the requests, and the settings that are recorded here.
_KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
_NEAREST = 5


@dataclass(frozen=True)
class HarnessEvaluation:
    """Scores of a checkpoint; `found` is what lm-eval gives, without single requests."""

    model: Origin
    tasks: tuple[str, ...]
    found: dict[str, Any]
    parameters: int
    dtype: str
    device: str
    threads: int
    seconds: float
    versions: dict[str, str]

    def tables(self) -> tuple[str, ...]:
        """The tables that lm-eval prints: tasks, and groups of tasks if there are any."""
        utils: Any = import_module("lm_eval.utils")
        return tuple(utils.make_table(self.found, name) for name in ("results", "groups") if self.found.get(name))


def harness_tasks(names: Sequence[str], include: str | None) -> Any:
    """The `TaskManager` of lm-eval, with the tasks in the YAML files below the folder `include` too.

    Raises `InputError` without the package, for a folder that is not there, for a name that lm-eval does not know, and
    for a task whose files or data cannot be read.
    """
    LM_EVAL.check()
    folder = None if include is None else user_path("lm_eval_include", include)
    if folder is not None and not folder.is_dir():
        raise InputError(f"`lm_eval_include` must be a folder of YAML files, got {include}")
    datasets: Any = import_module("datasets")
    manager = cast(Any, import_module("lm_eval.tasks")).TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            alike = _alike(name, manager.all_tasks)
            raise InputError(f"`lm_eval` must name tasks that lm-eval has{alike}, got {shown(name)}")
    unreadable = (OSError, ValueError, LookupError, TypeError, ImportError, yaml.YAMLError)
    try:
        manager.load(list(names))
    except (*unreadable, datasets.exceptions.DatasetsError) as error:
        named = ",".join(names)
        raise InputError(f"`lm_eval` must name tasks that can be read, got {named}: {one_line(error)}") from error
    return manager


def evaluate_by_harness(
    source: Checkpoint, names: Sequence[str], manager: Any, out: str | None, device: str, *, overwrite: bool = False
) -> HarnessEvaluation:
    """Runs the tasks `names` on `source`; the record is written into the new folder `out`, if one is named,
    or in the place of a former one with `overwrite`.

    Seeds, batches of shots and all else are lm-eval's own defaults. Global random streams are restored. Raises
    `InputError`, before weights are read, for a decoder whose tokenizer puts a token after a text.
    """
    check_texts_are_open(source)
    folder = None if out is None else user_path("out", out)
    replaced = None if folder is None else check_output(folder, overwrite=overwrite, reads=(source.name,))
    evaluator: Any = import_module("lm_eval.evaluator")
    models: Any = import_module("lm_eval.models.huggingface")
    model = source.load()
    cast(nn.Module, model).to(device)
    started = time.perf_counter()
    with seeded(0):
        runner = models.HFLM(pretrained=model, tokenizer=source.tokenizer, batch_size=_BATCH)
        results = evaluator.simple_evaluate(runner, tasks=list(names), task_manager=manager, log_samples=False)
    kept = {name: results[name] for name in _KEPT if name in results}
    found = HarnessEvaluation(
        model=source.origin,
        tasks=tuple(names),
        found=json.loads(json.dumps(kept, default=float)),  # NumPy's numbers
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        threads=torch.get_num_threads(),
        seconds=round(time.perf_counter() - started, 3),
        versions=versions() | {"lm_eval": version("lm-eval")},
    )
    if folder is not None:
        with staged_folder(folder, replaced) as staged:
            Path(staged, RECORD_FILE).write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return found


def check_texts_are_open(source: Checkpoint) -> None:
    """Raises `InputError` for a decoder whose tokenizer ends every text by a token.

    lm-eval reads a text and its answer as one and cuts at the length of the text alone: with such a token it would
    score the end in place of the first token of the answer.
    """
    if source.config.is_encoder_decoder:
        return
    ids, bare = (source.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if ids[-1:] != bare[-1:]:
        token = source.tokenizer.convert_ids_to_tokens(ids[-1])
        raise InputError(
            f"`model` must have a tokenizer that puts nothing after a text for lm_eval, {source.name} has one that "
            f"puts {shown(token)}: save it with another post-processor"
        )


def _alike(name: str, known: Sequence[str]) -> str:
    """Some names like `name`: there are thousands."""
    found = get_close_matches(name, known, _NEAREST)
    return f", such as {', '.join(found)}" if found else ""

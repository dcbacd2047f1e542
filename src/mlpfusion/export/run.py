"""From a compressed checkpoint to a form that other engines load: checked first, written whole or not at all."""

import inspect
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import carried_files
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.read import check_fit
from mlpfusion.errors import InputError, shown
from mlpfusion.export.target import GGUF_TYPES, ExportWork, Target
from mlpfusion.heads.key import NO_STOCK_FORM, HeadsKey, heads_key
from mlpfusion.heads.slicing import set_heads_key
from mlpfusion.kinds.key import FusionKey, model_key
from mlpfusion.kinds.stock.fold import fold, form_after_fold
from mlpfusion.kinds.stock.form import StockForm
from mlpfusion.record import Origin, model_size, versions
from mlpfusion.seeds import site_generator
from mlpfusion.sites.parts import vocabulary_size
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs
from mlpfusion.storage.output import Occupant, staged_folder

EXPORT_RECORD_FILE = "mlp_fusion_export_record.json"
_TRACED, _COMPARED = (2, 16), (3, 9)  # texts and tokens: of another size, to see that a graph takes any


@dataclass(frozen=True)
class ExportRecord:
    """What was written, and how near its outputs are: `compared` says it in words, `difference` is the number in them.

    `engine` computed them in a process without this package. `padding` counts parameters of zeros that were added.
    """

    to: str
    engine: str
    dtype: str
    model: Origin
    source_sha256: str
    pad_to: int | None
    parameters: int
    padding: int
    bytes: int
    seconds: float
    compared: str
    difference: float
    versions: dict[str, str]


def check_export(source: Checkpoint, target: Target, pad_to: int | None, dtype: str | None) -> None:
    """Raises `InputError`, before any weight is read, for all that can be known.

    That is a checkpoint that is not compressed, one that the target cannot hold, files that are
    missing, and packages that are.
    """
    if target.needs is not None:
        target.needs.check()
    if dtype is not None and target.name != "gguf":
        raise InputError(f"`dtype` must be left out but for `to` gguf, got {shown(dtype)}")
    if dtype is not None and dtype not in GGUF_TYPES:
        raise InputError(f"`dtype` must be one of {', '.join(GGUF_TYPES)}, got {shown(dtype)}")
    if pad_to is not None and pad_to < 1:
        raise InputError(f"`pad_to` must be at least 1, got {pad_to}")
    key = model_key(source.config)
    if key is None and heads_key(source.config) is None:
        raise InputError(f"`model` must be compressed by mlpfusion, got {shown(source.name)}, which needs no folding")
    if key is None and pad_to is not None:
        raise InputError(f"`pad_to` must be left out for a model whose MLPs have one width, got {pad_to}")
    form = StockForm(reason=NO_STOCK_FORM) if key is None else form_after_fold(source.empty(), key, pad_to)
    reason = target.refusal(source.config, form) if form.is_foldable else form.reason
    if reason is not None:
        cure = "; --pad-to gives them one" if form.is_uneven else ""
        raise InputError(f"`to` {target.name} must find a stock form of the model, but {reason}{cure}")
    check_fit(source.folder, source.config)
    carried_files(source.folder)


def export_checkpoint(
    source: Checkpoint,
    target: Target,
    out: Path,
    replaced: Occupant | None,
    card: Callable[[ExportRecord, Path], str],
    pad_to: int | None = None,
    dtype: str | None = None,
) -> ExportRecord:
    """Writes the folded model of a checkpoint into the new folder `out`, complete or not at all.

    What was written is run by its engine, in a process without this package, and compared. `card` makes the text of the
    model card. The time of the record is that of writing. Raises `InputError` if the target cannot write the model, if
    its engine does not run what was written, or if the outputs differ by more than their numbers allow.
    """
    reference = source.load().float()
    work = ExportWork(source, _inputs(reference, _TRACED), _inputs(reference, _COMPARED), dtype or "f16")
    expected, nearness = target.expected(reference, work), target.nearness(source.config)
    model = source.load() if target.keeps_dtype else reference
    del reference
    key, heads, unpadded = model_key(model.config), heads_key(model.config), source.empty()
    if key is not None:
        form_after_fold(unpadded, key)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the form: it was asked before
            fold(model, pad_to=pad_to)
    set_heads_key(model, None)  # the forms that hold such a model hold its shapes
    stored = work.dtype if target.name == "gguf" else str(model.dtype).removeprefix("torch.")
    with staged_folder(out, replaced) as folder:
        started = time.perf_counter()
        target.write(model, work, folder)
        seconds = time.perf_counter() - started
        found = target.found(work, folder)
        difference = nearness.of(found, expected) if found.shape == expected.shape else float("inf")
        record = ExportRecord(
            to=target.name,
            engine=target.engine,
            dtype=stored,
            model=source.origin,
            source_sha256=_source_sha256(key, heads),
            pad_to=pad_to,
            parameters=model_size(model).parameters,
            padding=model_size(model).parameters - model_size(unpadded).parameters,
            bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            seconds=round(seconds, 1),
            compared=nearness.words.format(difference),
            difference=difference,
            versions=versions(),
        )
        if not difference <= nearness.most[stored]:
            raise InputError(
                f"`to` {target.name} must give the outputs of the model, but run by {target.engine} {record.compared}, "
                f"of which {nearness.most[stored]:g} is allowed"
            )
        (folder / "README.md").write_text(card(record, source.folder), encoding="utf-8")
        (folder / EXPORT_RECORD_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return record


def _source_sha256(key: FusionKey | None, heads: HeadsKey | None) -> str:
    """The hash of the original MLPs, or where none was cut that of the attentions that lost heads."""
    known = heads if key is None else key
    assert known is not None
    return known.source_sha256


def _inputs(model: PreTrainedModel, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Random texts for a model of language, one made-up input for another."""
    taken, size = inspect.signature(model.forward).parameters, vocabulary_size(model)
    if "input_ids" not in taken or size is None:
        return next(made_up_inputs(model))
    ids = torch.randint(size, shape, generator=site_generator(0, "export inputs"))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids.clone()}
    return {name: tensor for name, tensor in inputs.items() if name in taken}

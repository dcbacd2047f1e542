"""Finished blocks of a streamed run, each in a file beside OUT until all are there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.errors import InputError
from mlpfusion.kinds.key import entry_from_dict, entry_to_dict
from mlpfusion.kinds.kind import InstalledSite
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.mlp import MLP
from mlpfusion.record import SiteRecord
from mlpfusion.storage.atomic import staged_file

_ABOUT = "mlpfusion"
_COMPUTED = "computed:"  # before the names of tensors that are not for OUT


@dataclass(frozen=True)
class FinishedBlock:
    """What a block has become: its entry in the key, its part of the record, the wall time it took.

    `seen` is how much entered it while it was calibrated, None for a method that sees no data.
    """

    entry: InstalledSite
    record: SiteRecord
    seconds: float
    seen: CalibrationSize | None

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "entry": entry_to_dict(self.entry)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        record, seen = SiteRecord(**data["record"]), data["seen"]
        entry = entry_from_dict(record.path, data["entry"])
        return cls(entry, record, data["seconds"], None if seen is None else CalibrationSize(**seen))


@dataclass(frozen=True)
class BlockFiles:
    """The files of the blocks in `folder`, by their numbers in the order of the model."""

    folder: Path

    def path(self, number: int) -> Path:
        """Where the file of a block is, or will be."""
        return self.folder / f"block-{number:05}.safetensors"

    def write(
        self, number: int, block: FinishedBlock, tensors: Mapping[str, Tensor], computed: Sequence[MLP] = ()
    ) -> None:
        """Writes the file of a block, complete or not at all; `tensors` by their names in the files of OUT.

        `computed` are what the passes through the cut model go on with, for `computed` to read: an MLP a site.
        """
        every = dict(tensors)
        for place, mlp in enumerate(computed):
            # copies: safetensors refuses the same memory twice
            every |= {f"{_COMPUTED}{place}.{name}": one.clone() for name, one in Narrowed(mlp).tensors().items()}
        with staged_file(self.path(number)) as staged:
            save_file({name: one.cpu().contiguous() for name, one in every.items()}, staged, {_ABOUT: block.to_json()})

    def read(self, number: int) -> FinishedBlock | None:
        """What a block has become; None unless its file is there as it was written."""
        try:
            with safe_open(self.path(number), framework="pt") as opened:
                return FinishedBlock.from_json(opened.metadata()[_ABOUT])
        except (OSError, SafetensorError, InputError, ValueError, KeyError, TypeError):
            return None

    def read_whole(self, number: int) -> FinishedBlock:
        """What a block has become. Raises `InputError` where its file is gone or damaged."""
        block = self.read(number)
        if block is None:
            raise InputError(f"{self.path(number)} must be as it was written: --resume makes it again")
        return block

    def tensors(self, number: int) -> dict[str, Tensor]:
        """The tensors of a block: views of its file."""
        with safe_open(self.path(number), framework="pt") as opened:
            names = [name for name in opened.keys() if not name.startswith(_COMPUTED)]  # noqa: SIM118, no dictionary
            return {name: opened.get_tensor(name) for name in names}

    def computed(self, number: int, originals: Sequence[MLP]) -> list[MLP]:
        """What the passes through the cut model go on with in the place of the blocks `originals`."""
        with safe_open(self.path(number), framework="pt") as opened:
            names = set(opened.keys())

            def read(place: int, field: str) -> Tensor | None:
                name = f"{_COMPUTED}{place}.{field}"
                return opened.get_tensor(name) if name in names else None

            return [
                MLP(
                    up=opened.get_tensor(f"{_COMPUTED}{place}.up"),
                    down=opened.get_tensor(f"{_COMPUTED}{place}.down"),
                    activation=original.activation,
                    gate=read(place, "gate"),
                    up_bias=read(place, "up_bias"),
                    gate_bias=read(place, "gate_bias"),
                    down_bias=read(place, "down_bias"),
                    input_scale=read(place, "input_scale"),
                    output_scale=read(place, "output_scale"),
                    gating=original.gating,
                )
                for place, original in enumerate(originals)
            ]

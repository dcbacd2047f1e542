"""What a compression was told and what it saw: the entry `recipe` of its record."""

from dataclasses import asdict, dataclass
from typing import Any

from mlpfusion.data.encode import EncodedTask
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import METHODS
from mlpfusion.options.selection import Selection


@dataclass(frozen=True)
class CalibrationSize:
    """How much a calibrated method saw."""

    samples: int
    tokens: int


@dataclass(frozen=True)
class Settings:
    """All that decides the bytes of a compressed model beside the model itself.

    `calibration` is None for a calibrated method that drew its inputs from the norms, and for all others.
    """

    method: Any
    selection: Selection
    seed: int
    sequential: bool = False
    calibration: CalibrationSize | None = None
    task: EncodedTask | None = None

    @property
    def method_name(self) -> str:
        """The name of the method on the command line."""
        return method_name(type(self.method))

    def recipe(self) -> dict[str, Any]:
        """The settings as plain data, in the form of the record."""
        chosen = self.selection
        recipe = {"method": self.method_name, "options": asdict(self.method), "layers": chosen.layers}
        recipe |= {"keep_ratio": chosen.keep_ratio, "width": chosen.width, "round_to": chosen.round_to}
        recipe["seed"] = self.seed
        if chosen.budget is not None:
            recipe["budget"] = chosen.budget
        if METHODS[type(self.method)].sees == "inputs":
            recipe["sequential"] = self.sequential
            recipe["calibration"] = None if self.calibration is None else asdict(self.calibration)
        if self.task is not None:
            train = self.task.train
            told = {"name": self.task.task.name, "data": self.task.source, "samples": len(train)}
            recipe["task"] = {**told, "sha256": train.sha256()}
        return recipe

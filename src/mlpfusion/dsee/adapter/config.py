"""DSEE as a config of PEFT: what `get_peft_model` takes and `adapter_config.json` holds."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mlpfusion.checks import check_that
from mlpfusion.errors import InputError
from mlpfusion.options.adapters.dsee import Dsee, Support

# GPT-2 has query, key and value in one map.
_QUERY_KEY_VALUE = "attn.c_attn"


class DseeType(str, Enum):  # noqa: UP042  # as PEFT's own enum, which is closed: `str()` gives the name of the member
    """The name of this kind of adapter in files, beside those of PEFT's own enum."""

    DSEE = "DSEE"


@dataclass
class DseeConfig(PeftConfig):
    """DSEE for PEFT: y = W x + b + (`alpha` / `r`) (B A + S) x, S with values at the positions of `support`.

    Without `target_modules` query and value. `parts` says of maps, by the end of their path, which of equal parts of
    their outputs are covered; not given, of GPT-2's `attn.c_attn` query and value. `gradients` by path are what
    `omega=gradient` needs; they are not saved. `is_drawn` stands in files: the positions lie beside the values there.
    `entries` says of maps, by the end of their path, how many there are, where heads took some of `support` with them.
    `keep_zeros`: the weights have zeros, so merging is refused until it is set to False.
    """

    r: int = 16
    alpha: float = 32.0
    support: Support = field(default_factory=Support)
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    parts: dict[str, list[bool]] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    gradients: dict[str, Tensor] | None = field(default=None, repr=False)
    is_drawn: bool = False
    entries: dict[str, int] | None = None
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type: Any = DseeType.DSEE
        Dsee(self.r, self.alpha)  # checks them
        if isinstance(self.support, dict):  # from a file
            self.support = Support(**self.support)
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)
        for name, parts in (self.parts or {}).items():
            check_that(any(parts), f"parts of {name}", "a list of True and False, one at least True", parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values that are saved."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "gradients"}
        return values | {"support": dict(vars(self.support)), "is_drawn": True}

    def entries_of(self, path: str) -> int | None:
        """Returns how many entries the file holds of a map, None for as many as `support` says a part."""
        known = self.entries or {}
        return next((count for name, count in known.items() if f".{path}".endswith(f".{name}")), None)

    def parts_of(self, path: str, module: nn.Module, outputs: int) -> list[bool]:
        """Returns which parts of the outputs of a map are covered. Raises `InputError` unless they are equal."""
        usual = {_QUERY_KEY_VALUE: [True, False, True]} if isinstance(module, Conv1D) else {}
        known = usual if self.parts is None else self.parts
        parts = next((parts for name, parts in known.items() if f".{path}".endswith(f".{name}")), [True])
        if outputs % len(parts):
            raise InputError(f"`parts` must divide the {outputs} outputs of {path}, got {len(parts)} parts")
        return parts

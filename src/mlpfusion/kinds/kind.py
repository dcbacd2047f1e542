"""What a kind of outcome is: all that the package asks of it, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError, shown
from mlpfusion.kernel import Block
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.sites.sites import Site
from mlpfusion.sites.weights import Tensors

KEY = "mlp_fusion"
MAX_NUMBER = 2**53  # larger whole numbers are not exact in all readers of JSON


class InstalledSite(Protocol):
    """What the key of a saved config says of one block: a frozen dataclass of numbers and text."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_parameters(self) -> int: ...


@dataclass(frozen=True)
class BlockSize:
    """The size of a compressed block. `parameters` are stored, `nonzero_parameters` are not held at zero by a mask.

    `rank` is that of factors, by matrix where they differ.
    """

    width: int
    parameters: int
    nonzero_parameters: int
    rank: int | dict[str, int] | None = None


def _nothing(model: PreTrainedModel, site: Site) -> None:
    """Does nothing."""


def _no_width(entry: Any) -> int | None:
    """None."""


def _no_harm(model: PreTrainedModel, site: Site, entry: Any) -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """One kind of outcome. Its file ends with the one instance; `table.KINDS` has a row for each.

    `name` stands in keys and records, `outcome` is what a method hands back, `entry` what the key holds of a block.
    """

    name: str
    outcome: type[Outcome]
    entry: type[InstalledSite]
    # What is in the MLPs, for the model card, and what becomes of a checkpoint without this package.
    blocks: str
    without_package: str

    # (path, data) -> entry. Raises `InputError` for bad values; the names of the values were checked.
    read_entry: Callable[[str, Mapping[str, Any]], Any]
    # (site, outcome, tensors of the original) -> entry.
    entry_of: Callable[[Site, Any, Tensors], Any]
    # (site, outcome, tensors of the original) -> tensor name from the base model -> what a compressed model keeps.
    tensors: Callable[[Site, Any, Tensors], dict[str, Tensor]]

    # (model, site, entry) -> whether the modules of the block are there. Raises `InputError` where key and config
    # disagree.
    is_there: Callable[[PreTrainedModel, Site, Any], bool]
    # Puts new, uninitialised modules there. Changes the model; the parameters of the old modules stay as they are.
    make_room: Callable[[PreTrainedModel, Site, Any], None]
    # Raises `InputError` unless the loaded numbers are what `entry` promises.
    check: Callable[[PreTrainedModel, Site, Any], None]
    # Puts plain linear maps there that compute the same. Changes the model.
    fold: Callable[[PreTrainedModel, Site], None]
    # The block as what trains in it.
    trained_block: Callable[[PreTrainedModel, Site], Block]

    size: Callable[[Site, Any], BlockSize]
    # In words, with the numbers that the method left in the record.
    size_words: Callable[[BlockSize, Mapping[str, float]], str]

    # Ends of the names of the buffers of such blocks, which no stock model has, and whose they are.
    buffers: tuple[str, ...] = ()
    buffers_of: str = ""
    # Whether a tensor parallel plan may cut the block, and what is to be done once it has.
    can_be_cut: bool = True
    after_cut: Callable[[PreTrainedModel, Site], None] = _nothing
    # Why no adapter may be merged into the block, why there is no stock form, what folding costs.
    no_adapter: str | None = None
    no_stock_form: str | None = None
    fold_warning: str | None = None
    # The width before, where the kind changes it.
    original_width: Callable[[Any], int | None] = _no_width
    # Whether quantised weights in this block cost more accuracy than elsewhere.
    is_hurt_by_quantising: Callable[[PreTrainedModel, Site, Any], bool] = _no_harm


def replace_module(base: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`, whatever stood there. Changes `base`."""
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, module)


def number_at(where: str, value: Any, smallest: int = 1) -> int:
    """Returns `value`, a whole number of the key. Raises `InputError`, which names `where`, for anything else."""
    if type(value) is not int or not smallest <= value <= MAX_NUMBER:
        raise InputError(f"`{where}` must be a whole number of at least {smallest}, got {shown(value)}")
    return value


def text_at(where: str, value: Any) -> str:
    """Returns `value`, a text of the key. Raises `InputError`, which names `where`, for anything else."""
    if type(value) is not str:
        raise InputError(f"`{where}` must be text, got {shown(value)}")
    return value


def entry_place(path: str) -> str:
    """Where the entry of the layer at `path` stands in the key, for messages."""
    return f"{KEY}.sites[{path}]"

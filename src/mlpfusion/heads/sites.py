"""The attentions of a model, and which rows and columns of their maps belong to a head."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.heads.table import Attention, attentions_of
from mlpfusion.sites.sites import base_model, has_module
from mlpfusion.sites.weights import check_linear, linear_shape


@dataclass(frozen=True)
class Cut:
    """Which rows and columns of a linear map stay; None for all."""

    rows: list[int] | None = None
    columns: list[int] | None = None


@dataclass(frozen=True)
class HeadSite:
    """One attention of one layer. `path` is that of the module that computes it, from the base model.

    `num_heads` counts what can be removed: heads; where several queries share a key, a key with all its queries. A head
    is `head_size` rows of the key and `shared` times as many of the query.
    """

    path: str
    layer: int
    row: Attention
    query: str
    key: str
    value: str
    output: str
    num_heads: int
    head_size: int
    shared: int

    @property
    def maps(self) -> tuple[str, ...]:
        """Paths of the linear maps, each once."""
        return tuple(dict.fromkeys((self.query, self.key, self.value, self.output)))

    def query_rows(self, heads: Sequence[int]) -> list[int]:
        """Rows of the map `query` that make the queries of `heads`, in this order."""
        return _rows(heads, self.shared * self.head_size)

    def value_rows(self, heads: Sequence[int]) -> list[int]:
        """Rows of the map `value` that make their values."""
        start = 2 * self.num_heads * self.head_size if self.value == self.query else 0
        return [start + row for row in _rows(heads, self.head_size)]

    def cuts(self, kept: Sequence[int]) -> dict[str, Cut]:
        """Path of a map -> what stays of it with the heads `kept`."""
        query, key = self.query_rows(kept), _rows(kept, self.head_size)
        if self.key == self.query:
            width = self.num_heads * self.head_size
            rows = {self.query: [start + row for start in (0, width, 2 * width) for row in key]}
        else:
            rows = {self.query: query, self.key: key, self.value: key}
        return {path: Cut(rows=own) for path, own in rows.items()} | {self.output: Cut(columns=query)}


def _rows(heads: Sequence[int], size: int) -> list[int]:
    return list(chain.from_iterable(range(head * size, (head + 1) * size) for head in heads))


def find_heads(model: PreTrainedModel) -> list[HeadSite]:
    """Returns the attentions of all layers. Raises `InputError` where heads cannot be removed.

    >>> from transformers import BertConfig, BertModel
    >>> [site.num_heads for site in find_heads(BertModel(BertConfig(num_hidden_layers=2)))]
    [12, 12]
    """
    base = base_model(model)
    found = []
    for row in attentions_of(base.config.model_type):
        number = 0
        while has_module(base, f"{row.layer.format(number)}.{row.module}"):
            found.append(_site(base, row, number))
            number += 1
    if not found:
        raise InputError(f"`model` must have an attention to lose heads, got {type(model).__name__}")
    return found


def _site(base: PreTrainedModel, row: Attention, number: int) -> HeadSite:
    layer = row.layer.format(number)
    query, key, value, output = (f"{layer}.{name}" for name in (row.query, row.key, row.value, row.output))
    for path in (query, key, value, output):
        check_linear(base.get_submodule(path))
    size = getattr(base.get_submodule(f"{layer}.{row.module}"), row.head_size)
    outputs = [linear_shape(base.get_submodule(path))[0] for path in (query, key)]
    of_queries, of_keys = (outputs[0] // 3,) * 2 if query == key else outputs
    heads = of_keys // size
    return HeadSite(f"{layer}.{row.module}", number, row, query, key, value, output, heads, size, of_queries // of_keys)

"""Which heads go: those of the lowest scores, in every layer or in the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.checks import check_that
from mlpfusion.heads.sites import HeadSite

_SCOPES = ("layer", "global")


@dataclass(frozen=True)
class HeadChoice:
    """How many heads go: `drop_heads` of every attention, or with the `scope` global as many of all of them together.

    An attention keeps at least one.
    """

    drop_heads: int
    scope: str = "layer"

    def __post_init__(self) -> None:
        check_that(self.scope in _SCOPES, "scope", " or ".join(_SCOPES), self.scope)

    def check(self, sites: Sequence[HeadSite], name: str = "drop_heads") -> None:
        """Raises `InputError` if an attention has too few heads; `name` is what the user called their number."""
        fewest = min(site.num_heads for site in sites)
        what = "heads" if all(site.shared == 1 for site in sites) else "heads of keys, with which their queries go"
        allowed = f"between 1 and {fewest - 1}, an attention has {fewest} {what} and keeps one"
        check_that(1 <= self.drop_heads < fewest, name, allowed, self.drop_heads)


def head_scores(
    site: HeadSite, query: Float[Tensor, " rows"], value: Float[Tensor, " rows"]
) -> Float[Tensor, " heads"]:
    """Returns the sum over the rows of each head: those of its query in `query`, of its value in `value`."""
    heads = range(site.num_heads)
    both = query[site.query_rows(heads)], value[site.value_rows(heads)]
    return torch.stack([rows.view(site.num_heads, -1).sum(1) for rows in both]).sum(0)


def kept_heads(scores: Mapping[str, Tensor], choice: HeadChoice) -> dict[str, list[int]]:
    """Returns the heads that stay, by attention. Of equal scores the first head goes.

    >>> kept_heads({"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([9.0, 8.0, 7.0])}, HeadChoice(1, "global"))
    {'a': [0], 'b': [0, 1, 2]}
    """
    places = [(float(score), path, head) for path, own in scores.items() for head, score in enumerate(own)]
    kept = {path: set(range(len(own))) for path, own in scores.items()}
    left = {path: len(own) - choice.drop_heads if choice.scope == "layer" else 1 for path, own in scores.items()}
    total = choice.drop_heads * len(scores)
    for _, path, head in sorted(places, key=lambda place: place[0]):
        if total and len(kept[path]) > left[path]:
            kept[path].remove(head)
            total -= 1
    return {path: sorted(own) for path, own in kept.items()}

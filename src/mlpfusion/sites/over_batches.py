"""Tensors recorded batch by batch and joined: in memory, or in a temporary file where they are large."""

import shutil
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mlpfusion.batch import Batch, num_tokens
from mlpfusion.errors import InputError
from mlpfusion.storage.raw import raw_bytes

# Larger recordings go to a file: a laptop of 8 GB holds as much beside a model and its gradients.
IN_MEMORY_BYTES = 2**31


def joined_over_batches(
    batches: Sequence[Batch], recorded_in: Callable[[Batch], list[list[Tensor]]]
) -> list[list[Tensor]]:
    """Joins what every batch gives along the first dimension: some tensors a site.

    `recorded_in` returns the tensors of one batch, in a list for every site. If all batches are expected to give more
    than `IN_MEMORY_BYTES` the tensors are written to temporary files, and the results are views of these files on the
    CPU, in memory only while they are read. The files are gone with the results. Raises `InputError` for no batch, and
    for a temporary folder without room.

    >>> ((joined,),) = joined_over_batches([{"x": torch.ones(2)}, {"x": torch.zeros(1)}], lambda one: [[one["x"]]])
    >>> joined.tolist()
    [1.0, 1.0, 0.0]
    """
    if not len(batches):
        raise InputError("`batches` must hold at least one batch, got none")
    joined: list[list[_InMemory | _OnDisk]] = []
    for batch in batches:
        found = recorded_in(batch)
        if not joined:
            size = sum(tensor.nbytes for site in found for tensor in site)
            expected = size * sum(map(num_tokens, batches)) // max(1, num_tokens(batch))
            is_large = expected > IN_MEMORY_BYTES
            if is_large:
                _check_room(expected)
            joined = [[_OnDisk() if is_large else _InMemory() for _ in site] for site in found]
        for site, tensors in zip(joined, found, strict=True):
            for parts, tensor in zip(site, tensors, strict=True):
                parts.add(tensor)
    return [[parts.joined() for parts in site] for site in joined]


def on_disk(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in a temporary file, in memory only while it is read; the file is gone with it.

    >>> on_disk(torch.tensor([[1.0, 2.0]]).T).tolist()
    [[1.0], [2.0]]
    """
    file = _OnDisk()
    file.add(tensor.detach())
    return file.joined()


def _check_room(expected: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise InputError(
            f"`calibration` must be recorded in the temporary folder {folder} (TMPDIR), which has {free / 2**30:.1f} "
            f"GiB free, got texts that take {expected / 2**30:.1f} GiB: fewer or shorter samples, or a method that "
            "needs no gradients, such as ntk-match with match=none"
        )


class _InMemory:
    """The parts of one tensor."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, part: Tensor) -> None:
        self._parts.append(part)

    def joined(self) -> Tensor:
        """Joins the parts, which are free afterwards."""
        parts, self._parts = self._parts, []
        return torch.cat(parts)


class _OnDisk:
    """The parts of one tensor, in a temporary file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `joined` closes it
        self._empty = torch.empty(0)

    def add(self, part: Tensor) -> None:
        self._empty = part[:0].cpu()
        self._file.write(raw_bytes(part))

    def joined(self) -> Tensor:
        """Returns a view of the file, which lives as long as the view."""
        self._file.flush()
        with self._file:
            content = np.memmap(self._file, dtype=np.uint8, mode="c")  # writing would copy a page
        return torch.from_numpy(content).view(self._empty.dtype).view(-1, *self._empty.shape[1:])

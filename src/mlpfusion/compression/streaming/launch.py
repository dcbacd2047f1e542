"""The processes of one launch of torchrun that share the blocks out; they meet by files in `OUT.unfinished`.

A process group would do as well until a process dies: those that torchrun starts again may be told the addresses of the
dead.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mlpfusion.progress import Progress
from mlpfusion.storage.atomic import write_file
from mlpfusion.storage.unfinished import work_folder

_POLL_SECONDS = 0.5  # a block takes seconds to minutes
# What torchrun tells its processes, the same to all of a launch, and another after a restart.
_OF_LAUNCH = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process, number `index` of `size`, of the launch called `name`."""

    index: int
    size: int
    name: str

    @classmethod
    def of_this_process(cls) -> Self:
        """The launch that this process belongs to: one of its own without torchrun."""
        told = " ".join(os.environ.get(name, "") for name in _OF_LAUNCH)
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), name)

    @property
    def is_first(self) -> bool:
        """Whether this process opens the run and puts the result together."""
        return self.index == 0

    def begin(self, out: Path) -> None:
        """Lets the other processes begin. To be called by the first, once `OUT.unfinished` is that of the run."""
        write_file(work_folder(out) / f"begun-{self.name}", "")

    def has_begun(self, out: Path, *, resume: bool) -> bool:
        """Waits until the first process lets this one begin; False where it found the run finished."""
        while not (work_folder(out) / f"begun-{self.name}").exists():
            if resume and out.exists() and not work_folder(out).exists():
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def end(self, out: Path) -> None:
        """Says that this process has no more to do in `OUT.unfinished`."""
        write_file(self._ended(out, self.index), "")

    def wait_for_others(self, out: Path, progress: Progress, blocks: int) -> None:
        """Returns once all other processes have said so."""
        others = [self._ended(out, index) for index in range(1, self.size)]
        while not all(file.exists() for file in others):
            progress(blocks, blocks, "waiting for the other processes")
            time.sleep(_POLL_SECONDS)

    def _ended(self, out: Path, index: int) -> Path:
        return work_folder(out) / f"ended-{self.name}-{index}"

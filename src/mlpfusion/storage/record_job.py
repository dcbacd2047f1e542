"""Jobs whose result is one record: killed, and started again, each goes on where it was."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpfusion.storage.output import check_output, staged_folder
from mlpfusion.storage.unfinished import expect_record, opened_work, remove_work, work_folder


@dataclass(frozen=True)
class RecordJob:
    """A job that leaves the record `record_file` in the new folder `out`.

    What is finished of it waits in `folder` until the record is there. `reads` are the files and folders that it reads.
    """

    out: Path
    record_file: str
    overwrite: bool
    reads: tuple[str | None, ...]

    @property
    def folder(self) -> Path:
        """The folder of the unfinished job."""
        return work_folder(self.out)

    @property
    def _resumes(self) -> bool:
        return self.folder.exists() and not self.overwrite

    def check(self) -> None:
        """Raises `InputError` for an `out` in the way. The settings of an unfinished job are checked by `record`."""
        if not self._resumes:
            check_output(self.out, overwrite=self.overwrite, reads=self.reads)

    def record(
        self,
        settings: dict[str, Any],
        make: Callable[[], dict[str, Any]],
        write_report: Callable[[dict[str, Any], Path], None],
    ) -> dict[str, Any]:
        """Returns the record that `make` makes, once it is in `out` beside what `write_report` writes.

        Raises `InputError` for an `out` in the way, an unfinished job with other `settings`, and another running job.

        >>> job = RecordJob(folder / "out", "record.json", False, ())
        >>> job.record({"seed": 0}, lambda: {"rows": []}, lambda record, staged: None)
        {'rows': []}
        """
        opening = opened_work(
            self.out,
            settings,
            self.record_file,
            resume=self._resumes,
            overwrite=self.overwrite,
            reads=self.reads,
        )
        with opening as opened:
            if opened.done is not None:
                return opened.done
            record = make()
            text = json.dumps(record, indent=1) + "\n"
            expect_record(self.out, text)
            with staged_folder(self.out, opened.replaced) as staged:
                (staged / self.record_file).write_text(text, encoding="utf-8")
                write_report(record, staged)
            remove_work(self.out)
            return record

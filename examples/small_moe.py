"""Makes a small mixture of experts out of a small Llama: a Mixtral whose experts differ, trained on kinds of text.

    python examples/small_moe.py LLAMA OUT TEXT TEXT ... [--steps 2000]

LLAMA is a folder with a LlamaForCausalLM, such as examples/stories260k.py makes; every TEXT is a file of one kind of
text. Each MLP becomes eight experts, of which a router chooses two for every token ("drop-upcycling", Nakamura et al.,
ICLR 2025): an expert is the MLP with half of its neurons drawn anew, others in every expert. Copies alone would be a
poor judge of what compresses experts, for there dropping whole experts costs nothing. OUT becomes a
MixtralForCausalLM with the tokenizer, for example for

    mlpfusion inspect OUT
    mlpfusion compress OUT SMALL --keep-ratio 0.5 --method ntk-match --option match=none --calibration TEXT
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from mlpfusion.data.encode import EncodedExamples
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.windows import drawn_windows
from mlpfusion.errors import InputError
from mlpfusion.storage.output import check_output, staged_folder

NUM_EXPERTS, CHOSEN = 8, 2
WINDOW, BATCH, RATE = 128, 32, 2e-3  # tokens, windows, AdamW
STEP_OF_WIDTH = 8  # what torch multiplies many experts in


def mixture_of(llama: Any, generator: torch.Generator) -> Any:
    """A Mixtral with the attention, the norms and the embeddings of `llama`, and experts made of its MLPs."""
    model: Any = MixtralForCausalLM(_config(llama.config))
    state = llama.state_dict()
    left = model.load_state_dict(state, strict=False)
    assert all(".mlp." in name for name in (*left.missing_keys, *left.unexpected_keys))
    with torch.no_grad():
        for old, new in zip(llama.model.layers, model.model.layers, strict=True):
            matrices = (old.mlp.gate_proj.weight, old.mlp.up_proj.weight, old.mlp.down_proj.weight.T)
            for expert in range(NUM_EXPERTS):
                gate, up, down = _half_drawn_anew(matrices, new.mlp.experts.down_proj.shape[2], generator)
                new.mlp.experts.gate_up_proj[expert] = torch.cat([gate, up])
                new.mlp.experts.down_proj[expert] = down.T
            new.mlp.gate.weight.copy_(_drawn(new.mlp.gate.weight.shape, 0.02, generator))
    return model


def _half_drawn_anew(matrices: tuple[Tensor, ...], width: int, generator: torch.Generator) -> list[Tensor]:
    """The matrices, a row a neuron, with `width` rows: half of the neurons as they are, the others from a normal.

    The normal of a matrix has its standard deviation. All matrices keep the same neurons.
    """
    number = len(matrices[0])
    kept = torch.randperm(number, generator=generator)[: number // 2]
    made = []
    for matrix in matrices:
        rows = _drawn((width, matrix.shape[1]), float(matrix.std()), generator)
        rows[kept] = matrix[kept]
        made.append(rows)
    return made


def _drawn(shape: torch.Size | tuple[int, int], deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator) * deviation


def _config(llama: Any) -> MixtralConfig:
    return MixtralConfig(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=-(-llama.intermediate_size // STEP_OF_WIDTH) * STEP_OF_WIDTH,
        num_hidden_layers=llama.num_hidden_layers,
        num_attention_heads=llama.num_attention_heads,
        num_key_value_heads=llama.num_key_value_heads,
        max_position_embeddings=llama.max_position_embeddings,
        rms_norm_eps=llama.rms_norm_eps,
        rope_parameters=llama.rope_parameters,
        tie_word_embeddings=llama.tie_word_embeddings,
        bos_token_id=llama.bos_token_id,
        eos_token_id=llama.eos_token_id,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=CHOSEN,
        sliding_window=None,
    )


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("llama", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(0), default=2000, show_default=True, help="Steps of training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the neurons, the router, and the texts.")
def main(llama: Path, out: Path, texts: tuple[Path, ...], steps: int, seed: int) -> None:
    try:
        replaced = check_output(out, overwrite=False)
        source, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
        if not isinstance(source, LlamaForCausalLM):
            raise InputError(f"`llama` must be a LlamaForCausalLM, got a {type(source).__name__}")
        kinds = [read_texts(str(one)) for one in texts]
        model = mixture_of(source, torch.Generator().manual_seed(seed))
        train(model, training_windows(kinds, tokenizer, source.config, steps, seed), steps, seed)
        with staged_folder(out, replaced) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {model.num_parameters():,} parameters, {NUM_EXPERTS} experts a layer, trained {steps} steps")


def training_windows(
    kinds: Sequence[list[str]], tokenizer: Any, config: PreTrainedConfig, steps: int, seed: int
) -> list[dict[str, list[int]]]:
    """What `steps` steps train on: as many windows of every kind of text."""
    share = -(-steps * BATCH // len(kinds))
    sizes = {"window": WINDOW, "num_windows": share, "seed": seed}
    windows = [drawn_windows(texts, tokenizer, config, **sizes) for texts in kinds if steps]
    return [{"input_ids": ids.tolist(), "labels": ids.tolist()} for kind in windows for ids in kind]


def train(model: PreTrainedModel, examples: list[dict[str, list[int]]], steps: int, seed: int) -> None:
    """Trains on windows in an order drawn from `seed`, the rate falling to zero. Changes the model."""
    if not steps:
        return
    model.config.output_router_logits = True  # so that the loss holds the balance of the experts
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            logging_steps=50,
            report_to="none",
            save_strategy="no",
            dataloader_pin_memory=False,
            seed=seed,
        )
        Trainer(
            model=model, args=arguments, train_dataset=EncodedExamples(examples), data_collator=default_data_collator
        ).train()
    model.config.output_router_logits = False
    model.eval()


if __name__ == "__main__":
    main()

"""Turns stories260K, a Llama of 260,032 weights that writes small stories, into a folder that transformers loads.

    python examples/stories260k.py FOLDER OUT

FOLDER holds stories260K.bin and tok512.bin (karpathy/tinyllamas, MIT), in the "version 0" layout of llama2.c: seven
int32, then fp32 tensors, little-endian. OUT becomes a LlamaForCausalLM with its tokenizer, for example for

    mlpfusion compare OUT --data stories.txt --layers 0,1,2,3,4
    mlpfusion compress OUT SMALL --layers last:3 --keep-ratio 0.5
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mlpfusion.errors import InputError
from mlpfusion.storage.output import check_output, staged_folder

HEADER: tuple[str, ...] = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
SPACE = "\u2581"  # how a sentencepiece vocabulary writes a space
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
LAST_BYTE = 258  # after the special tokens come the 256 single bytes, and nothing is merged into those


def read_model(path: Path) -> LlamaForCausalLM:
    """The model in a version 0 file whose classifier is the embedding. Raises `InputError` for any other file."""
    data = path.read_bytes()
    if len(data) < 4 * len(HEADER):
        raise InputError(f"{path} must hold a header of {4 * len(HEADER)} bytes, got {len(data)} bytes")
    sizes = dict(zip(HEADER, struct.unpack_from(f"<{len(HEADER)}i", data), strict=True))
    if min(sizes.values()) < 1:
        raise InputError(f"the sizes in {path} must be positive, got {sizes}")
    shapes = _shapes(sizes)
    expected = 4 * (len(HEADER) + sum(torch.Size(shape).numel() for shape in shapes.values()))
    if len(data) != expected:
        raise InputError(f"{path} must have {expected} bytes for {sizes}, got {len(data)}")
    model = LlamaForCausalLM(_config(sizes))
    weights = dict(_weights(_split(data, shapes), sizes))
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    model.generation_config.eos_token_id = [1, 2]  # a story ends where the next one begins
    return model.eval()


def read_tokenizer(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer in a file of llama2.c: the best-scored pair of neighbours is merged until there is none.

    Raises `InputError` if the file ends too early.
    """
    scores = _read_scores(path, vocab_size)
    vocab = {piece: index for index, piece in enumerate(scores)}
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and vocab[piece] > LAST_BYTE
    ]
    merges.sort(key=lambda merge: -merge[0])
    pairs = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(BPE(vocab, pairs, unk_token=SPECIAL["unk_token"], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in their order."""
    layers, dim, hidden = sizes["n_layers"], sizes["dim"], sizes["hidden_dim"]
    head = dim // sizes["n_heads"]
    rows = head * sizes["n_kv_heads"]
    return {
        "embed_tokens": (sizes["vocab_size"], dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, rows, dim),
        "self_attn.v_proj": (layers, rows, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
        "rope": (2, sizes["max_seq_len"], head // 2),
    }


def _split(data: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    values = torch.frombuffer(bytearray(data), dtype=torch.float32, offset=4 * len(HEADER))
    parts = values.split([torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _weights(tensors: dict[str, Tensor], sizes: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name in ("embed_tokens", "norm"):
            yield f"model.{name}.weight", tensor
        elif name != "rope":  # transformers computes it
            for index, layer in enumerate(tensor):
                heads = {"self_attn.q_proj": sizes["n_heads"], "self_attn.k_proj": sizes["n_kv_heads"]}.get(name)
                weight = layer if heads is None else _halves_for_pairs(layer, heads)
                yield f"model.layers.{index}.{name}.weight", weight


def _halves_for_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of queries or keys in the order of transformers, which turns halves of a head, llama2.c adjacent pairs."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _config(sizes: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        max_position_embeddings=sizes["max_seq_len"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def _read_scores(path: Path, vocab_size: int) -> dict[str, float]:
    """The pieces in the order of their numbers, each with its score."""
    data, offset = path.read_bytes(), 4  # after the length of the longest piece
    scores: dict[str, float] = {}
    for index in range(vocab_size):
        if offset + 8 > len(data):
            raise InputError(f"{path} must hold {vocab_size} pieces, got {index}")
        score, length = struct.unpack_from("<fi", data, offset)
        piece = data[offset + 8 : offset + 8 + length].decode("utf-8")
        scores[list(SPECIAL.values())[index] if index < len(SPECIAL) else piece.replace(" ", SPACE)] = score
        offset += 8 + length
    return scores


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--prompt", default="Once upon a time", show_default=True, help="Beginning of the story that is printed.")
def main(folder: Path, out: Path, prompt: str) -> None:
    """Converts the checkpoint in FOLDER to the new folder OUT and prints a story from there."""
    try:
        check_output(out)
        model: Any = read_model(folder / "stories260K.bin")
        tokenizer = read_tokenizer(folder / "tok512.bin", model.config.vocab_size)
    except (InputError, OSError) as error:
        raise click.ClickException(str(error)) from error
    with staged_folder(out) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(inputs["input_ids"], max_new_tokens=150, do_sample=False)
    click.echo(tokenizer.decode(tokens[0], skip_special_tokens=True))
    click.echo(f"\n{out} is complete: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()

"""The converter of the example: the model and the tokenizer are those of llama2.c, and the commands work on them."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scripts import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlpfusion.cli import main
from mlpfusion.data.files.text import read_texts
from mlpfusion.errors import InputError

SCRIPT = "examples/stories260k.py"
# From llama2.c's own page on this checkpoint.
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


@pytest.fixture(scope="module")
def stories(evaluation_data, tmp_path_factory) -> Path:
    """The converted checkpoint."""
    out = tmp_path_factory.mktemp("stories") / "out"
    source = evaluation_data / "checkpoints" / "stories260K"
    result = CliRunner().invoke(load_script(SCRIPT).main, [str(source), str(out)])
    assert result.exit_code == 0, result.output
    assert STORY in result.stdout
    assert "260,032 parameters" in result.stdout
    return out


def reference_encode(path: Path, text: str) -> list[int]:
    """llama2.c: a space in front, UTF-8 characters (bytes where there is no piece), then the best pair until none."""
    data, offset, pieces, scores = path.read_bytes(), 4, [], []
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        pieces.append(data[offset + 8 : offset + 8 + length])
        scores.append(score)
        offset += 8 + length
    numbers = {piece: number for number, piece in reversed(list(enumerate(pieces)))}
    tokens = []
    for character in " " + text:
        encoded = character.encode()
        tokens += [numbers[encoded]] if encoded in numbers else [byte + 3 for byte in encoded]
    while True:
        merged = [numbers.get(pieces[a] + pieces[b]) for a, b in pairwise(tokens)]
        places = [(scores[number], -place) for place, number in enumerate(merged) if number is not None]
        if not places:
            return [1, *tokens]
        place = -max(places)[1]
        tokens[place : place + 2] = [merged[place]]


def test_the_tokenizer_is_that_of_llama2c(stories, evaluation_data):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    file = evaluation_data / "lm" / "tinystories_sample" / "validation.txt.gz"
    texts = [*read_texts(file, max_samples=40), "caf\u00e9 \u4e16\u754c", "a  b", "Hello, world!"]
    for text in texts:
        found = tokenizer(text)["input_ids"]
        assert found == reference_encode(evaluation_data / "checkpoints" / "stories260K" / "tok512.bin", text)
        assert tokenizer.decode(found, skip_special_tokens=True) == text


def test_the_loss_is_the_known_one(stories, evaluation_data):
    file = evaluation_data / "lm" / "tinystories_sample" / "validation.txt.gz"
    found = "\n".join(read_texts(file)).split("<|endoftext|>")[:40]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories), AutoTokenizer.from_pretrained(stories)
    total, count = 0.0, 0
    for text in found:
        ids = tokenizer(text.strip(), return_tensors="pt")["input_ids"][:, :512]
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert total / count == pytest.approx(1.41, abs=0.01)


@pytest.mark.filterwarnings("default:the cut damaged the model")  # half of two layers of five is much for it
def test_compare_and_compress_work_on_it(stories, evaluation_data, tmp_path):
    file = evaluation_data / "lm" / "tinystories_sample" / "validation.txt.gz"
    options = ["--data", file, "--max-samples", 12, "--methods", "fusion,svd,magnitude", "--seeds", 0, "--layers", 2]
    result = CliRunner().invoke(main, [str(value) for value in ("compare", stories, *options, "--json")])
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout)["rows"]:
        assert set(row["error"]["adam"]["blocks"]) == {"up", "gate", "down"}
        assert 0 < row["error"]["block_output_error"] < row["error"]["output_error"] < 2
    out = tmp_path / "small"
    cut = ["compress", stories, out, "--layers", "last:2", "--keep-ratio", 0.5]
    result = CliRunner().invoke(main, [str(value) for value in cut])
    assert result.exit_code == 0, result.output
    assert "damaged the model" in result.stderr
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == 260_032 - 2 * 3 * 64 * 86


def test_a_file_that_is_cut_off_is_refused(evaluation_data, tmp_path):
    script, source = load_script(SCRIPT), evaluation_data / "checkpoints" / "stories260K"
    data = (source / "stories260K.bin").read_bytes()
    for name, content, message in [
        ("short", data[:20], "must hold a header of 28 bytes, got 20 bytes"),
        ("cut", data[:-4], "must have 1056540 bytes for"),
        ("negative", struct.pack("<7i", *[-1] * 7), "must be positive"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            script.read_model(path)
    path = tmp_path / "tokens"
    path.write_bytes((source / "tok512.bin").read_bytes()[:100])
    with pytest.raises(InputError, match="must hold 512 pieces, got"):
        script.read_tokenizer(path, 512)
    result = CliRunner().invoke(script.main, [str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()

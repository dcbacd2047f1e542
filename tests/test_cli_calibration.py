"""Calibration from the command line: what is drawn, what the record and the card say, what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from command import call, refused
from pico import pico_model
from safetensors.torch import load_file
from tiny_task import tiny_tokenizer
from transformers import AutoModel

from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import ONE_SHOT

WORDS = ["the", "film", "is", "a", "quiet", "delight", "and", "nobody", "saw", "it", "coming"]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_model(tmp_path / "model", "bert")


@pytest.fixture
def sentences(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": " ".join(WORDS[i % 7 : i % 7 + 1 + i % 5])} for i in range(30)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def save_model(folder: Path, name: str) -> Path:
    pico_model(name).save_pretrained(folder)
    tiny_tokenizer(WORDS).save_pretrained(folder)
    return folder


def record_of(folder: Path) -> dict:
    return json.loads((folder / "mlp_fusion_record.json").read_text())


@pytest.mark.parametrize("flags", [[], ["--sequential"]])
def test_compress_calibrates_on_a_file_and_says_so(flags, checkpoint, sentences, tmp_path):
    options = ("--method", "maintain-output", "--width", 9, "--calibration", sentences, "--column", "text", *flags)
    for name, number in (("a", 12), ("b", 12), ("c", 11)):
        result = call("compress", checkpoint, tmp_path / name, *options, "--calibration-samples", number)
        assert result.exit_code == 0, result.output
    recipe = record_of(tmp_path / "a")["recipe"]
    assert recipe["sequential"] == bool(flags)
    used = recipe["calibration"]
    assert {name: used[name] for name in ("file", "column", "samples", "seed")} == {
        "file": "texts.jsonl", "column": "text", "samples": 12, "seed": 0,
    }  # fmt: skip
    assert used["tokens"] > 12
    assert f"Calibrated on 12 unlabelled samples of `texts.jsonl`, {used['tokens']} tokens." in (
        (tmp_path / "a" / "README.md").read_text()
    )
    assert str(tmp_path) not in json.dumps(recipe)
    first, second, third = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second != third


def test_the_default_is_256_texts_or_all_there_are(checkpoint, sentences, tmp_path):
    options = ("--method", "maintain-output", "--width", 9, "--calibration", sentences, "--column", "text")
    assert call("compress", checkpoint, tmp_path / "out", *options).exit_code == 0
    assert record_of(tmp_path / "out")["recipe"]["calibration"]["samples"] == 30


@pytest.mark.slow
def test_data_free_calibrates_an_encoder_on_random_tokens(checkpoint, tmp_path):
    options = ("--method", "maintain-output", "--width", 9)
    for name in "ab":
        assert call("compress", checkpoint, tmp_path / name, *options, "--data-free").exit_code == 0
        assert "No data was used" in (tmp_path / name / "README.md").read_text()
    used = record_of(tmp_path / "a")["recipe"]["calibration"]
    assert {name: used[name] for name in ("file", "samples", "seed")} == {
        "file": "random tokens", "samples": 256, "seed": 0,
    }  # fmt: skip
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "maintain-output"], "`--calibration` must be given for maintain-output, or `--data-free`"),
        (["--calibration", "{texts}"], "`--calibration` must be left out for fusion, which takes none"),
        (["--data-free"], "`--data-free` must be left out but for flap, fisher, nirvana, maintain-output"),
        (["--sequential"], "`--sequential` must be left out for fusion"),
        (["--method", "nirvana", "--data-free"], "`--width` must be left out for nirvana, which chooses the width of"),
        (["--column", "text"], "`--column` must be left out without `--calibration`, got 'text'"),
        (["--calibration-samples", "7"], "`--calibration-samples` must be left out without `--calibration` or"),
        (["--max-length", "64"], "`--max-length` must be left out for fusion, which does not learn on a task"),
        (["--round-to", "8"], "`--round-to` must be left out with `--width`, which is taken as it is, got 8"),
        (["--revision", "main"], "`--revision` must be left out for a folder, got 'main'"),
        (
            ["--method", "maintain-output", "--data-free", "--calibration-samples", str(10**12)],
            "`--calibration-samples` must be at most 1,000,000, got 1000000000000",
        ),
        (
            ["--method", "maintain-output", "--calibration", __file__, "--column", "text"],
            "`--column` must be left out for",
        ),
        (["--method", "maintain-output", "--calibration", "{texts}"], "`--column` must name the column of"),
        (["--method", "maintain-output", "--calibration", "none.txt"], "`--calibration` must be a readable file"),
        (
            ["--method", "maintain-output", "--calibration", "{texts}", "--data-free"],
            "`--calibration` must be left out with `--data-free`",
        ),
        (
            [
                "--method",
                "maintain-output",
                "--calibration",
                "{texts}",
                "--column",
                "text",
                "--calibration-samples",
                "0",
            ],
            "`--calibration-samples` must be at least 1, got 0",
        ),
        (
            ["--method", "maintain-output", "--option", "learning_rate=0.0"],
            "`learning_rate` of maintain-output must be above 0, got 0.0",
        ),
        (
            ["--method", "maintain-output", "--option", "num_epochs=0"],
            "`num_epochs` of maintain-output must be at least 1, got 0",
        ),
    ],
)
def test_bad_calibrations_are_refused_before_the_weights_are_read(flags, message, checkpoint, sentences, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    flags = [flag.format(texts=sentences) for flag in flags]
    assert message in refused("compress", checkpoint, tmp_path / "out", "--width", 9, *flags)
    assert not (tmp_path / "out").exists()


def test_a_recipe_has_the_same_fields(checkpoint, sentences, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {checkpoint}\nout: {tmp_path / 'out'}\nmethod: maintain-output\nwidth: 9\nsequential: true\n"
        f"calibration: {sentences}\ncolumn: text\ncalibration_samples: 5\nlayers: last:2\n"
    )
    result = call("compress", "--recipe", recipe)
    assert result.exit_code == 0, result.output
    assert record_of(tmp_path / "out")["recipe"]["calibration"]["samples"] == 5


def test_widths_that_a_method_chooses_stand_in_record_card_and_config(checkpoint, sentences, tmp_path):
    options = ("--method", "nirvana", "--calibration", sentences, "--column", "text", "--keep-ratio", 0.5)
    result = call("compress", checkpoint, tmp_path / "out", *options, "--round-to", 8)
    assert result.exit_code == 0, result.output
    widths = {site["path"]: site["width"] for site in record_of(tmp_path / "out")["sites"]}
    assert sum(widths.values()) == 3 * 32
    assert len(set(widths.values())) > 1
    assert all(width % 8 == 0 for width in widths.values())
    sites = json.loads((tmp_path / "out" / "config.json").read_text())["mlp_fusion"]["sites"]
    assert {path: site["intermediate_size"] for path, site in sites.items()} == widths
    card = (tmp_path / "out" / "README.md").read_text()
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    for path, width in widths.items():
        assert f"| {path} | 56 | {width} |" in card
        assert loaded.get_parameter(f"{path}.output.dense.weight").shape[1] == width
    for flags, message in (
        (("--keep-ratio", 0.5, "--sequential"), "`--sequential` must be left out for nirvana, which ranks the neurons"),
        (("--budget", "90%"), "`--budget` must be left out for nirvana, which chooses the width of every layer itself"),
    ):
        assert message in refused("compress", checkpoint, tmp_path / "new", *options[:-2], *flags)


def test_an_encoder_decoder_reads_the_texts_on_both_sides(sentences, tmp_path):
    folder = save_model(tmp_path / "t5", "t5")
    options = ("--method", "maintain-output", "--width", 20, "--calibration", sentences, "--column", "text")
    result = call("compress", folder, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert len(record_of(tmp_path / "out")["sites"]) == 6


def compare(checkpoint: Path, sentences: Path, *options: object) -> Result:
    data = ("--data", sentences, "--column", "text", "--max-samples", 4, "--seeds", "0,1", "--json")
    return call("compare", checkpoint, *data, *options)


def rows_of(result: Result) -> dict[tuple[str, int], float]:
    assert result.exit_code == 0, result.output
    return {(row["label"], row["seed"]): row["error"]["output_error"] for row in json.loads(result.stdout)["rows"]}


def test_compare_calibrates_per_seed_and_layer(checkpoint, sentences):
    methods = ("--methods", "fusion,maintain-output", "--layers", 1)
    result = compare(checkpoint, sentences, *methods, "--calibration", sentences, "--calibration-samples", 9)
    rows = rows_of(result)
    assert {name for name, _ in rows} == {"fusion", "maintain-output"}
    record = json.loads(result.stdout)
    assert record["calibration"]["file"] == "texts.jsonl"
    assert record["calibration"]["samples"] == 9
    for seed in (0, 1):
        assert rows["maintain-output", seed] < rows["fusion", seed]


@pytest.mark.slow
def test_all_methods_without_a_file_are_calibrated_on_random_tokens(checkpoint, sentences):
    result = compare(checkpoint, sentences, "--methods", "all", "--calibration-samples", 9)
    assert {name for name, _ in rows_of(result)} == {method_name(method) for method in ONE_SHOT}
    assert json.loads(result.stdout)["calibration"] == {"file": "random tokens", "samples": 9}
    record = json.loads(compare(checkpoint, sentences, "--methods", "fusion").stdout)
    assert "calibration" not in record

"""Which texts a calibration draws, and the data sets that `datasets` reads."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from pico import pico_config, pico_model

from mlpfusion.batch import with_decoder_inputs
from mlpfusion.checkpoint.read import empty_model, read_config
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
from mlpfusion.errors import InputError


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"sentence {i}\n\n" for i in range(50)))
    return path


def test_the_texts_drawn_depend_on_the_seed_alone_and_a_smaller_draw_starts_a_larger_one(file, minilm):
    many, few = (CalibrationTexts.read(str(file), None, number) for number in (40, 7))
    assert many.draw(minilm, 3) == many.draw(minilm, 3)
    assert many.draw(minilm, 3)[:7] == few.draw(minilm, 3)
    assert many.draw(minilm, 3) != many.draw(minilm, 4)
    assert len(set(many.draw(minilm, 3))) == 40
    assert len(CalibrationTexts.read(str(file), None, 99).draw(minilm, 0)) == 50
    batches = few.batches(minilm, empty_model(read_config(minilm)), 3)
    assert sum(len(batch["input_ids"]) for batch in batches) == 7


def test_texts_without_a_token_are_not_drawn(file, tmp_path):
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.normalizer = normalizers.Replace("sentence 7", "")  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]").save_pretrained(tmp_path / "model")
    drawn = CalibrationTexts.read(str(file), None, 50).draw(tmp_path / "model", 0)
    assert len(drawn) == 49
    assert "sentence 7" not in drawn
    empty = tmp_path / "empty.txt"
    empty.write_text("sentence 7\n")
    with pytest.raises(InputError, match="`calibration` must hold a text with at least one token, got none in"):
        CalibrationTexts.read(str(empty), None, 5).draw(tmp_path / "model", 0)


def test_the_record_has_the_name_of_the_file_and_hashes(file):
    record = CalibrationTexts.read(str(file), None, 5).record()
    texts = "\n".join(f"sentence {i}" for i in range(50))
    assert record == {
        "file": "texts.txt",
        "column": None,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "texts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
    }
    with pytest.raises(InputError, match="`calibration_samples` must be at least 1, got 0"):
        CalibrationTexts.read(str(file), None, 0)


def test_a_decoder_reads_the_same_texts_shifted_by_its_start_token():
    ids = torch.tensor([[5, 6, 2], [7, 2, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    assert with_decoder_inputs([batch], pico_config("bert")) == [batch]
    (found,) = with_decoder_inputs([batch], pico_config("bart"))
    assert found["decoder_input_ids"].tolist() == [[2, 5, 6], [2, 7, 2]]
    assert torch.equal(found["decoder_attention_mask"], batch["attention_mask"])
    torch.testing.assert_close(
        pico_model("bart")(input_ids=ids[:1]).last_hidden_state,
        pico_model("bart")(**{key: value[:1] for key, value in found.items()}).last_hidden_state,
    )
    config = pico_config("t5")
    config.decoder_start_token_id = None
    with pytest.raises(InputError, match="must have a `decoder_start_token_id`, got none"):
        with_decoder_inputs([batch], config)


def test_a_data_set_without_the_library_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for file in ("hub:owner/name", str(tmp_path / "a.parquet")):
        with pytest.raises(
            InputError,
            match=r"must be a text, JSON, CSV or TSV file unless `pip install 'mlpfusion\[data\]'` is done, got",
        ):
            read_texts(file, column="text")


@pytest.mark.parametrize(
    ("file", "called"),
    [
        ("hub:owner/name", ("owner/name", None, "train")),
        ("hub:owner/name:validation", ("owner/name", None, "validation")),
        ("hub:owner/name:sst2:validation", ("owner/name", "sst2", "validation")),
        ("hub:", None),
        ("hub:owner/name::train", None),
        ("none.parquet", None),
    ],
)
def test_a_hub_name_may_have_a_config_and_a_split(file, called, monkeypatch):
    calls = []

    class Rows(dict):
        column_names = ("text", "label")

    def load_dataset(path: str, config: str | None, *, split: str) -> Rows:
        calls.append((path, config, split))
        return Rows(text=[" one", "", "two "], label=[0, 1, 2])

    library = ModuleType("datasets")
    library.__dict__.update(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setitem(sys.modules, "datasets", library)
    if called is None:
        with pytest.raises(InputError, match="`data` must be a (readable file|file or hub:owner/name, hub)"):
            read_texts(file, column="text")
        return
    assert read_texts(file, column="text") == ["one", "two"]
    assert calls == [called]
    assert read_texts(file, column="text", max_samples=1) == ["one"]
    for column, message in [("label", "one of text, label, got 'label'"), ("x", "got 'x'"), (None, "must name")]:
        with pytest.raises(InputError, match=f"`column` .*{message}"):
            read_texts(file, column=column)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="`datasets` is optional and not installed")
def test_parquet_and_folders_are_read_by_the_library_itself(tmp_path):
    table = importlib.import_module("pyarrow").table({"text": ["one", " two", ""], "label": [0, 1, 2]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "train.parquet")
    assert read_texts(tmp_path / "train.parquet", column="text") == ["one", "two"]
    assert read_texts(f"hub:{tmp_path}", column="text") == ["one", "two"]
    with pytest.raises(InputError, match="`column` must be a text column of .*, one of text, label, got 'label'"):
        read_texts(tmp_path / "train.parquet", column="label")
    with pytest.raises(
        InputError, match="`data` must be a text, JSON, CSV or TSV file, or a data set that can be read, got"
    ):
        read_texts(f"hub:{tmp_path}:validation", column="text")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        InputError, match="`data` must be a text, JSON, CSV or TSV file, or a data set that can be read, got"
    ):
        read_texts(tmp_path / "bad.parquet", column="text")

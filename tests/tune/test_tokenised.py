"""Only texts that a run uses are tokenised."""

from typing import Any

import pytest
from command import call
from tiny_task import TASK, examples

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.checkpoint.tokenizer import tokenized
from mlpfusion.data import encode
from mlpfusion.data.chosen import split_train
from mlpfusion.data.labelled import kind
from mlpfusion.data.task import TaskData
from mlpfusion.data.task_model import encode_for
from mlpfusion.data.unlabelled import calibration_texts
from mlpfusion.options.training import Finetune


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """The texts that the tokenizer gets."""
    texts: list[str] = []

    def watched(rows: Any, *arguments: Any, **options: Any) -> Any:
        texts.extend(text for row in rows for text in row)
        return tokenized(rows, *arguments, **options)

    for module in (kind, encode, calibration_texts):
        monkeypatch.setattr(module, "tokenized", watched)
    return texts


@pytest.mark.parametrize("select_on", ["holdout", "validation", "last"])
def test_a_part_of_the_training_set_is_the_same_examples_as_without_it(select_on, checkpoint, seen):
    data = TaskData(TASK, examples(96, 0), {"validation": examples(7, 1)}, "made up")
    source = open_for_training(str(checkpoint))
    config = Finetune(max_train_samples=20, split_seed=3, select_on=select_on)
    whole = encode_for(source, data, 16)
    assert len(seen) == 96 + 7
    seen.clear()
    part = encode_for(source, data, 16, config)
    assert len(seen) == len(part.train) + 7 == 20 + 7
    for one, other in zip(split_train(part, config), split_train(whole, config), strict=True):
        assert (one and one.items) == (other and other.items)
    plain = encode_for(source, data, 16, Finetune(split_seed=3))
    assert split_train(plain, Finetune())[0].items == split_train(whole, Finetune())[0].items


def test_tune_and_distill_tokenise_no_more_training_texts_than_they_are_told_to_take(
    checkpoint, fused, data, files, seen, tmp_path
):
    result = call("tune", checkpoint, tmp_path / "tuned", *data, "--max-train-samples", 20, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert len(seen) == 20 + 40
    seen.clear()
    texts = ["--data", files[0], "--column", "sentence", "--max-samples", 12, "--device", "cpu"]
    result = call("distill", checkpoint, fused, tmp_path / "distilled", *texts)
    assert result.exit_code == 0, result.output
    assert len(seen) == 12


def test_compress_tokenises_the_texts_of_its_calibration_alone(checkpoint, files, seen, tmp_path):
    texts = ["--calibration", files[0], "--column", "sentence", "--calibration-samples", 5]
    flags = ["--method", "maintain-output", "--keep-ratio", 0.25]
    result = call("compress", checkpoint, tmp_path / "out", *flags, *texts)
    assert result.exit_code == 0, result.output
    assert len(seen) == 5

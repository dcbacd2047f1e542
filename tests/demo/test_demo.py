"""The demo end to end on a small BERT: what it prints, what it leaves, that it repeats, and how it breaks off."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import PICO
from PIL import Image
from tiny_task import tiny_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import mlpfusion.demo
from mlpfusion.demo import run, tables, train
from mlpfusion.demo.authors import SPLITS, TEXT, author_rows, write_authors
from mlpfusion.demo.picture import write_picture
from mlpfusion.demo.train import Trained, start_server, train_apart
from mlpfusion.errors import InputError
from mlpfusion.tune.record import RunRecord

LEFT = {"four-authors", "fusion", "ntk-match", "fine-tuning.png"}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A BERT of six narrow layers with a tokenizer that knows some of the words."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    words = sorted({word for row in author_rows("train") for word in row[TEXT].split()})[::3]
    options = PICO["bert"][1] | {"num_hidden_layers": 6, "vocab_size": len(words) + 4, "max_position_embeddings": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model("bert", **options)).save_pretrained(folder)
    tiny_tokenizer(words).save_pretrained(folder)
    return folder


def result(accuracy: float, logits: torch.Tensor, labels: torch.Tensor) -> Trained:
    fields: dict[str, Any] = dict.fromkeys(RunRecord.__dataclass_fields__, 0)
    fields |= {"scores": {"test": {"accuracy": accuracy}}, "trained_parameters": 1234, "steps": 20}
    return Trained(RunRecord(**fields | {"seconds_per_step": 0.25, "peak_bytes": 10**9}), (0, 20), logits, labels, 800)


@pytest.fixture
def results() -> dict[str, Trained]:
    labels = torch.tensor([0, 1, 2, 3] * 25)
    right = torch.nn.functional.one_hot(labels, 4).double()
    wrong = right.roll(1, dims=1)
    return {
        "full": result(0.8, torch.stack([wrong, right]), labels),
        "Fusion": result(0.6, torch.stack([wrong, 2 * right]), labels),
        "NTKMatch": result(0.64, torch.stack([2 * wrong, right]), labels),
    }


def without_times(text: str) -> list[str]:
    """The lines but for what a clock or the memory of a process says."""
    lines = [line for line in text.splitlines() if not re.match(r"seconds|peak memory", line)]
    return [re.sub(r"in [\d.]+ s", "", line) for line in lines]


@pytest.mark.slow
def test_the_whole_demo(small, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(run, "demo_checkpoint", lambda: small)
    monkeypatch.chdir(tmp_path)
    printed = []
    for _ in range(2):  # the second replaces what the first has left
        mlpfusion.demo.run_demo(Path("out"), 0)
        printed.append(without_times(capfd.readouterr().out))
    assert printed[0] == printed[1]
    text = "\n".join(printed[0])
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == LEFT
    assert {entry.name for entry in (tmp_path / "out" / "four-authors").iterdir()} == {
        "README.md", "mlp_fusion_files.json", *(f"{split}.jsonl" for split in SPLITS)
    }  # fmt: skip
    assert re.search(r"right author, other books +(\d+\.\d \+- 1\.\d % *){3}", text)
    assert re.search(r"right author, same books +(\d+\.\d \+- [12]\.\d % *){3}", text)
    assert "The outputs on 48 sentences are the same, bit for bit." in text
    assert "1,280 sentences of 4 authors to learn from, 400 more of the same books held\nout, and 800 of other" in text
    with Image.open(tmp_path / "out" / "fine-tuning.png") as image:
        assert min(image.size) > 400
    command = re.search(r"mlpfusion (tune .*\\\n.*\\\n.*)\n", text)
    assert command is not None
    model = AutoModelForSequenceClassification.from_pretrained("out/ntk-match", num_labels=4)
    assert [name for name, _ in model.named_buffers() if name.endswith("output_scale_bits")]


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no")])
def test_a_demo_that_breaks_off_leaves_complete_folders_only(error, small, monkeypatch, tmp_path):
    def interrupted(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(run, "demo_checkpoint", lambda: small)
    monkeypatch.setattr(run, "_measure", interrupted)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run.run_demo(tmp_path / "out", 0)
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == LEFT - {"fine-tuning.png"}
    assert all((tmp_path / "out" / name / "model.safetensors").is_file() for name in ("fusion", "ntk-match"))


@pytest.mark.slow
def test_an_error_in_the_process_that_trains_is_the_demos(small, tmp_path):
    write_authors(tmp_path / "set")
    (tmp_path / "set" / "test.jsonl").unlink()
    with pytest.raises(InputError, match="`data` must be a readable text file|`validation`"):
        train_apart(start_server(), small, tmp_path / "set", 0, lambda *_: None)


@pytest.mark.slow
def test_head_and_order_are_the_same_for_all_models(small, tmp_path):
    write_authors(tmp_path / "set")
    progress: list[Any] = []
    one, two = (train_apart(start_server(), small, tmp_path / "set", 3, lambda *s: progress.append(s)) for _ in "ab")
    assert torch.equal(one.logits, two.logits)
    assert one.steps == (*range(0, 80, train.WATCHED_STEPS), 80)
    assert one.record.steps == 80
    assert one.record.training_loss == two.record.training_loss
    assert progress[0] == (0, 80, progress[0][2])
    assert progress[-1][:2] == (80, 80)
    assert one.accuracy() == two.accuracy()
    assert one.distance(two) == [0.0] * len(one.steps)


def test_accuracies_and_distances_are_what_they_say(results):
    assert results["full"].accuracy() == [0.0, 1.0]
    assert results["Fusion"].distance(results["full"]) == [0.0, 1.0]
    assert results["NTKMatch"].distance(results["full"]) == [1.0, 0.0]


def test_the_verdict_says_how_far_the_cuts_are_from_the_full_model_and_how_sure_that_is(results):
    lines = [line.strip() for line in tables.verdict(results).splitlines()]
    assert "other books: Fusion -20.0 (+- 2.2), NTKMatch -16.0 (+- 2.2)" in lines
    assert "same books: Fusion +0.0 (+- 0.0), NTKMatch +0.0 (+- 0.0)" in lines
    assert (
        "Distance of the logits from the full model's, before -> after: Fusion 0.00 -> 1.00, NTKMatch 1.00 -> 0.00."
        in lines
    )
    assert "(a guess: 25 %)" in lines[0]


def test_the_picture_appears_whole_or_not_at_all(results, tmp_path, monkeypatch):
    write_picture(results, tmp_path / "a.png")
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).format == "PNG"
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_picture(results, tmp_path / "b.png")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.png"}


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mlpfusion.extras, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(InputError, match="the demo needs matplotlib: pip install"):
        mlpfusion.demo.run_demo(tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()

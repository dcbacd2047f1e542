"""The files beside the weights: what belongs to a checkpoint goes along, what does not stays, no link leads out."""

import json
import os
import re
from pathlib import Path

import pytest
import transformers
from command import call, refused
from pico import pico_model
from safetensors.torch import save_file
from transformers import AutoModel, BertTokenizer

from mlpfusion.checkpoint.files import carried_files, left_files
from mlpfusion.checkpoint.read import origin

CUT = ("--width", 20, "--layers", "last:1")
OWN = {"config.json", "model.safetensors", "README.md", "mlp_fusion_record.json", "mlp_fusion_files.json"}
OWN |= {"report.html", "mlp_fusion_chart.svg"}
BELONGS = [
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "bpe.codes",
    "prophetnet.tokenizer",
    "tokenizer.model.v3",
    "vocab.bpe",
    "tokenizer.model",
    "spiece.model",
    "source.spm",
    "vocab.json",
    "merges.txt",
    "dict.txt",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
    "config_sentence_transformers.json",
    "tekken.json",
    "mlp_fusion_tune_record.json",
]
OTHERS = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.onnx",
    "model-q4.gguf",
    "tf_model.h5",
    "flax_model.msgpack",
    "optimizer.pt",
    "training_args.bin",
    "trainer_state.json",
    "modeling_custom.py",
    "onnx/model.onnx",
    ".git/config",
    ".gitattributes",
    "checkpoint-1/vocab.txt",
    "model.fp16.safetensors",
    "rng_state.pth",
]
STRAYS = ["credentials.json", "id_rsa", "notes.txt", "train.csv"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    pico_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(bert, tmp_path) -> Path:
    """A copy to spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else name)


def files_of(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.filterwarnings("default")
def test_what_belongs_goes_along_and_nothing_else(checkpoint, tmp_path):
    write(checkpoint, [*BELONGS, *OTHERS, *STRAYS])
    result = call("compress", checkpoint, tmp_path / "out", *CUT)
    assert result.exit_code == 0, result.output
    assert files_of(tmp_path / "out") == {*OWN, *BELONGS}
    assert "left out: credentials.json, id_rsa, notes.txt, train.csv" in result.stderr
    assert all((tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes() for name in BELONGS)


def test_the_list_has_every_vocabulary_file_of_transformers(tmp_path):
    source = Path(transformers.__file__).parent / "models"
    names = set()
    for file in source.glob("*/tokenization_*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES = \{[^}]*\}", file.read_text(encoding="utf-8")):
            names |= set(re.findall(r':\s*"([^"]+)"', table))
    assert len(names) > 15
    write(tmp_path, sorted(names))
    assert {file.name for file in carried_files(tmp_path)} == names


@pytest.mark.filterwarnings(
    "ignore:Deprecated in 0.9.0. WordPiece:DeprecationWarning"
)  # transformers 5.14, tokenizers 0.22
def test_an_additional_chat_template_is_still_there(checkpoint, tmp_path):
    (checkpoint / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n")
    tokenizer = BertTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = {"default": "hello", "tool_use": "TOOL {{ messages[0]['content'] }}"}
    tokenizer.save_pretrained(checkpoint)
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    loaded = BertTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "hi"}]
    assert loaded.apply_chat_template(chat, chat_template="tool_use", tokenize=False) == "TOOL hi"


def test_the_modules_of_a_sentence_model_come_with_their_weights(checkpoint, tmp_path):
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Old"}, {"path": "4_Normalize"}]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    write(checkpoint, ["1_Pooling/config.json", "2_Dense/config.json", "3_Old/config.json", "2_Dense/desktop.ini"])
    save_file({"linear.weight": pico_model("bert").pooler.dense.weight.data}, checkpoint / "2_Dense/model.safetensors")
    write(checkpoint, ["2_Dense/pytorch_model.bin", "3_Old/pytorch_model.bin"])
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    modules_files = {name for name in files_of(tmp_path / "out") if "/" in name}
    assert modules_files == {
        "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
        "3_Old/config.json", "3_Old/pytorch_model.bin",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from sentence_transformers import SentenceTransformer" in card
    assert "library_name: sentence-transformers" in card


def test_a_model_in_the_folder_of_a_module_is_pointed_at(checkpoint, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    checkpoint.rename(old / "0_Transformer")
    (old / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}]))
    line = refused("compress", old, tmp_path / "out", *CUT)
    assert line.endswith("must hold config.json, it does not; its folder 0_Transformer does")


def test_a_link_that_leaves_the_checkpoint_is_refused_before_any_work(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name in ("vocab.txt", "README.md"):
        (checkpoint / name).symlink_to("../secret")
        line = refused("compress", checkpoint, tmp_path / "out", *CUT)
        assert f"{name} must be a file of the checkpoint, got a link out of it" in line
        (checkpoint / name).unlink()
    (checkpoint / "model.safetensors").rename(tmp_path / "other.safetensors")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "other.safetensors")
    assert "got a link out of it" in refused("compress", checkpoint, tmp_path / "out", *CUT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling"])
def test_what_is_no_plain_file_is_refused_before_any_work(kind, checkpoint, tmp_path):
    place = checkpoint / "vocab.txt"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("nothing")
    assert "vocab.txt must be a plain file" in refused("compress", checkpoint, tmp_path / "out", *CUT)


def hub_cache(bert: Path, root: Path, commit: str) -> Path:
    """The files as the cache of the Hub keeps them: a snapshot of links to blobs."""
    snapshot = root / "models--owner--name" / "snapshots" / commit
    blobs = root / "models--owner--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate([*bert.iterdir()]):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hub_says_what_it_is(bert, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub_cache(bert, tmp_path / "cache", commit)
    assert call("compress", snapshot, tmp_path / "out", *CUT).exit_code == 0
    record = json.loads((tmp_path / "out" / "mlp_fusion_record.json").read_text())
    assert record["model"] == {"name": "owner/name", "is_hub_id": True, "revision": None, "commit": commit}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# name, compressed" in card
    assert f"[owner/name](https://huggingface.co/owner/name) (commit `{commit}`)" in card
    assert "base_model: owner/name" in card
    assert origin("owner/name", "v1", snapshot).revision == "v1"


def test_a_local_folder_is_named_without_its_path(checkpoint, tmp_path):
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    record = (tmp_path / "out" / "mlp_fusion_record.json").read_text()
    assert json.loads(record)["model"] == {"name": "model", "is_hub_id": False, "revision": None, "commit": None}
    assert str(tmp_path) not in record


def test_the_card_keeps_licence_and_language_but_no_scores(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3\nlanguage:\n- de\npipeline_tag: fill-mask\ntags: [kept]\n"
        "base_model: older/one\nmodel-index:\n- name: x\n  results: [1, 2]\n---\n# Its own title\n"
    )
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for line in ("license: other", "license_name: llama3", "- de", "pipeline_tag: fill-mask", "- kept", "- mlp-fusion"):
        assert f"\n{line}\n" in card
    assert "\nbase_model: older/one\n" in card
    assert "model-index" not in card
    assert "Its own title" not in card


@pytest.mark.filterwarnings("default")
def test_a_card_that_cannot_be_read_is_told(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("---\na: &a [*a, *a]\n---\n")
    result = call("compress", checkpoint, tmp_path / "out", *CUT)
    assert result.exit_code == 0
    assert "no readable front matter, its licence is lost" in result.stderr


def test_a_folder_with_markup_in_its_name_makes_a_harmless_card(checkpoint, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>`|\n# title"
    checkpoint.rename(hostile)
    assert call("compress", hostile, tmp_path / "out", *CUT).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# &#60;img src=x onerror=alert(1)&#62;&#96;&#124;?# title, compressed" in card
    assert "\n# title" not in card
    assert "`<img src=x onerror=alert(1)>'|?# title` with narrower MLPs" in card  # code, which is no HTML


def test_left_files_are_those_that_nothing_is_known_of(tmp_path):
    write(tmp_path, [*BELONGS, *OTHERS, *STRAYS, "README.md", "config.json", "model.safetensors"])
    assert left_files(tmp_path) == sorted(STRAYS)


def test_the_weights_are_read_by_everybody(checkpoint, tmp_path):
    assert call("compress", checkpoint, tmp_path / "out", *CUT).exit_code == 0
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "out").iterdir())
    AutoModel.from_pretrained(tmp_path / "out")

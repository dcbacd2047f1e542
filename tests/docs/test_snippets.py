"""The snippets of README and docs work: Python blocks and commands run in the order of the page, on tiny models.

Ids of the Hub stand for tiny random checkpoints of the same type. All commands are parsed with all their flags, those
in the text as well; a block is run unless the comment above it says why not (`tests/markdown_pages.py`).
"""

import gzip
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import transformers
from command import call
from markdown_pages import DOCUMENTATION, ROOT, Block, blocks, commands, commands_in_text, name_of
from pico import pico_config
from tiny_task import sentences, tiny_tokenizer, write_files

from mlpfusion.cli import main

# What an id of the Hub stands for: architecture, class, layers.
MODELS = {
    "FacebookAI/roberta-base": ("roberta", "AutoModelForMaskedLM", 12),
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", "AutoModel", 6),
    "HuggingFaceTB/SmolLM2-135M": ("llama", "AutoModelForCausalLM", 3),
}
# Pages whose snippets `make test` runs: the first one that people read, and the quickest. CI runs all.
QUICK = ("README.md", "docs/concepts/saving.md", "docs/jobs/inspect.md")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Id of the Hub -> folder of a tiny model with a tokenizer."""
    found = {}
    for name, (architecture, auto_class, layers) in MODELS.items():
        config = pico_config(architecture)
        config.num_hidden_layers, config.intermediate_size = layers, 320
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, auto_class).from_config(config)
        found[name] = tmp_path_factory.mktemp("hub") / architecture
        model.save_pretrained(found[name])
        tiny_tokenizer().save_pretrained(found[name])
    return found


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which snippets run, with the files that they name."""
    (tmp_path / "texts.txt").write_text("\n".join(sentences(480, 3)[0]))
    pairs = [{"source": f"w{number} w{number + 1}", "target": f"w{number}"} for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    write_files(tmp_path)
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for name in ("train", "validation"):
        rows = (tmp_path / f"{name}.jsonl").read_bytes()
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(rows))
    monkeypatch.setenv("MLPFUSION_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_tiny_models(text: str, checkpoints: dict[str, Path]) -> str:
    for name, folder in checkpoints.items():
        text = text.replace(name, str(folder))
    # ids of the Hub that stand for nothing here would be loaded from there
    unknown = re.findall(r"from_pretrained\(\"([^\"]+/[^\"]+)\"", text)
    assert [name for name in unknown if not Path(name).is_dir()] == [], "give it a tiny model in MODELS"
    return text


def write_file(block: Block, folder: Path, checkpoints: dict[str, Path]) -> None:
    """Writes a block that stands for a file into `folder`."""
    if block.comment.startswith("file:"):
        (folder / block.comment.removeprefix("file:").strip()).write_text(with_tiny_models(block.text, checkpoints))


def check_command(words: list[str], block: Block) -> None:
    """A command line names a command with flags that exist, an extra, or a target of the Makefile."""
    if words[0] == "mlpfusion":
        if len(words) > 1:
            main.commands[words[1]].make_context(words[1], words[2:])
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for name in re.findall(r"\[(\w+)\]", words[2]):
            assert name in extras
    elif words[0] == "make":
        assert re.search(rf"(?m)^{words[1]}:", (ROOT / "Makefile").read_text())
    else:
        assert not block.is_run, f"{block.where}: {words[0]} is not run by the tests, say so above the block"


@pytest.mark.parametrize("page", DOCUMENTATION, ids=name_of)
def test_snippets_parse(page: Path, workplace: Path, checkpoints: dict[str, Path]) -> None:
    for block in blocks(page):
        write_file(block, workplace, checkpoints)
        if block.language == "python":
            compile(block.text, block.where, "exec")
        if block.language == "sh":
            for words in commands(block):
                check_command(words, block)
    for line in commands_in_text(page):
        words = line[: line.index("--")] if "--" in line else line  # what follows is another program's
        names = [word for word in words[1:] if word in main.commands]
        known = main if not names else main.commands[names[0]]
        flags = {flag for option in (*main.params, *known.params) for flag in option.opts}
        assert [word for word in words if word.startswith("-") and word not in {*flags, "--help"}] == []
        assert names or len(words) < 2 or words[1].startswith("-") or words[1] == "COMMAND", " ".join(words)


# transformers' Trainer on a machine without a GPU
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if name_of(page) in QUICK else [pytest.mark.slow], id=name_of(page))
        for page in DOCUMENTATION
        if any(block.language in ("python", "sh") and block.is_run for block in blocks(page))
    ],
)
def test_snippets_run(page: Path, workplace: Path, checkpoints: dict[str, Path]) -> None:
    namespace: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        write_file(block, workplace, checkpoints)
        if not block.is_run:
            continue
        if block.language == "python":
            code = compile(with_tiny_models(block.text, checkpoints), block.where, "exec")
            exec(code, namespace)
        if block.language == "sh":
            for words in commands(block):
                if words[0] == "mlpfusion":
                    result = call(*(with_tiny_models(word, checkpoints) for word in words[1:]))
                    assert result.exit_code == 0, f"{block.where}: {' '.join(words)}\n{result.output}"


def test_a_broken_snippet_fails(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made-up.md"
    block = Block(page, 1, "sh", "mlpfusion compress MODEL OUT --keep-rato 0.25", "")
    with pytest.raises(Exception, match="No such option"):
        check_command(commands(block)[0], block)

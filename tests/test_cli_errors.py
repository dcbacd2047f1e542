"""How commands end: in one line that names the flag as it was typed, with a code for whose turn it is."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from command import call, refused
from pico import pico_model
from rich.table import Table
from safetensors import SafetensorError

from mlpfusion.cli import main
from mlpfusion.errors import InputError
from mlpfusion.report.errors import reported_errors
from mlpfusion.report.methods import method_entries, option_entries
from mlpfusion.report.terminal.console import PlainConsole, progress_bar

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("errors") / "model"
    pico_model("bert").save_pretrained(folder)
    return folder


def end_with(error: BaseException | signal.Signals, *flags: str, environment: dict[str, str] | None = None) -> Result:
    """What a command of `mlpfusion` prints when `error` comes up in it, or that signal."""

    @click.group()
    @click.option("--debug", is_flag=True, envvar="MLPFUSION_DEBUG")
    def group(debug: bool) -> None:
        pass

    @group.command()
    @click.option("--out", default="somewhere")
    @click.option("--keep-ratio")
    @click.option("--layers")
    @click.option("--recipe")
    @click.argument("model", required=False)
    def work(**_: Any) -> None:
        with reported_errors("The same command with --resume goes on."):
            if isinstance(error, signal.Signals):
                signal.raise_signal(error)
            else:
                raise error

    before, *after = flags if flags and flags[0] == "--debug" else ("", *flags)
    arguments = [flag for flag in (before, "work", *after) if flag]
    return CliRunner().invoke(group, arguments, env=environment)


@pytest.mark.parametrize(
    ("flags", "message", "line"),
    [
        ((), "`keep_ratio` must be above 0", "`--keep-ratio` must be above 0"),
        ((), "give `keep_ratio=0.25` (or `width`)", "give `--keep-ratio 0.25` (or `width`)"),
        ((), "`layers=last:N` must have N above 0", "`--layers last:N` must have N above 0"),
        ((), "`model` must be a folder", "MODEL must be a folder"),
        ((), "`layers` of svd must be even", "`layers` of svd must be even"),
        (("--recipe", "r", "--layers", "1"), "`layers` or `keep_ratio`", "`--layers` or `keep_ratio`"),
    ],
)
def test_a_field_is_named_as_it_was_typed_and_in_a_recipe_as_it_stands_there(flags, message, line):
    result = end_with(InputError(message), *flags)
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")


MACHINE = [
    (
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        "No space left on device: /a/b .*; make room",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "Disk quota exceeded: /a .*; make room in your quota"),
    (PermissionError(errno.EACCES, "Permission denied", "/a"), "Permission denied: /a .*; check who may write there"),
    (OSError(errno.EIO, "Input/output error"), r"Input/output error \(OUT is somewhere\)"),
    (OSError("something of huggingface_hub\nin two lines"), "something of huggingface_hub in two lines"),
    (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        r"Error while serializing.*\(OUT is somewhere\); make room on the disk",
    ),
    (Exception("No space left on device (os error 28)"), r"No space.*\(OUT is somewhere\); make room"),  # tokenizers
    (MemoryError(), "there is not enough memory .*; use a smaller model"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "can't allocate memory.*; use a smaller"),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 30784"), "enforce fail"),
    (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory.*; use a smaller"),
    (RecursionError("maximum recursion depth exceeded"), "the input is nested too deeply"),
    (UnicodeEncodeError("utf-8", "a\udcffb", 1, 2, "surrogates not allowed"), "cannot be written: .*PYTHONUTF8=1"),
]


@pytest.mark.parametrize(("error", "message"), MACHINE, ids=lambda value: type(value).__name__)
def test_what_the_machine_refuses_is_one_line_with_a_code_of_its_own(error, message):
    result = end_with(error)
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert re.match(f"Error: .*{message}", line), line
    assert line.endswith("MLPFUSION_DEBUG=1 shows where")


def test_debug_shows_the_traceback_and_the_same_line():
    for result in (
        end_with(OSError(errno.EIO, "gone"), "--debug"),
        end_with(InputError("wrong"), environment={"MLPFUSION_DEBUG": "1"}),
    ):
        assert result.stderr.startswith("Traceback (most recent call last)")
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert result.exit_code in (2, 3)


def test_errors_of_the_program_itself_keep_their_traceback():
    for error in (RuntimeError("shapes"), KeyError("name"), AssertionError("ours"), Exception("anything")):
        assert end_with(error).exception is error


def test_an_interrupted_command_says_how_to_go_on():
    result = end_with(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted. The same command with --resume goes on.\n")


def test_a_terminated_command_says_how_to_go_on_too():
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = end_with(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, result.stderr) == (143, "Terminated. The same command with --resume goes on.\n")


def test_of_the_processes_of_torchrun_one_says_what_is_wrong():
    for error, code in ((InputError("wrong"), 2), (KeyboardInterrupt(), 130)):
        result = end_with(error, environment={"RANK": "1", "LOCAL_RANK": "1"})
        assert (result.exit_code, result.stderr) == (code, "")


def test_no_message_moves_the_cursor_or_breaks_the_line():
    message = str(InputError(f"got {ESCAPE}\n\r\u202e\u2028 \udcff end"))
    assert message.isprintable()
    assert message.startswith("got \\x1b]0;owned\\x07")
    assert len(str(InputError("x" * 10**6 + " end"))) < 1300
    assert str(InputError("x" * 10**6 + " end")).endswith(" end")


def test_a_name_is_printed_as_it_is_whatever_it_holds(capsys):
    table = Table(box=None)
    table.add_column("name")
    table.add_row(f"[red]a[/red] {ESCAPE}")
    console = PlainConsole()
    console.print("[/x]", ":smile:", "\udcff", table, f"[bold]{ESCAPE}")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[/x]", ":smile:", "[red]a[/red]", "\\udcff", "[bold]"))
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_markup_and_escapes_in_paths_and_keys_do_nothing(checkpoint, tmp_path):
    for name in ("out[/x]", "[red]out[/red]", "a\x1b[31mb", "\udcff\u00fc"):
        out = tmp_path / name
        result = call("compress", checkpoint, out, "--keep-ratio", 0.25, "--layers", 1)
        assert result.exit_code == 0, (name, result.output)
        assert "\x1b" not in result.output
        shown = call("inspect", out)
        assert shown.exit_code == 0, shown.output
        assert "\x1b" not in shown.output
        config = json.loads((out / "config.json").read_text())
        config["mlp_fusion"]["method"] = f"[/x]{ESCAPE}"
        (out / "config.json").write_text(json.dumps(config))
        hostile = call("inspect", out)
        assert "\x1b" not in hostile.output
        assert hostile.exit_code in (0, 2), hostile.exception


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300, "x/" * 3000])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("MODEL", ("inspect", "PATH")),
        ("MODEL", ("tune", "PATH", "out", "--task", "sst2")),
        ("OUT", ("compress", "MODEL", "PATH", "--keep-ratio", 0.5)),
        ("OUT", ("tune", "MODEL", "PATH", "--task", "sst2")),
        ("OUT", ("distill", "MODEL", "MODEL", "PATH", "--task", "sst2")),
        ("`--out`", ("dynamics", "MODEL", "--task", "sst2", "--out", "PATH")),
        ("`--out`", ("compare", "MODEL", "--data", "a.txt", "--out", "PATH")),
        ("`--architecture`", ("inspect", "MODEL", "--architecture", "PATH")),
        ("EXPERIMENT", ("reproduce", "PATH", "--out", "out")),
    ],
)
def test_a_path_that_no_file_can_have_is_named(name, command, path, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"PATH": path, "MODEL": checkpoint}
    line = refused(*(words.get(one, one) for one in command))
    assert line.startswith(f"Error: {name} must be ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give `--keep-ratio 0.25` to keep a quarter of the neurons (or `--width`, or `--budget`)"),
        (["--layers", "last8"], "`--layers` must be `all`, `last:N`"),
        (["--method", "lth"], "`--keep-ratio` must be given for lth, got none"),
        (["--method", "magic"], "`--method` must be one of fusion"),
        (["--seed", 10**30], "`--seed` must be at most 4294967295"),
        (["--keep-ratio", 0.5, "--round-to", 0], "`--round-to` must be at least 1"),
        (["--keep-ratio", 0.5, "--layers", "last:" + "9" * 5000], "`--layers` must be `all`, `last:N`"),
        (["--budget", "9" * 5000 + "%"], "`--budget` must be above 0% and at most 100%"),
        (["--keep-ratio", 0.5, "--option", "num_init=1000000000"], "`num_init` of fusion must be at most 1000"),
        (["--keep-ratio", 0.5, "--option", "num_init=" + "[" * 3000], "the value of option num_init must be YAML"),
        (["--keep-ratio", 0.5, "--device", "cuda:x"], "`--device` must be cpu or cuda, got 'cuda:x'"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_flag_of_compress_is_named_before_a_missing_size(flags, message, checkpoint, tmp_path):
    line = refused("compress", checkpoint, tmp_path / "out", *flags)
    assert message in line
    assert len(line) < 1300


def test_help_fits_a_terminal_of_80_columns_and_shows_what_is_required():
    text = CliRunner().invoke(main, ["--help"], prog_name="mlpfusion", terminal_width=80).output
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80
    usage = CliRunner().invoke(main, ["compress", "--help"], prog_name="mlpfusion").output.splitlines()[0]
    assert usage == "Usage: mlpfusion compress --keep-ratio SHARE [OPTIONS] MODEL OUT"


def test_methods_lists_every_method_and_every_option_with_a_sentence():
    listed = call("methods").output
    for entry in method_entries():
        assert re.search(rf"^{entry.name} .*{entry.kind} .*{entry.needs}", listed, re.MULTILINE), entry
        shown = call("methods", entry.name).output
        for option in option_entries(entry.config):
            assert f"`{option.name}`" in option.sentence, (entry.name, option)
            assert f"  {option.name} ({option.kind}, default {option.default}): {option.sentence}" in shown
    assert refused("methods", "magic").startswith("Error: NAME must be one of fusion, folded-fusion")


def test_the_end_of_compress_names_the_next_step(checkpoint, tmp_path):
    out = tmp_path / "two words"
    text = call("compress", checkpoint, out, "--keep-ratio", 0.25).output
    assert f"`mlpfusion measure {checkpoint} '{out}' --data TEXTS`" in text
    assert f"`mlpfusion tune '{out}' TUNED --task sst2`" in text


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(capfd):
    told, waited = "", 0
    with progress_bar("Working", every=0.02) as progress:
        progress(3, 10, "layer.3[/x]\x1b[2J")
        while not told and waited < 500:
            time.sleep(0.02)
            told, waited = capfd.readouterr().err, waited + 1
    assert told.startswith("Working: 3 of 10, layer.3[/x]\\x1b[2J, 0:00:0")
    with progress_bar("Quick") as progress:
        progress(1, 2, "")
    assert "Quick" not in capfd.readouterr().err


@pytest.mark.slow
def test_recipes_are_listed_without_the_packages_of_training():
    script = (
        "import sys; sys.modules['accelerate'] = sys.modules['sklearn'] = None; "
        "from click.testing import CliRunner; from mlpfusion.cli import main; "
        "result = CliRunner().invoke(main, ['reproduce']); assert 'table2' in result.output, result"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"})

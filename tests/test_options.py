"""Options: the fields of frozen dataclasses are the flags, the keys of a file and the documentation."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from mlpfusion.cli import COMMANDS
from mlpfusion.errors import InputError
from mlpfusion.options.fields import bound, changed, from_plain, leaves, option, own, part, plain
from mlpfusion.options.tune import TuneOptions


@dataclass(frozen=True)
class Part:
    rate: float = own(1.0)
    epochs: int = option(3, "Passes.")
    names: tuple[str, ...] = option((), "Names.")


@dataclass(frozen=True)
class Whole:
    out: str = option("", "Folder.", required=True, free=True)
    rate: tuple[float, ...] = option((1.0,), "Rates.")
    inner: Part = part(Part)


def test_the_fields_of_a_part_stand_in_its_place_and_back():
    values = {"out": "x", "rate": (0.5,), "epochs": 2, "names": ("a", "b")}
    options = from_plain(Whole, values)
    assert options == Whole("x", (0.5,), Part(1.0, 2, ("a", "b")))
    assert plain(options) == values
    assert bound(options) == {name: value for name, value in values.items() if name != "out"}
    assert changed(from_plain(Whole, {"out": "x", "epochs": 3})) == {"out": "x"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"out": "x", "epoch": 1}, "the options must have keys among out, rate, epochs, names, got 'epoch'"),
        ({"out": "x", "epochs": 1.5}, "`epochs` must be of type int, got 1.5"),
        ({"out": "x", "names": [1]}, "`names` must be of type str, got 1"),
        ({"epochs": 1}, "`out` must be given, got none"),
    ],
)
def test_unknown_missing_and_mistyped_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        from_plain(Whole, values)


def test_what_is_varied_a_run_is_not_taken_from_the_list_of_values():
    options = from_plain(TuneOptions, {"model": "m", "out": "o", "learning_rate": (1e-3, 3e-3), "lora": "r=2"})
    first = options.finetune(1e-3, 5)
    assert (first.learning_rate, first.seed, first.lora.r if first.lora else 0) == (1e-3, 5, 2)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_flag_has_a_sentence_and_no_name_stands_twice(command):
    known = list(leaves(command.options))
    assert len({leaf.name for leaf in known}) == len(known)
    for leaf in known:
        about = leaf.about
        assert about.is_argument or not about.has_flag or about.help.endswith("."), leaf.name
        assert "default" not in about.help.lower(), f"{leaf.name}: the default is shown from the field"


def test_options_and_commands_import_no_torch():
    script = (
        "import pkgutil, sys; from importlib import import_module\n"
        "for room in ('mlpfusion.options', 'mlpfusion.commands'):\n"
        "    for found in pkgutil.walk_packages(import_module(room).__path__, room + '.'): import_module(found.name)\n"
        "import mlpfusion.cli\n"
        "sys.exit(sum(name.split('.')[0] in ('torch', 'transformers', 'rich', 'yaml') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

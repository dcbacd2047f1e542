"""Values in recipes and options: YAML, with numbers as people write them."""

from pathlib import Path

import pytest

from mlpfusion.errors import InputError, shown
from mlpfusion.methods.names import method_from_name, parse_method
from mlpfusion.methods.table import ON_TASK
from mlpfusion.storage.yaml import parse_option, read_yaml


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "1.e-4", ".1e-3", "0.0001", "+1e-4"])
def test_numbers_with_exponents_are_numbers(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"rate: {text}\nrates: [{text}, -{text.removeprefix('+')}]\n")
    assert read_yaml(tmp_path / "recipe.yaml", "recipe") == {"rate": 1e-4, "rates": [1e-4, -1e-4]}
    assert parse_option(f"rate={text}") == ("rate", 1e-4)


@pytest.mark.parametrize("text", ["e5", "1e", "1e-4x", "last:4", "sst2", "1 e4"])
def test_what_only_looks_like_one_stays_text(text):
    assert parse_option(f"name={text}") == ("name", text)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("true", True), ("", None), ("[1, 2e3]", [1, 2000.0])])
def test_other_values_are_those_of_yaml(text, value):
    name, found = parse_option(f"name={text}")
    assert (name, found, type(found)) == ("name", value, type(value))


def test_no_object_is_made():
    with pytest.raises(InputError, match="the value of option a must be YAML"):
        parse_option("a=!!python/object/apply:os.getcwd []")


def test_options_that_are_fractions_take_whole_numbers_and_exponents():
    assert parse_method("gem-miner:learning_rate=1e-3", ON_TASK).learning_rate == 1e-3
    whole = method_from_name("gem-miner", {"regularization": 1}, ON_TASK).regularization
    assert (whole, type(whole)) == (1.0, float)
    with pytest.raises(InputError, match="`regularization` of gem-miner must be of type float, got True"):
        method_from_name("gem-miner", {"regularization": True}, ON_TASK)


BOMBS = {
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "nesting": "[" * 2000,
    "blocks": "- " * 2000,
    "a tag": "!!int a",
    "a timestamp's tag": "!!timestamp a",
    "no bool": "!!bool zz",
    "no character": '"\\U0011ffff"',
    "a number of 5,000 digits": "9" * 5000,
    "a list for a key": "? [a]\n: b",
    "a key twice": "a: 1\na: 2",
    "two documents": "a: 1\n--- {}",
    "an escape sequence": "\x1b[2J",
    "half a character": "\ud800",
    "a long text": "x" * 2**17,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_what_is_no_plain_data_of_a_small_size_is_refused_in_one_short_line(text, tmp_path):
    with pytest.raises(InputError, match="the value of option a must be YAML") as refusal:
        parse_option(f"a={text}")
    assert len(str(refusal.value)) < 1300
    assert str(refusal.value).isprintable()
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match="`recipe` must be a readable YAML file"):
        read_yaml(file, "recipe")


@pytest.mark.parametrize("text", ["0b_", "0x_", "2001-13-45", "1:30", "1_000", "<<", "="])
def test_numbers_and_dates_that_only_yaml_1_1_knows_are_text(text):
    assert parse_option(f"a={text}") == ("a", text)


def test_a_file_without_an_end_is_not_read_to_its_end():
    with pytest.raises(InputError, match="it is longer than 65,536 bytes"):
        read_yaml(Path("/dev/zero"), "recipe")


def test_a_value_in_a_message_is_short_whatever_it_holds():
    deep: list[object] = []
    for _ in range(60):
        deep = [deep, deep]
    for value in (deep, "x" * 10**6, 10**5000, dict.fromkeys(range(1000), deep), "\x1b[31m\u202e\ud800"):
        assert len(shown(value)) < 1000
        assert shown(value).isprintable()
    assert shown("a\nb") == r"'a\nb'"

"""Values in recipes and options: YAML, with numbers as people write them."""

import pytest

from mlpfusion.errors import InputError
from mlpfusion.methods import method_from_name, parse_method
from mlpfusion.task_methods import TASK_METHOD_TYPES
from mlpfusion.yaml import parse_option, read_yaml


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
    assert parse_method("gem-miner:learning_rate=1e-3", TASK_METHOD_TYPES).learning_rate == 1e-3
    whole = method_from_name("gem-miner", {"regularization": 1}, TASK_METHOD_TYPES).regularization
    assert (whole, type(whole)) == (1.0, float)
    with pytest.raises(InputError, match="`regularization` of gem-miner must be of type float, got True"):
        method_from_name("gem-miner", {"regularization": True}, TASK_METHOD_TYPES)

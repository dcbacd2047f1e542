"""What the tests of exports share."""

import pytest
from click.testing import CliRunner
from scripts import load_script


@pytest.fixture(scope="session")
def stories(evaluation_data, tmp_path_factory):
    """The checkpoint of stories260K, whose tokenizer the converter of llama.cpp knows."""
    out = tmp_path_factory.mktemp("stories") / "out"
    source = evaluation_data / "checkpoints" / "stories260K"
    assert CliRunner().invoke(load_script("examples/stories260k.py").main, [str(source), str(out)]).exit_code == 0
    return out

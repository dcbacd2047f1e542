"""Model types with code of their own beside the weights: refused in one line, and nothing of it is imported."""

import json
import sys

import pytest
from command import refused

CODE = "raise SystemExit('imported')"


@pytest.mark.parametrize("command", ["inspect", "compress", "evaluate"])
def test_code_beside_the_weights_is_refused_and_not_run(command, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    names = {"AutoConfig": "modeling_mine.MyConfig", "AutoModel": "modeling_mine.MyModel"}
    config = {"model_type": "mine", "architectures": ["MyModel"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_mine.py").write_text(CODE)
    more = {"compress": [tmp_path / "out", "--keep-ratio", 0.5], "evaluate": ["--data", folder / "modeling_mine.py"]}
    line = refused(command, folder, *more.get(command, []))
    assert "`model_type` must be one of transformers' own, got 'mine', whose code is in files beside" in line
    assert "trust_remote_code" not in line
    assert not any("modeling_mine" in name for name in sys.modules)


def test_a_type_that_only_a_part_of_a_model_has_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "blip_text_model"}')
    line = refused("inspect", tmp_path)
    assert "`model_type` must be one that an Auto class of transformers loads, got 'blip_text_model'" in line

"""What happens in a process that never imports mlpfusion."""

import subprocess
import sys

import pytest
import torch
from pico import pico_model, pico_outputs
from safetensors.torch import load_file

import mlpfusion

SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModel

trainable, folded, out = sys.argv[1:]
try:
    AutoModel.from_pretrained(trainable)
except RuntimeError as error:
    assert "size mismatch" in str(error) or "mismatched" in str(error), error
else:
    sys.exit("the trainable form was loaded without the package")
model = AutoModel.from_pretrained(folded).eval()
ids = torch.arange(3, 17).reshape(2, 7)
with torch.no_grad():
    save_file({"outputs": model(input_ids=ids).last_hidden_state}, out)
assert not [name for name in sys.modules if name.startswith("mlpfusion")]
"""


@pytest.mark.slow
def test_the_trainable_form_is_refused_and_the_folded_form_is_a_stock_model(tmp_path):
    model = pico_model("llama")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    model.save_pretrained(tmp_path / "trainable")
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 17).reshape(2, 7)).last_hidden_state
    mlpfusion.fold(model).save_pretrained(tmp_path / "folded")
    paths = [str(tmp_path / name) for name in ("trainable", "folded", "outputs.safetensors")]
    found = subprocess.run([sys.executable, "-c", SCRIPT, *paths], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    torch.testing.assert_close(load_file(paths[2])["outputs"], expected, atol=1e-5, rtol=1e-5)
    assert pico_outputs(model, "llama").isfinite().all()

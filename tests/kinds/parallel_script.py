"""Run by torchrun: under a tensor parallel plan models compute, train and save what they do without."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pico import pico_inputs
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

import mlpfusion  # noqa: F401
from mlpfusion.errors import InputError


def main(root: Path) -> None:
    inputs = pico_inputs("llama")
    for folder in sorted(root.iterdir()):
        plan = DistributedConfig(tp_plan="auto", tp_size=2)
        if folder.name == "low-rank":
            with pytest.raises(InputError, match="must be left out for low-rank"):
                AutoModelForCausalLM.from_pretrained(folder, distributed_config=plan)
            continue
        whole = AutoModelForCausalLM.from_pretrained(folder)
        cut = AutoModelForCausalLM.from_pretrained(folder, distributed_config=plan)
        with torch.no_grad():
            torch.testing.assert_close(cut(**inputs).logits, whole(**inputs).logits, atol=1e-4, rtol=1e-4)
        for model in (whole, cut):
            model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        for (name, one), two in zip(whole.named_parameters(), cut.parameters(), strict=True):
            grad = two.grad.full_tensor() if isinstance(two.grad, DTensor) else two.grad
            torch.testing.assert_close(grad, one.grad, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
        out = root.parent / f"saved-{folder.name}"
        cut.save_pretrained(out)
        dist.barrier()
        before, after = (load_file(path / "model.safetensors") for path in (folder, out))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()

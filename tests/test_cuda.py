"""What must hold on a GPU; skipped where there is none."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from pico import pico_inputs, pico_model
from tiny_task import make_task, save_checkpoint
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.cluster import kmeans
from mlpfusion.data.task_model import load_for_task
from mlpfusion.measure.speed import seconds_in_turns, training_step
from mlpfusion.options.adapters.dsee import Dsee, Support
from mlpfusion.options.training import Finetune
from mlpfusion.tune.finetune import RunContext, finetune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_model_on_the_gpu_is_compressed_there():
    model = pico_model("llama").cuda()
    record = mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    assert record.device.startswith("cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert model.layers[0].mlp.act_fn.output_scale.is_cuda
    inputs = {name: tensor.cuda() for name, tensor in pico_inputs("llama").items()}
    assert torch.isfinite(model(**inputs).last_hidden_state).all()


def test_the_arithmetic_moves_to_the_gpu_and_the_model_stays():
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14, device="cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("method", [mlpfusion.MaintainOutput(), mlpfusion.MaintainNTKGradient()])
@pytest.mark.parametrize("options", [{}, {"sequential": True}])
def test_calibration_is_where_the_model_is_and_the_arithmetic_where_it_is_asked_for(method, options):
    options = {**options, "calibration": [pico_inputs("llama", seed) for seed in range(3)]}
    for home, device in (("cuda", None), ("cpu", "cuda")):
        model = pico_model("llama").to(home)
        record = mlpfusion.compress(model, method, width=14, device=device, **options)
        assert {parameter.device.type for parameter in model.parameters()} == {home}
        for name in ("squared_error", "gradient_error"):
            if name in record.sites[0].metrics:
                assert record.sites[0].metrics[name] < record.sites[0].metrics[f"{name}_start"]


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_repeatable_and_as_good_as_on_the_cpu(seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(600, 4, generator=generator) @ torch.randn(4, 90, generator=generator)
    points += 0.1 * torch.randn(600, 90, generator=generator)
    results = [
        kmeans(points.to(device), 150, generator=torch.Generator().manual_seed(seed))
        for device in ("cuda", "cuda", "cpu")
    ]
    assert torch.equal(results[0].labels, results[1].labels)
    assert torch.equal(results[0].centroids, results[1].centroids)
    assert results[0].inertia == pytest.approx(results[2].inertia, rel=0.02)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_training_step_runs_on_the_gpu(autocast):
    model = pico_model("bert", AutoModelForSequenceClassification).cuda().train()
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    batch = {name: tensor.cuda() for name, tensor in pico_inputs("bert").items()}
    batch["labels"] = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device="cuda")
    step = training_step(model, batch, autocast=autocast)
    assert all(second > 0 for second in seconds_in_turns([step], repeats=3)[0])
    assert torch.isfinite(step())


@pytest.mark.parametrize("omega", ["decompose", "gradient", "random"])
def test_dsee_draws_trains_and_merges_on_the_gpu(omega, tmp_path):
    data = make_task()
    model: Any = load_for_task(open_for_training(str(save_checkpoint(tmp_path / "model"))), data.task, 0)
    config = Finetune(learning_rate=2e-3, epochs=1, precision="bf16", dsee=Dsee(2, support=Support(8, omega)))
    tuned, record = finetune(model, data, config, RunContext(tmp_path / "run"))
    assert {parameter.device.type for parameter in tuned.parameters()} == {"cuda"}
    assert record.dsee is not None
    assert record.dsee.sparse_parameters == 6 * 8
    base: Any = load_for_task(open_for_training(str(tmp_path / "model")), data.task, 0)
    adapted = PeftModel.from_pretrained(base.cuda(), str(tmp_path / "run" / "adapter")).eval()
    batch = {name: tensor.cuda() for name, tensor in data.collate(data.train.items[:8]).items()}
    with torch.no_grad():
        torch.testing.assert_close(tuned(**batch).logits, adapted(**batch).logits, rtol=1e-4, atol=1e-5)

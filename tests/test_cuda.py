"""What must hold on a GPU; skipped where there is none."""

import pytest
import torch
from pico import pico_inputs, pico_model
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.cluster import kmeans
from mlpfusion.measure.speed import seconds_in_turns, training_step

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

"""Recordings that are too large for memory."""

import shutil
import tempfile
from collections import namedtuple

import pytest
import torch
from pico import pico_inputs, pico_model, sites_of

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.sites import over_batches
from mlpfusion.sites.over_batches import joined_over_batches

BATCHES = [pico_inputs("llama", seed) for seed in range(3)]


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Everything counts as too large for memory; the folder of the temporary files."""
    monkeypatch.setattr(over_batches, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_recording_on_disk_has_the_same_numbers(on_disk, dtype):
    batches = [{"x": torch.arange(12 * size).reshape(size, 3, 4).to(dtype)} for size in (2, 1, 3)]
    ((joined, flat),) = joined_over_batches(batches, lambda batch: [[batch["x"], batch["x"].flatten()]])
    expected = torch.cat([batch["x"] for batch in batches])
    assert torch.equal(joined, expected)
    assert torch.equal(flat, expected.flatten())
    assert joined.dtype == dtype
    assert not list(on_disk.iterdir())


def test_the_parts_go_to_a_file_one_after_the_other(on_disk, monkeypatch):
    written = []
    add = over_batches._OnDisk.add
    monkeypatch.setattr(over_batches._OnDisk, "add", lambda self, part: (written.append(part.nbytes), add(self, part)))
    joined_over_batches([{"x": torch.ones(2)}, {"x": torch.ones(3)}], lambda batch: [[batch["x"]], [batch["x"]]])
    assert written == [8, 8, 12, 12]


@pytest.mark.parametrize("method", [mlpfusion.NTKMatch(refine_epochs=0), mlpfusion.NIRVANA()])
def test_a_cut_is_the_same_with_its_recording_on_disk(method, request):
    cuts = []
    for where in ("memory", "disk"):
        if where == "disk":
            request.getfixturevalue("on_disk")
        model = pico_model("llama")
        mlpfusion.compress(model, method, keep_ratio=0.5, calibration=BATCHES)
        cuts.append(model.state_dict())
    assert all(torch.equal(cuts[0][name], cuts[1][name]) for name in cuts[0])


def test_a_temporary_folder_without_room_is_an_error_before_the_second_batch(on_disk, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 2**30))
    seen = []

    def recorded_in(batch):
        seen.append(batch)
        return [[torch.zeros(2**10)]]

    batches = [{"input_ids": torch.zeros(1, 1)}, {"input_ids": torch.zeros(2**9, 2**10)}]
    with pytest.raises(InputError, match=rf"folder {on_disk} \(TMPDIR\), which has 1.0 GiB free, got .* 2.0 GiB"):
        joined_over_batches(batches, recorded_in)
    assert len(seen) == 1


def test_waiting_passes_are_refused_where_one_layer_has_no_room(monkeypatch):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("mlpfusion.sites.waiting.psutil.virtual_memory", lambda: memory(1000))
    model = pico_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"`calibration` must be small enough .* got 42 tokens, which take"):
        mlpfusion.compress(
            model, mlpfusion.NTKMatch(refine_epochs=0, match="none"), keep_ratio=0.5, calibration=BATCHES
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sites_of(model)

"""Arguments of the Python functions: NumPy's numbers are taken, anything of a wrong kind is refused in words."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pico import pico_model, sites_of
from torch import nn
from transformers import AutoModel

import mlpfusion
from mlpfusion.checks import MAX_SEED
from mlpfusion.cluster import kmeans
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import Dynamics
from mlpfusion.methods.table import ON_TASK, ONE_SHOT
from mlpfusion.options.adapters.dsee import Dsee, Support
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.tune.distill import Distill

CONFIGS: tuple[type, ...] = (*ONE_SHOT, *ON_TASK, Finetune, Lora, Dsee, Support, Distill, Dynamics)
IDS = torch.ones(2, 5, dtype=torch.long)
BATCH = {"input_ids": IDS, "attention_mask": IDS}


@pytest.mark.parametrize(
    ("size", "plain"),
    [
        (
            {"keep_ratio": np.float32(0.25), "seed": np.int64(3), "round_to": np.uint8(2)},
            {"keep_ratio": 0.25, "seed": 3},
        ),
        ({"width": np.int64(14), "seed": torch.tensor(3)}, {"width": 14, "seed": 3}),
        ({"keep_ratio": 1, "seed": MAX_SEED, "sequential": np.False_}, {"keep_ratio": 1.0, "seed": MAX_SEED}),
    ],
    ids=str,
)
def test_numbers_of_numpy_and_torch_give_what_pythons_give_and_are_saved_and_loaded(size, plain, tmp_path):
    model, expected = pico_model("bert"), pico_model("bert")
    record = mlpfusion.compress(model, mlpfusion.Fusion(num_init=np.int32(2)), layers="1", **size)  # pyright: ignore
    mlpfusion.compress(expected, mlpfusion.Fusion(num_init=2), layers="1", **plain)
    assert json.loads(record.to_json())["recipe"]["seed"] == plain["seed"]
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.state_dict().items())


def generator():
    yield BATCH


OUTPUT, MATCH = mlpfusion.MaintainOutput(), mlpfusion.NTKMatch()
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"seed": None}, "`seed` must be a whole number, got None"),
    ({"seed": 3.0}, "`seed` must be a whole number, got 3.0"),
    ({"seed": True}, "`seed` must be a whole number, got True"),
    ({"seed": np.True_}, "`seed` must be a whole number, got"),
    ({"seed": "3"}, "`seed` must be a whole number, got '3'"),
    ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ({"seed": 2**32}, "`seed` must be at most 4294967295, got 4294967296"),
    ({"seed": 10**5000}, "`seed` must be at most 4294967295, got a whole number of 16610 bits"),
    ({"keep_ratio": "0.25"}, "`keep_ratio` must be a number, got '0.25'"),
    ({"keep_ratio": True}, "`keep_ratio` must be a number, got True"),
    ({"keep_ratio": float("nan")}, "`keep_ratio` must be a finite number, got nan"),
    ({"keep_ratio": 10**400}, "`keep_ratio` must be a finite number, got a whole number"),
    ({"keep_ratio": None}, "give `keep_ratio=0.25`"),
    ({"keep_ratio": None, "width": 14.0}, "`width` must be a whole number, got 14.0"),
    ({"keep_ratio": None, "width": True}, "`width` must be a whole number, got True"),
    ({"round_to": 8.0}, "`round_to` must be a whole number, got 8.0"),
    ({"round_to": 10**400}, "`round_to` must be at most"),
    ({"round_to": 0}, "`round_to` must be at least 1, got 0"),
    ({"sequential": "no"}, "`sequential` must be True or False, got 'no'"),
    ({"layers": "last:" + 5000 * "9"}, "`layers` must be `all`, `last:N`"),
    ({"layers": "0," * 9 + "\u00b2"}, "`layers` must be `all`, `last:N`"),
    ({"keep_ratio": None, "budget": 5000 * "9" + "%"}, "`budget` must be above 0% and at most 100%"),
    ({"keep_ratio": None, "budget": 60}, "`budget` must be above 0% and at most 100%"),
    ({"device": "gpu"}, "`device` must be cpu.* on this machine, got 'gpu'"),
    ({"device": "meta"}, "`device` must be one that computes, got 'meta'"),
    ({"device": "cuda:99"}, "`device` must be cpu.* on this machine, got 'cuda:99'"),
    ({"method": "fusion"}, "`method` must be a config of Fusion, .*, got 'fusion'"),
    ({"method": mlpfusion.Fusion}, "`method` must be a config of Fusion, .*, got <class"),
    ({"method": OUTPUT, "calibration": generator()}, "`calibration` must be a list of batches, .*, got a generator"),
    ({"method": OUTPUT, "calibration": "a text"}, "`calibration` must be a list of batches, .*, got a str"),
    ({"method": OUTPUT, "calibration": BATCH}, "`calibration` must be a list of batches, .*, got a dict"),
    ({"method": OUTPUT, "calibration": ["a text"]}, "got a str for batch 0"),
    ({"method": OUTPUT, "calibration": [BATCH, torch.ones(2, 3)]}, "got a Tensor for batch 1"),
    ({"method": OUTPUT, "calibration": [{"input_ids": [1, 2]}]}, "got a list for 'input_ids' in batch 0"),
    ({"method": OUTPUT, "calibration": []}, "`calibration` must hold at least one batch"),
    ({"method": OUTPUT, "calibration": [{"tokens": IDS}]}, "must hold batches that a BertModel takes, batch 0 is none"),
    ({"method": OUTPUT, "calibration": [{"input_ids": IDS / 2}]}, "must hold batches that a BertModel takes, batch 0"),
    ({"method": OUTPUT, "calibration": [BATCH, {"input_ids": IDS.repeat(1, 20)}]}, "takes, batch 1 is none: .* 64"),
    ({"method": OUTPUT, "calibration": [BATCH, {"input_ids": 99 * IDS}]}, "token ids from 0 to 66, got 99 to 99 for"),
    (
        {"method": OUTPUT, "calibration": [BATCH | {"attention_mask": IDS[:, :3]}]},
        r"shape .* input_ids, got \(2, 3\) for",
    ),
    (
        {"method": MATCH, "keep_ratio": None, "budget": "70%", "calibration": [{"input_ids": 99 * IDS}]},
        "token ids from 0",
    ),
    ({"architecture": "row.yaml"}, "`architecture` must be an `Architecture`, got 'row.yaml': .*read_architecture"),
    ({"progress": 3}, "`progress` must be True or a function of done, total and path, got 3"),
]


@pytest.fixture(scope="module")
def bert() -> Any:
    return pico_model("bert")


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_arguments_of_a_wrong_kind_are_refused_before_anything_is_changed(bert, changes, message):
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    arguments = {"method": mlpfusion.Fusion(), "keep_ratio": 0.25} | changes
    with pytest.raises(InputError, match=message):
        mlpfusion.compress(bert, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())


def test_what_is_no_whole_model_is_refused_with_the_cure(bert):
    wrong: list[tuple[Any, str]] = [
        ("bert-base-uncased", "got 'bert-base-uncased': load it first"),
        (bert.encoder, "got a BertEncoder: hand over the whole model"),
        (nn.Linear(2, 2), "got a Linear: hand over"),
        (None, "got a NoneType"),
    ]
    for model, message in wrong:
        with pytest.raises(InputError, match=f"`model` must be a model of transformers, {message}"):
            mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.25)
        with pytest.raises(InputError, match="`model` must be a model of transformers"):
            trace_calibration(model, sites_of(bert), [BATCH], 0)


def kinds_of(config: type) -> dict[str, type]:
    """The fields of a config that hold a number or yes or no -> their type."""
    defaults = vars(config())
    return {name: type(value) for name, value in defaults.items() if type(value) in (int, float, bool)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_the_numbers_of_every_config_are_checked_and_become_pythons_own(config):
    numpy: dict[type, Callable[[Any], Any]] = {int: np.int64, float: np.float64, bool: np.bool_}
    wrong: dict[type, tuple[Any, ...]] = {
        int: (1.5, "1", True, 10**400),
        float: ("1", True, float("nan")),
        bool: (1, "no"),
    }
    for name, kind in kinds_of(config).items():
        value = getattr(config(), name)
        taken = config(**{name: numpy[kind](value)})
        assert (getattr(taken, name), type(getattr(taken, name))) == (value, kind)
        for bad in wrong[kind]:
            with pytest.raises(InputError, match=f"`{name}` must be "):
                config(**{name: bad})


@pytest.mark.parametrize("name", ["fusion", "clustering", "folded_fusion"])
def test_restarts_without_end_are_refused_before_any_are_drawn(name):
    config = getattr(mlpfusion, name.title().replace("_", ""))
    with pytest.raises(InputError, match="`num_init` must be at most 1000, got 1000000000"):
        config(num_init=10**9)
    with pytest.raises(InputError, match="`max_iter` must be at least 1, got 0"):
        config(max_iter=0)


def test_kmeans_takes_numpys_numbers_and_no_fractions():
    points = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    numbers: tuple[Any, ...] = (4, np.int64(4))
    first, second = (kmeans(points, one, generator=torch.Generator().manual_seed(0)) for one in numbers)
    assert torch.equal(first.labels, second.labels)
    with pytest.raises(InputError, match="`num_clusters` must be a whole number, got 4.0"):
        kmeans(points, 4.0, generator=torch.Generator())  # pyright: ignore

"""Every row of the table, on a tiny model of its architecture."""

import pytest
import torch
import yaml
from pico import PICO, pico_config, pico_inputs, pico_model, pico_outputs, sites_of
from transformers import AutoConfig

from mlpfusion.checkpoint.read import empty_model
from mlpfusion.errors import InputError
from mlpfusion.mlp import forward
from mlpfusion.sites.coverage import visited_share
from mlpfusion.sites.detect import detect_architecture, find_architecture
from mlpfusion.sites.sites import base_model, find_sites, read_mlp, site_parameters
from mlpfusion.sites.table import (
    ARCHITECTURES,
    Architecture,
    Stack,
    architecture_from_dict,
    architecture_to_dict,
    read_architecture,
)

each_model = pytest.mark.parametrize("name", PICO)


def test_every_row_has_a_tiny_model():
    mixtures = {"switch_transformers"}  # tests/kinds/test_switch.py
    assert {model_type for model_type, _ in PICO.values()} | mixtures == set(ARCHITECTURES)


@each_model
def test_the_mlp_that_is_read_computes_what_the_model_computes(name):
    model = pico_model(name)
    sites = sites_of(model)
    assert len(sites) == (6 if "decoder_input_ids" in pico_inputs(name) else 3)
    for site in sites:
        seen = {}
        base = base_model(model)
        up, down = (base.get_submodule(site.module_path(part)) for part in ("up", "down"))
        hooks = [
            up.register_forward_pre_hook(lambda _m, args, seen=seen: seen.update(x=args[0])),
            down.register_forward_hook(lambda _m, _args, output, seen=seen: seen.update(y=output)),
        ]
        pico_outputs(model, name)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(forward(read_mlp(model, site), seen["x"]), seen["y"])


@each_model
def test_all_mlp_parameters_are_visited(name):
    model = pico_model(name)
    sites = sites_of(model)
    assert visited_share(model, sites) == 1.0
    counted = sum(read_mlp(model, site).num_parameters for site in sites)
    assert counted == sum(p.numel() for site in sites for p in site_parameters(base_model(model), site))


@each_model
def test_the_row_is_found_by_its_pattern_alone(name):
    model = pico_model(name)
    used = {site.stack for site in sites_of(model)}
    found = detect_architecture(model)
    assert found is not None
    assert set(found.stacks) == used


@each_model
def test_the_width_key_is_a_key_of_the_config(name):
    config = pico_config(name)
    for stack in ARCHITECTURES[config.model_type].stacks:
        assert stack.width_key in config.to_dict()


def test_an_overlooked_linear_map_shows_in_the_share():
    model = pico_model("llama")
    row = Architecture((Stack("layers.{}", "mlp.gate_proj", "mlp.down_proj", "mlp.act_fn"),))
    assert visited_share(model, find_sites(model, row)) == pytest.approx(2 / 3)


def test_a_model_without_an_mlp_is_refused_with_what_was_seen():
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=67, state_size=4)
    seen = r"found none in MambaModel, model type 'mamba': layers has mixer.in_proj 128 x 32, mixer.x_proj \d+ x 64"
    with pytest.raises(InputError, match=f"`model` must have layers with an MLP .*{seen}.*architecture FILE"):
        find_architecture(empty_model(config))


def test_a_row_that_leads_nowhere_is_refused():
    row = Architecture((Stack("layers.{}", "mlp.up", "mlp.down", "mlp.act"),))
    with pytest.raises(InputError, match=r"a layer of layers.{} must have mlp.up as `up`, none of 3 has"):
        find_sites(pico_model("llama"), row)
    with pytest.raises(InputError, match=r"`architecture` must name layers of BertModel, got layers.\{\}"):
        find_sites(pico_model("bert"), row)


def test_a_row_with_the_wrong_shapes_is_refused():
    row = Architecture((Stack("layers.{}", "mlp.down_proj", "mlp.down_proj", "mlp.act_fn"),))
    with pytest.raises(InputError, match=r"must have shape \(56, 32\)"):
        find_sites(pico_model("llama"), row)


def test_a_row_survives_its_yaml_form(tmp_path):
    for row in ARCHITECTURES.values():
        path = tmp_path / "row.yaml"
        path.write_text(yaml.safe_dump(architecture_to_dict(row)))
        assert read_architecture(path) == row


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "must have the one key `stacks`"),
        ({"stacks": []}, "must have the one key `stacks`"),
        ({"stacks": [{"layer": "h.{}"}]}, "a stack must have up, down, activation"),
        ({"stacks": [{"layer": "h.{}", "up": "a", "down": "b", "activation": "c", "x": 1}]}, r"got \['x'\]"),
        (
            {"stacks": [{"layer": "h", "up": "a", "down": "b", "activation": "c"}]},
            "`layer` of a stack must hold {} once",
        ),
        (
            {"stacks": [{"layer": "h.{}", "up": 3, "down": "b", "activation": "c"}]},
            "`up` of a stack must be text, got 3",
        ),
    ],
)
def test_a_malformed_row_names_what_is_wrong(data, message):
    with pytest.raises(InputError, match=message):
        architecture_from_dict(data)


def test_a_row_file_that_is_missing_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(InputError, match="`architecture` must be a readable YAML file"):
        read_architecture(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="`architecture` must be a readable YAML file"):
        read_architecture(tmp_path / "bad.yaml")

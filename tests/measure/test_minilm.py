"""Figures that were measured on the real checkpoint and real sentences by other code, before this package."""

import pytest
import torch
from blocks import narrow
from transformers import AutoModel

from mlpfusion.checkpoint.tokenizer import token_batches
from mlpfusion.data.files.text import read_texts
from mlpfusion.measure.output_error import output_error
from mlpfusion.methods.data_free.neuron_pruning import NeuronPruning
from mlpfusion.mlp import forward
from mlpfusion.sites.sites import find_sites, read_mlp
from mlpfusion.sites.table import ARCHITECTURES
from mlpfusion.sites.traces import mlp_inputs

PRUNING_ERRORS = {1: 0.539, 2: 0.427, 3: 0.634, 4: 0.484, 5: 0.418}  # layer: at 384 of 1,536 neurons, 48 sentences


def test_the_output_error_of_neuron_pruning_on_sst2_is_the_known_one(minilm, evaluation_data):
    data = evaluation_data / "glue" / "SST-2" / "validation.jsonl.gz"
    batches = token_batches(minilm, read_texts(data, column="sentence", max_samples=48))
    model = AutoModel.from_pretrained(minilm).eval()
    sites = find_sites(model, ARCHITECTURES["bert"])
    inputs = mlp_inputs(model, sites, batches)
    for site in sites:
        if site.layer in PRUNING_ERRORS:
            mlp = read_mlp(model, site)
            small = narrow(mlp, 384, NeuronPruning(), torch.Generator()).mlp
            x = inputs[site.path]
            error = output_error(forward(mlp, x), forward(small, x)).relative
            assert error == pytest.approx(PRUNING_ERRORS[site.layer], abs=6e-4)

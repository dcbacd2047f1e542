"""Calibrates blocks without data: normal random numbers go through the norm in front of a block."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.kernel.trace import BlockTrace, random_trace
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.seeds import site_generator
from mlpfusion.sites.recording import eval_mode, hooks
from mlpfusion.sites.sites import Site, base_model, read_mlp
from mlpfusion.sites.traces import watch_sites

# What is drawn for every block: about as many tokens as 256 sentences have.
NUM_SAMPLES, NUM_TOKENS = 256, 24


def data_free_calibration(model: PreTrainedModel, sites: Sequence[Site], seed: int) -> Callable[[Site], Calibration]:
    """Returns a function from a site to a calibration drawn from its norm.

    The inputs are norm(g) with standard normal g: a LayerNorm of weight w and bias b gives b + w * g, every token of g
    with mean 0 and variance 1, an RMSNorm w * g with a root mean square of 1. `NUM_SAMPLES` samples of `NUM_TOKENS`
    tokens, with standard normal cotangents, drawn by the generator of the site. Raises `InputError` for a site without
    such a norm.
    """
    norms = feeding_norms(model, sites)

    def calibrate(site: Site) -> Calibration:
        generator = site_generator(seed, f"{site.path} calibration")
        return Calibration(norm_trace(norms[site.path], read_mlp(model, site).up, generator))

    return calibrate


@torch.no_grad()
def norm_trace(norm: nn.Module, like: Tensor, generator: torch.Generator) -> BlockTrace:
    """Draws a trace: `norm` of standard normal tokens, with standard normal cotangents.

    The tokens have the length of the rows of `like`; its device, in fp32 or better.
    """
    compute = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.randn(NUM_SAMPLES * NUM_TOKENS, like.shape[1], generator=generator, dtype=compute)
    inputs = copy.deepcopy(norm).to(compute)(drawn.to(like.device))
    lengths = torch.full((NUM_SAMPLES,), NUM_TOKENS, device=like.device)
    return random_trace(inputs, lengths, generator)


@torch.no_grad()
def feeding_norms(model: PreTrainedModel, sites: Sequence[Site]) -> dict[str, nn.Module]:
    """Finds the norm in front of every MLP, by the path of its site.

    The output of that norm is the input of the MLP, bit for bit, in a forward pass on dummy inputs. Raises `InputError`
    for a site without one, as in models with their norms after the MLP.
    """
    norms: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _args: Any, output: Tensor) -> None:
        norms.append((module, output))

    modules = [module for module in model.modules() if "Norm" in type(module).__name__]
    with hooks() as handles:
        handles += [module.register_forward_hook(keep) for module in modules]
        with eval_mode(model), watch_sites(model, sites) as seen:
            base_model(model)(**dummy_inputs(model))
    pairs = zip(sites, seen, strict=True)
    return {site.path: _norm_with_output(norms, one.inputs[0], site) for site, one in pairs}


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns inputs for any model: transformers' dummy ids, or two random images."""
    if model.main_input_name != "pixel_values":
        return {name: tensor.to(model.device) for name, tensor in model.dummy_inputs.items()}
    size, channels = model.config.image_size, model.config.num_channels
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": images.to(model.device, model.dtype)}


def _norm_with_output(norms: Sequence[tuple[nn.Module, Tensor]], inputs: Tensor, site: Site) -> nn.Module:
    for norm, output in norms:
        if output.numel() == inputs.numel() and torch.equal(output.reshape(inputs.shape), inputs):
            return norm
    raise InputError(
        f"`data_free` must be left out where no normalisation feeds the MLP, as at {site.path}; give `calibration`"
    )

"""The router of MoEfication: a small MLP, from a token to a score for each expert."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from mlpfusion.mlp import MLP

_CHUNK_TOKENS = 4096  # activations of 3,072 neurons in fp32: 50 MB; not tuned


@dataclass(frozen=True)
class Router:
    """Scores router_out tanh(router_in x), and their quality on held-out tokens.

    `accuracy` is the share of tokens with the best expert among those selected, `captured` the
    selected experts' share of the score of the best ones, `epoch` the epoch of the weights.
    """

    router_in: Float[Tensor, "experts hidden"]
    router_out: Float[Tensor, "experts experts"]
    accuracy: float
    captured: float
    epoch: int


def expert_scores(
    mlp: MLP, inputs: Float[Tensor, "tokens hidden"], num_experts: int
) -> Float[Tensor, "tokens experts"]:
    """g_e(x) = sum of relu(act(z)) over the neurons of expert e; z = `gate` x, or `up` x.

    The neurons of an expert stand side by side. For act = ReLU this is the label of the paper.

    >>> expert_scores(MLP(torch.eye(4), torch.eye(4), torch.relu), torch.ones(1, 4), 2).tolist()
    [[2.0, 2.0]]
    """
    weight, bias = (mlp.up, mlp.up_bias) if mlp.gate is None else (mlp.gate, mlp.gate_bias)
    parts = [relu(mlp.activation(linear(part, weight, bias))) for part in inputs.split(_CHUNK_TOKENS)]
    return torch.cat([part.unflatten(1, (num_experts, -1)).sum(2) for part in parts])


def train_router(
    inputs: Float[Tensor, "tokens hidden"],
    scores: Float[Tensor, "tokens experts"],
    centres: Float[Tensor, "experts hidden"],
    num_selected: int,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> Router:
    """Trains a router by Adam on the binary cross-entropy to scores / largest score of the token.

    Starts from the centres of the experts and the identity. A tenth of the tokens is held out; the
    weights of the epoch with the smallest held-out loss are returned. Epoch 0 is the start.
    """
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    num_held_out = max(1, len(inputs) // 10)
    held_out, train = order[:num_held_out], order[num_held_out:]
    targets = scores / scores.max(1, keepdim=True).values.clamp_min(torch.finfo(scores.dtype).tiny)
    weights = [centres.clone().requires_grad_(), torch.eye(len(centres)).to(centres).requires_grad_()]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    best, kept, chosen = float("inf"), [w.detach().clone() for w in weights], 0
    for epoch in range(epochs + 1):
        batches = train[torch.randperm(len(train), generator=generator).to(train.device)].split(batch_size)
        for batch in batches if epoch else ():
            optimizer.zero_grad()
            _loss(weights, inputs[batch], targets[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(_loss(weights, inputs[held_out], targets[held_out]))
        if loss < best:
            best, kept, chosen = loss, [w.detach().clone() for w in weights], epoch
    accuracy, captured = _quality(kept, inputs[held_out], scores[held_out], num_selected)
    return Router(kept[0], kept[1], accuracy, captured, chosen)


def _logits(weights: list[Tensor], inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ weights[0].T) @ weights[1].T


def _loss(weights: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(_logits(weights, inputs), targets)


@torch.no_grad()
def _quality(weights: list[Tensor], inputs: Tensor, scores: Tensor, num_selected: int) -> tuple[float, float]:
    chosen = _logits(weights, inputs).topk(num_selected, dim=1).indices
    best = scores.topk(num_selected, dim=1)
    hits = (chosen[:, :, None] == best.indices[:, None, :1]).any(1)
    return float(hits.double().mean()), float(scores.gather(1, chosen).sum() / best.values.sum().clamp_min(1e-30))

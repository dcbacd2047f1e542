"""A linear map in front of an activation, the neurons behind it grouped into experts that a router chooses."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class RoutedLinear(nn.Module):
    """`linear(x)`, 0 at the neurons of the experts that the router does not choose for a token.

    What follows is an activation with act(0) = 0, so these neurons contribute nothing, and get no gradient. They are
    computed all the same: this is a mask, it saves no time. Experts are runs of neighbouring neurons of one size; where
    the map holds a second half that does not go through the activation (gate | up), `num_neurons` is the first.

    The scores of the experts are R_out tanh(R_in x), always in fp32; the `num_selected` highest compute, of equal ones
    the first. The router is constant: two buffers with the bits of fp32 numbers as int32, which no change of dtype
    touches, so in a model that is loaded in bf16 its numbers are exact, and only x is rounded.

    The buffer `weight` holds the number of chosen experts (0 in files that older versions wrote). It makes transformers
    without this package fail on its shape, where it would run all experts.
    """

    weight: Int[Tensor, " 1"]
    router_in_bits: Int[Tensor, "experts hidden"]
    router_out_bits: Int[Tensor, "experts experts"]

    def __init__(self, linear: nn.Module, num_neurons: int, hidden_size: int, num_experts: int, num_selected: int):
        super().__init__()
        assert num_neurons % num_experts == 0
        self.linear, self.num_neurons, self.num_selected = linear, num_neurons, num_selected
        like = next(linear.parameters())
        self.register_buffer("weight", torch.full((1,), num_selected, dtype=torch.int32, device=like.device))
        for name, columns in (("router_in_bits", hidden_size), ("router_out_bits", num_experts)):
            self.register_buffer(name, torch.zeros(num_experts, columns, dtype=torch.int32, device=like.device))

    @property
    def num_experts(self) -> int:
        return len(self.router_in_bits)

    @property
    def router_in(self) -> Float[Tensor, "experts hidden"]:
        return self.router_in_bits.view(torch.float32)

    @property
    def router_out(self) -> Float[Tensor, "experts experts"]:
        return self.router_out_bits.view(torch.float32)

    def set_router(
        self, router_in: Float[Tensor, "experts hidden"], router_out: Float[Tensor, "experts experts"]
    ) -> None:
        """Copies the router, rounded to fp32."""
        for bits, values in ((self.router_in_bits, router_in), (self.router_out_bits, router_out)):
            bits.copy_(values.to(torch.float32).contiguous().view(torch.int32))

    def scores(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch experts"]:
        """The scores of the experts, in fp32, under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.tanh(x.detach().float() @ self.router_in.T) @ self.router_out.T

    def selected(self, x: Float[Tensor, "*batch hidden"]) -> Bool[Tensor, "*batch experts"]:
        """Which experts compute."""
        order = self.scores(x).argsort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros(order.shape, dtype=torch.bool, device=x.device)
        return chosen.scatter_(-1, order[..., : self.num_selected], True)

    def forward(self, x: Tensor) -> Tensor:
        neurons = self.selected(x).repeat_interleave(self.num_neurons // self.num_experts, dim=-1)
        outputs = self.linear(x)
        first = torch.where(neurons, outputs[..., : self.num_neurons], 0.0)
        rest = outputs[..., self.num_neurons :]
        return first if rest.shape[-1] == 0 else torch.cat([first, rest], dim=-1)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, num_selected={self.num_selected}"

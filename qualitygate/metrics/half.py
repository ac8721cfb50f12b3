"""Layers in half precision: float16 factors, float32 sums, parameters converted once.

A converted layer takes numbers of any type, rounds them to float16, multiplies on the GPU's matrix units and gives
float16. What lies between converted layers computes in the type that it is given: a residual stream in float32 stays
one, because float32 + float16 is float32. Half precision reaches 65504: scale factors before their product.

On a CPU, where float16 products are many times slower than others, the main roundings are applied to float32
numbers: operands are what they would be on a GPU, sums are float32, also the few that a GPU carries in float16. This is
how tests and `verify --device cpu` foresee what a GPU will give. Everything here needs torch.

Suffixes: N photographs or crops, C channels, H and W pixels.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

LARGEST = 65504.0


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x to float16's numbers: as float16 on a GPU, as float32 on a CPU."""
    return x.half() if x.is_cuda else x.half().float()


class HalfLinear(nn.Linear):
    """A linear layer in half precision: (..., inputs) of any type -> (..., outputs)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return rounded(functional.linear(rounded(input), self.weight, self.bias))


class HalfConv2d(nn.Conv2d):
    """A convolution in half precision: (N, C, H, W) of any type -> (N, C', H', W')."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return rounded(self._conv_forward(rounded(input), self.weight, self.bias))


class HalfGroupNorm(nn.GroupNorm):
    """A group norm of half precision's numbers; its means and deviations are float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return rounded(functional.group_norm(rounded(input), self.num_groups, self.weight, self.bias, self.eps))


_HALVED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HalfLinear,
    nn.Conv2d: HalfConv2d,
    nn.GroupNorm: HalfGroupNorm,
}


def convert(network: nn.Module, *, keep: Callable[[str], bool] = lambda _: False) -> None:
    """Make the plain linear layers, convolutions and group norms of a network half ones; `keep` spares by name.

    The network must be where it is going to compute: on a GPU its parameters become float16. Once converted it can
    only compute in half precision.
    """
    for name, module in list(network.named_modules()):
        halved = _HALVED.get(type(module))
        if halved is None or keep(name):
            continue
        # The same attributes under another forward.
        module.__class__ = halved
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(within_reach(parameter), requires_grad=False))


def within_reach(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter rounded. Beyond float16 it is its largest number: a wrong score shows in `verify`, NaN nowhere."""
    return rounded(parameter.detach().clamp(-LARGEST, LARGEST))

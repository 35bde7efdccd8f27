"""What the Echo tests share: inputs, and the oracle's results and gradients in float64."""

import torch

from echo_ext import reference

SAMPLINGS = ("permutation", "replacement", "ring")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Largest error beside the largest value: the contract's for wide types, a rounding of the result for half types.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}

DEVICES = ("cpu", "cuda")


def signal_and_scale(shape, dtype=torch.float64, largest_scale=0.9, device="cpu"):
    f = torch.randn(shape, dtype=torch.float64).tanh().to(device, dtype)
    s = (largest_scale * torch.rand(shape, dtype=torch.float64)).to(device, dtype)
    return f.requires_grad_(), s.requires_grad_()


def relative_error(actual, expected):
    """The largest difference beside the largest expected value."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    difference = (actual - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def results(function, tensors, weights):
    """The function's value and the gradients of its weighted sum."""
    value = function(*tensors)
    return (value, *torch.autograd.grad((value * weights.to(value)).sum(), tensors))


def oracle(name, tensors, indices, weights, *, with_bank):
    """The same in float64 by the plain definition, on given draws."""
    wide = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    function = getattr(reference, name)
    indices = indices.cpu()
    if with_bank:
        return results(lambda f, s, bf, bs: function(f, s, indices, bank=(bf, bs)), wide, weights)
    return results(lambda f, s: function(f, s, indices), wide, weights)

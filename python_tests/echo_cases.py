"""Shared helpers of the Echo tests: random inputs, and float64 results and gradients of the reference (the oracle)."""

import torch

import echo_ext
from echo_ext import reference

SAMPLINGS = ("permutation", "replacement", "ring")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Maximum error relative to the largest value; for half-precision types, one rounding of the result.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def signal_and_scale(shape, dtype=torch.float64, largest_scale=0.9, device="cpu"):
    f = torch.randn(shape, dtype=torch.float64).tanh().to(device, dtype)
    s = (largest_scale * torch.rand(shape, dtype=torch.float64)).to(device, dtype)
    return f.requires_grad_(), s.requires_grad_()


def relative_error(actual, expected):
    """Return the largest difference relative to the largest expected value."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    difference = (actual - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def results(function, tensors, weights):
    """Return the value of the function and the gradients of its weighted sum."""
    value = function(*tensors)
    return (value, *torch.autograd.grad((value * weights.to(value)).sum(), tensors))


def oracle(name, tensors, indices, weights, *, with_bank):
    """Return the results of the reference implementation in float64 for the given draws."""
    wide = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    function = getattr(reference, name)
    indices = indices.cpu()
    if with_bank:
        return results(lambda f, s, bf, bs: function(f, s, indices, bank=(bf, bs)), wide, weights)
    return results(lambda f, s: function(f, s, indices), wide, weights)


def check_against_oracle(device, shape, dtype, sampling, num_terms, largest_scale, *, bank_rows=None, size=None):
    """Compare echo_sample and echo_noise, forward and backward, with the reference on the draws of echo_indices."""
    tensors = signal_and_scale(shape, dtype, largest_scale, device)
    if bank_rows is not None:
        tensors += signal_and_scale((bank_rows, *shape[1:]), dtype, largest_scale, device)
    seed = int(torch.randint(2**62, ()))
    rows = shape[0] if size is None else size
    indices = echo_ext.echo_indices(
        rows, num_terms=num_terms, sampling=sampling, seed=seed, bank_size=bank_rows, device=device
    )
    options = {"num_terms": num_terms, "sampling": sampling, "seed": seed}
    weights = torch.randn((rows, *shape[1:]), dtype=torch.float64).to(dtype).double()

    for name in ("echo_sample", "echo_noise"):
        if size is not None and name == "echo_sample":
            continue
        used = tensors if name == "echo_sample" or bank_rows is None else tensors[2:]

        def call(*arguments, name=name):
            if bank_rows is None:
                return getattr(echo_ext, name)(*arguments, **options)
            if name == "echo_sample":
                f, s, *bank = arguments
                return echo_ext.echo_sample(f, s, bank=bank, **options)
            f, s = tensors[:2]
            return echo_ext.echo_noise(f, s, bank=arguments, size=size, **options)

        actual = results(call, used, weights)
        if bank_rows is None or name == "echo_sample":
            expected = oracle(name, used, indices, weights, with_bank=bank_rows is not None)
        else:  # noise drawn from a bank depends only on the bank
            expected = oracle(name, used, indices, weights, with_bank=False)
        for what, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):  # the value, then the gradients
            assert ours.dtype == dtype
            assert relative_error(ours, theirs) < TOLERANCE[dtype], (name, what)

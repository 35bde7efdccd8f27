"""NaN, and scales of 1 at which no row can stop early, on a GPU.

`benchmarks/gpu_check.sh` runs them in a process of their own, since a kernel that does not return ends its process.
"""

import functools

import pytest
import torch
from device_cases import inputs, on_devices, run
from echo_cases import SAMPLINGS

import echo_ext

SIZES = on_devices("shape", cpu=[(256, 8)], cuda=[(2**14, 64)])


@SIZES
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("num_terms", [40, None])
def test_nan_reaches_exactly_the_noises_that_multiply_by_it(device, shape, sampling, num_terms):
    rows, width = shape
    sick_row, sick = rows // 2, width // 2
    f, s = inputs(device, shape, largest_scale=0.9, flat=True)
    with torch.no_grad():
        s[sick_row, sick] = torch.nan
    options = {"sampling": sampling, "seed": int(torch.randint(2**62, ()))}
    value = run(functools.partial(echo_ext.echo_sample, num_terms=num_terms, **options), (f, s), torch.ones_like(f))[0]
    healthy = [column for column in range(width) if column != sick]
    assert value[:, healthy].isfinite().all()
    # The last term's own s is not used; of the terms before it, these are drawn while the weight is still visible.
    used = 100 if num_terms is None else num_terms - 1
    must_be_nan = (echo_ext.echo_indices(rows, num_terms=used, device=device, **options) == sick_row).any(1)
    must_be_nan[sick_row] = True
    is_nan = value[:, sick].isnan()
    if num_terms is None:  # later terms may be left out or not, as their weight is invisible
        is_nan = is_nan & must_be_nan
    assert torch.equal(is_nan, must_be_nan)


@SIZES
@pytest.mark.parametrize("sampling", ["permutation", "ring"])  # replacement draws some rows twice, others not at all
def test_scale_of_one_adds_up_all_rows_once(device, shape, sampling):
    """The noise of that column never becomes invisible."""
    f, s = inputs(device, shape)
    with torch.no_grad():
        s[:, 0] = 1
    value = run(functools.partial(echo_ext.echo_sample, sampling=sampling), (f, s), torch.ones_like(f))[0]
    column = f.detach()[:, 0].double()
    error = (value[:, 0].double() - column.sum()).abs().max() / column.abs().sum()
    assert error <= 1e-5
    assert value.isfinite().all()

"""The recurrence over the rows of one process: values, the adjoint, and the registered ops."""

import pytest
import torch
from echo_cases import TOLERANCE, relative_error, signal_and_scale
from test_engines import check_op

from echo_ext.echo.scan import CHUNK_ROWS, Composition, scan, scan_backward

OPS = torch.ops.echo_ext


def is_near(actual, expected, tolerance):
    """Compared with values around 1, because single sums may cancel."""
    return (actual.double() - expected).abs().max() <= tolerance * (1 + expected.abs().max())


@pytest.mark.parametrize(
    ("rows", "width"),
    [
        *((1, 1), (2, 3), (7, 16), (65, 33), (40, 130)),
        *((CHUNK_ROWS, 2), (CHUNK_ROWS + 1, 3), (5 * CHUNK_ROWS - 1, 17), (CHUNK_ROWS**2 + 200, 2)),
    ],
)
def test_the_scan_solves_the_recurrence(rows, width):
    f, s = (t.detach() for t in signal_and_scale((rows, width), largest_scale=1.5))
    entry, order = torch.randn(width, dtype=torch.float64), torch.randperm(rows)
    composition = Composition(order, f, s)
    z = scan(order, f, s, entry, composition)
    behind = torch.cat([z[order][1:], entry.unsqueeze(0)])
    assert relative_error(z[order], f[order] + s[order] * behind) < 1e-13
    constant, scale = composition.total
    assert relative_error(constant + scale * entry, z[order[0]]) < 1e-13


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 3), (7, 16), (65, 33), (3 * CHUNK_ROWS + 7, 5)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_adjoint_is_the_gradient(rows, width, dtype):
    """Autograd through the recurrence, where the last z is handed on too."""
    f, s = signal_and_scale((rows, width), dtype, 0.99)
    order, grad = torch.randperm(rows), torch.randn(rows, width).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    entry, entry_back = torch.randn(2, width).to(wide)
    leaves = [t.detach().double().requires_grad_() for t in (f, s, entry)]
    z, rows_of_z = leaves[2], {}
    for row in order.flip(0).tolist():
        z = leaves[0][row] + leaves[1][row] * z
        rows_of_z[row] = z
    every = torch.stack([rows_of_z[row] for row in range(rows)])
    ((every * grad).sum() + (z * entry_back).sum()).backward()
    actual = scan(order, f.detach(), s.detach(), entry, Composition(order, f.detach(), s.detach()))
    assert is_near(actual, every, TOLERANCE[wide])
    composition = Composition(order, grad, s.detach(), backward=True)
    constant, scale = composition.total
    assert is_near(constant + scale * entry_back, leaves[2].grad, TOLERANCE[wide])
    gradients = scan_backward(order, s.detach(), grad, actual, entry, entry_back, composition)
    for ours, theirs in zip(gradients, leaves, strict=False):
        assert ours.dtype == dtype
        assert is_near(ours, theirs.grad, TOLERANCE[dtype])


def test_no_rows_compose_to_the_identity():
    empty, order = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    composition = Composition(order, empty, empty)
    constant, scale = composition.total
    assert torch.equal(constant, torch.zeros(3))
    assert torch.equal(scale, torch.ones(3))
    assert scan(order, empty, empty, torch.ones(3), composition).shape == (0, 3)


def rows_of(count, width=3, dtype=torch.float32):
    f, s = signal_and_scale((count, width), dtype)
    return torch.randperm(count), f.detach(), s.detach()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [0, 1, 5, CHUNK_ROWS + 1])
def test_the_ops_are_the_functions(rows, dtype):
    order, f, s = rows_of(rows, dtype=dtype)
    entry = torch.randn(3).to(torch.promote_types(dtype, torch.float32))
    composition = Composition(order, f, s)
    assert torch.equal(OPS.echo_scan_compose(order, f, s, False), composition.levels[0])
    z = OPS.echo_scan(order, f, s, composition.entries(entry))
    assert torch.equal(z, scan(order, f, s, entry, composition))
    adjoint = Composition(order, f, s, backward=True)
    ours = OPS.echo_scan_backward(order, s, f, z, entry, adjoint.entries(entry))
    for gradient, expected in zip(ours, scan_backward(order, s, f, z, entry, entry, adjoint), strict=True):
        assert torch.equal(gradient, expected)


def test_the_ops_read_any_strides():
    order, f, s = rows_of(8)
    apart = torch.stack([order, order], 1)[:, 0]
    assert torch.equal(
        OPS.echo_scan_compose(apart, f.mT.contiguous().mT, s, True), Composition(order, f, s, backward=True).levels[0]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_opcheck(dtype):
    order, f, s = rows_of(7, dtype=dtype)
    entries = torch.randn(1, 3, dtype=dtype)
    check_op(OPS.echo_scan_compose, (order, f, s, True))
    check_op(OPS.echo_scan, (order, f, s, entries))
    check_op(OPS.echo_scan_backward, (order, s, f, f, entries[0], entries))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(order=torch.arange(6).int()), ValueError, "order must be int64 of shape"),
        (
            dict(order=torch.arange(5)),
            ValueError,
            r"order must be int64 of shape \(6,\) on cpu, got int64 of shape \(5,\)",
        ),
        (dict(order=torch.arange(1, 7)), RuntimeError, "order must hold numbers of rows"),
        (dict(order=torch.arange(6) - 1), RuntimeError, "order must hold numbers of rows"),
        (dict(f=torch.zeros(6, 2)), ValueError, "f and s must have the same shape"),
        (dict(f=torch.zeros(6, 3).double()), TypeError, "f and s must have the same dtype"),
        (dict(f=torch.zeros(6), s=torch.zeros(6)), ValueError, r"s must have shape \(B, d\), got \(6,\)"),
        (dict(entries=torch.zeros(2, 3)), ValueError, r"entries must be float32 of shape \(1, 3\)"),
        (dict(entries=torch.zeros(1, 3).double()), ValueError, "entries must be float32"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message, inference):
    order, f, s = rows_of(6)
    arguments = dict(order=order, f=f, s=s, entries=torch.zeros(1, 3)) | changes
    with torch.inference_mode(inference), pytest.raises(error, match=message):
        OPS.echo_scan(*arguments.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(z=torch.zeros(5, 3)), "z must be float32 of shape"),
        (dict(entry=torch.zeros(2)), "entry must be float32 of shape"),
        (dict(entries_back=torch.zeros(3)), "entries_back must be float32 of shape"),
        (dict(grad=torch.zeros(5, 3)), "grad and s must have the same shape"),
    ],
)
def test_wrong_gradients_are_refused(changes, message):
    order, f, s = rows_of(6)
    arguments = dict(order=order, s=s, grad=f, z=f, entry=torch.zeros(3), entries_back=torch.zeros(1, 3)) | changes
    with pytest.raises(ValueError, match=message):
        OPS.echo_scan_backward(*arguments.values())

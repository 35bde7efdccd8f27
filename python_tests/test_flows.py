"""The autoregressive order, the volume and the inverse of the flows."""

import pytest
import torch

from echo_ext.models.flows import MADE, ShiftFlow


def jacobian(function, point):
    return torch.autograd.functional.jacobian(lambda z: function(z[None])[0], point)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_made_depends_only_on_earlier_inputs(dim):
    made = MADE(dim, (31, 17)).double()
    slopes = jacobian(made, torch.randn(dim, dtype=torch.float64))
    assert torch.equal(slopes, slopes.tril(-1))
    if dim > 1:  # every earlier input has an effect
        many = torch.stack([jacobian(made, torch.randn(dim, dtype=torch.float64)) for _ in range(8)]).abs().amax(0)
        assert (many[tuple(torch.tril_indices(dim, dim, -1))] > 0).all()


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_preserves_volume_and_inverts(dim, steps):
    flow = ShiftFlow(dim, steps, (24, 24)).double()
    z = torch.randn(7, dim, dtype=torch.float64)
    for point in z:
        determinant = torch.linalg.det(jacobian(flow, point))
        torch.testing.assert_close(determinant.abs(), torch.ones_like(determinant), rtol=0, atol=1e-12)
        # The Jacobians of forward and inverse are inverse matrices too.
        product = jacobian(flow, point) @ jacobian(flow.inverse, flow(point[None])[0])
        torch.testing.assert_close(product, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(flow.inverse(flow(z)), z, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow(flow.inverse(z)), z, rtol=0, atol=1e-12)


def test_flow_outputs_depend_on_every_input():
    flow = ShiftFlow(4, 4, (64, 64)).double()
    slopes = torch.stack([jacobian(flow, torch.randn(4, dtype=torch.float64)) for _ in range(8)]).abs().amax(0)
    assert (slopes > 0).all()


def test_bad_step_counts_raise():
    with pytest.raises(ValueError, match="flow_steps must be at least 1, got 0"):
        ShiftFlow(3, 0)

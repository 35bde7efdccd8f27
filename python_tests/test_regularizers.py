"""The MMD against its definition and a closed form, and the discriminator against a known total correlation."""

import math

import pytest
import torch

from echo_ext.models.regularizers import TCDiscriminator, mmd, mmd_to_standard_normal, permute_dimensions


def test_mmd_by_definition():
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def kernel(a, b):
        return sum(math.exp(-float((u - v).square().sum()) / 9) for u in a for v in b) / (len(a) * len(b))

    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert mmd(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_mmd_is_zero_only_for_equal_samples():
    x = torch.randn(50, 4, dtype=torch.float64)
    assert abs(mmd(x, x[torch.randperm(50)]).item()) < 1e-14
    assert mmd(x, x + 0.5).item() > 1e-3


def test_mmd_of_shifted_gaussians_in_closed_form():
    # For N(0, I) and N(shift, I): 2 c^d (1 - exp(-|shift|^2 / (2 (h^2 + 2)))), c = h / sqrt(h^2 + 2).
    dim, bandwidth, rows = 2, 1.5, 1500
    shift = torch.tensor([1.0, -0.5], dtype=torch.float64)
    spread = bandwidth**2 + 2
    height = (bandwidth**2 / spread) ** (dim / 2)
    expected = 2 * height * (1 - math.exp(-float(shift.square().sum()) / (2 * spread)))
    x = torch.randn(rows, dim, dtype=torch.float64)
    found = mmd_to_standard_normal(x + shift, bandwidth=bandwidth).item()
    bias = 2 * (1 - height) / rows  # a V-statistic also counts the pairs of a row with itself
    assert found - bias == pytest.approx(expected, abs=0.055)  # six standard deviations


def test_default_bandwidth_is_the_echo_papers():
    x, y = torch.randn(9, 32), torch.randn(9, 32)
    torch.testing.assert_close(mmd(x, y), mmd(x, y, bandwidth=32 / math.sqrt(2)))
    with pytest.raises(ValueError, match=r"bandwidth must be a finite number above 0, got -1\.0"):
        mmd(x, y, bandwidth=-1.0)


def test_permute_dimensions_keeps_the_values_of_each_column():
    z = torch.randn(200, 3)
    permuted = permute_dimensions(z)
    assert torch.equal(permuted.sort(0).values, z.sort(0).values)
    assert not any(torch.equal(permuted[:, j], z[:, j]) for j in range(3))


def test_discriminator_losses_have_separate_gradients():
    network = TCDiscriminator(3, width=16, depth=2)
    z = torch.randn(20, 3, requires_grad=True)
    network.total_correlation(z).backward()
    assert z.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())
    z.grad = None
    network.loss(z).backward()
    assert z.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_discriminator_layers_are_the_papers():
    sizes = [(layer.in_features, layer.out_features) for layer in TCDiscriminator(10).layers if hasattr(layer, "bias")]
    assert sizes == [(10, 1000), *[(1000, 1000)] * 5, (1000, 2)]
    assert all(
        layer.negative_slope == 0.2 for layer in TCDiscriminator(10, width=4).layers if not hasattr(layer, "bias")
    )


def test_discriminator_estimates_gaussian_total_correlation():
    correlation = 0.8
    truth = -0.5 * math.log(1 - correlation**2)  # 0.511 nats
    mixing = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]))
    network = TCDiscriminator(2, width=64, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(600):
        optimizer.zero_grad()
        network.loss(torch.randn(1000, 2) @ mixing.T).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.total_correlation(torch.randn(20_000, 2) @ mixing.T).item()
        none = network.loss(torch.randn(20_000, 2) @ mixing.T).item()
    assert found == pytest.approx(truth, abs=0.12)
    assert none < math.log(2) - 0.05  # better than chance


def test_discriminator_accepts_a_single_row():
    assert math.isfinite(TCDiscriminator(3, width=8, depth=1).loss(torch.randn(1, 3)).item())

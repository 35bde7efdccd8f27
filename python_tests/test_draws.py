"""The rows that each noise draws: uniform permutations, never the row itself, reproducible for a seed."""

import itertools
import math

import pytest
import torch
from echo_cases import SAMPLINGS

import echo_ext


def chi_square_score(counts, expected):
    """Return by how many standard deviations the chi-square statistic exceeds its mean."""
    counts = counts.double()
    degrees_of_freedom = counts.numel() - 1
    return float((((counts - expected) ** 2).sum() / expected - degrees_of_freedom) / math.sqrt(2 * degrees_of_freedom))


@pytest.mark.parametrize("batch_size", [2, 3, 5, 17, 64, 65, 66, 100, 257])
def test_draws_without_replacement_are_permutations(batch_size):
    for sampling in ("permutation", "ring"):
        indices = echo_ext.echo_indices(batch_size, sampling=sampling, seed=int(torch.randint(2**62, ())))
        assert indices.shape == (batch_size, batch_size - 1)
        assert indices.dtype == torch.int64
        all_rows = torch.arange(batch_size)
        with_self = torch.cat([indices, all_rows[:, None]], dim=1)
        assert torch.equal(with_self.sort(dim=1).values, all_rows.expand(batch_size, -1))


@pytest.mark.parametrize("bank_size", [1, 2, 7, 90])
@pytest.mark.parametrize("sampling", ["permutation", "ring"])
def test_bank_draws_are_permutations(sampling, bank_size):
    indices = echo_ext.echo_indices(3 * bank_size + 1, sampling=sampling, seed=1, bank_size=bank_size)
    assert torch.equal(indices.sort(dim=1).values, torch.arange(bank_size).expand(3 * bank_size + 1, -1))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_fewer_terms_are_a_prefix(sampling):
    whole = echo_ext.echo_indices(80, sampling=sampling, seed=2)
    assert torch.equal(echo_ext.echo_indices(80, num_terms=13, sampling=sampling, seed=2), whole[:, :13])


def test_ring_is_one_cycle():
    """The second draw of every row is the first draw of the row it draws first."""
    indices = echo_ext.echo_indices(50, sampling="ring", seed=3)
    assert torch.equal(indices[:, 1], indices[indices[:, 0], 0])
    assert torch.equal(indices[:, 0].sort().values, torch.arange(50))


@pytest.mark.parametrize("batch_size", [4, 5, 6])
@pytest.mark.parametrize("sampling", ["permutation", "ring"])
def test_all_permutations_are_equally_likely(batch_size, sampling):
    """A chi-square test over all permutations of the other rows, pooled over rows and seeds."""
    orderings = list(itertools.permutations(range(batch_size - 1)))
    position = {ordering: i for i, ordering in enumerate(orderings)}
    counts = torch.zeros(len(orderings))
    start = int(torch.randint(2**40, ()))
    seeds = 300 * len(orderings) // (batch_size if sampling == "permutation" else 1)
    for seed in range(start, start + seeds):
        indices = echo_ext.echo_indices(batch_size, sampling=sampling, seed=seed)
        indices = indices - (indices > torch.arange(batch_size)[:, None]).long()
        rows = (
            indices.tolist() if sampling == "permutation" else indices[:1].tolist()
        )  # the rows of a ring are dependent
        for row in rows:
            counts[position[tuple(row)]] += 1
    assert abs(chi_square_score(counts, counts.sum() / len(orderings))) < 6


@pytest.mark.parametrize("batch_size", [24, 65, 100])
@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_pairs_of_terms_are_uniform(batch_size, sampling):
    """Over many rows of one seed, two terms of a row are uniform over all pairs of bank rows."""
    rows = 20 * batch_size**2
    seed = int(torch.randint(2**62, ()))
    draws = echo_ext.echo_indices(rows, num_terms=9, sampling=sampling, seed=seed, bank_size=batch_size)
    for first, second in [(0, 1), (1, 7), (0, 8)]:
        counts = torch.bincount(draws[:, first] * batch_size + draws[:, second], minlength=batch_size**2)
        if sampling == "permutation":
            different = ~torch.eye(batch_size, dtype=torch.bool).flatten()
            assert counts[~different].sum() == 0
            counts = counts[different]
        assert abs(chi_square_score(counts, rows / counts.numel())) < 6


def test_rows_and_seeds_are_independent():
    """Terms of adjacent rows and of adjacent seeds coincide no more often than by chance."""
    count, bank = 200_000, 50
    first = echo_ext.echo_indices(count, num_terms=2, seed=100, bank_size=bank)
    second = echo_ext.echo_indices(count, num_terms=2, seed=101, bank_size=bank)
    for matches in (first == second, first[1:] == first[:-1], first[:, 0] == second[:, 1]):
        share = matches.double().mean()
        assert abs(share - 1 / bank) < 6 * math.sqrt(1 / bank / count)


def test_draws_match_recorded_values():
    """A seed must give the same draws in every release, so that published results stay reproducible."""
    assert echo_ext.echo_indices(6, seed=1).tolist() == PERMUTATION_OF_6
    assert echo_ext.echo_indices(100, num_terms=5, seed=1)[7].tolist() == PERMUTATION_OF_100
    assert echo_ext.echo_indices(6, sampling="ring", seed=1)[0].tolist() == RING_OF_6
    assert echo_ext.echo_indices(6, sampling="replacement", seed=1)[0].tolist() == REPLACEMENT_OF_6


PERMUTATION_OF_6 = [
    [3, 1, 5, 4, 2],
    [5, 2, 0, 3, 4],
    [5, 1, 4, 3, 0],
    [4, 1, 5, 2, 0],
    [3, 2, 5, 0, 1],
    [4, 1, 3, 0, 2],
]
PERMUTATION_OF_100 = [42, 40, 4, 70, 63]
RING_OF_6 = [5, 3, 4, 1, 2]
REPLACEMENT_OF_6 = [3, 3, 5, 5, 2]

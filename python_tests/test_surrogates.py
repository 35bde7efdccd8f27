"""The orders of the rows that surrogate data have."""

import itertools
from collections import Counter

import pytest
import torch

from echo_ext._native import num_threads
from echo_ext.estimators import surrogates


def is_permutation(orders):
    return torch.equal(orders.sort(-1).values, torch.arange(orders.shape[-1]).expand_as(orders))


@pytest.mark.parametrize("n", [1, 2, 3, 61, 64, 65, 1009])
def test_shuffles_are_permutations(n):
    assert is_permutation(surrogates.shuffled(n, 5)(0, 20))


def test_shuffles_are_uniform():
    found = surrogates.shuffled(4, 7)(0, 24_000)
    counts = Counter(map(tuple, found.tolist()))
    assert set(counts) == set(itertools.permutations(range(4)))
    # 24 cells of 1,000 each: the chi-square statistic has mean 23 and standard deviation 6.8.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 23 + 5 * 6.8


def kinds():
    z = torch.randn(50, 2, dtype=torch.float64)
    sizes = [20, 1, 29]
    return {
        "shuffled": surrogates.shuffled(50, 3),
        "local": surrogates.exchanged_locally(z, 5, 3),
        "rotated": surrogates.rotated(50, 4, 3),
        "blocks": surrogates.permuted_in_blocks(50, 7, 3),
        "groups": surrogates.within_groups(lambda b, e, s: surrogates.shuffled(e - b, 3, stream=s), sizes),
    }


@pytest.mark.parametrize("kind", ["shuffled", "local", "rotated", "blocks", "groups"])
def test_a_surrogate_does_not_depend_on_those_before_it(kind):
    orders = kinds()[kind]
    together = orders(0, 30)
    with num_threads(2):
        assert torch.equal(torch.cat([orders(0, 11), orders(11, 1), orders(12, 18)]), together)
    assert torch.equal(kinds()[kind](0, 30), together) or kind == "local"  # z is drawn afresh
    assert len(torch.unique(together, dim=0)) > 10


def test_seeds_and_streams_differ():
    first = surrogates.shuffled(40, 1)(0, 5)
    assert not torch.equal(surrogates.shuffled(40, 2)(0, 5), first)
    assert not torch.equal(surrogates.shuffled(40, 1, stream=1)(0, 5), first)
    surrogates.shuffled(40, -(2**63))(0, 1)
    surrogates.shuffled(40, 2**63 - 1)(0, 1)


def test_local_exchange_stays_among_neighbors():
    z = torch.randn(300, 1, dtype=torch.float64)
    neighbors = (z - z.T).abs().topk(5, largest=False).indices
    found = surrogates.exchanged_locally(z, 5, 11)(0, 20)
    for order in found:
        assert bool((neighbors == order.unsqueeze(-1)).any(-1).all())
    used = torch.stack([torch.bincount(order, minlength=300) for order in found])
    # Most rows are used once, and no row more often than it has neighbors.
    assert (used == 1).double().mean() > 0.6
    assert used.max() <= 15


def test_local_exchange_follows_its_definition():
    # With itself and one other of two neighbors, all that can happen to two rows is that they keep or exchange places.
    z = torch.tensor([[0.0], [1.0], [10.0], [11.0]], dtype=torch.float64)
    found = Counter(map(tuple, surrogates.exchanged_locally(z, 2, 3)(0, 8000).tolist()))
    assert set(found) == {(a, b, c, d) for a, b in ((0, 1), (1, 0)) for c, d in ((2, 3), (3, 2))}
    assert all(abs(count - 2000) < 5 * (8000 * 3 / 16) ** 0.5 for count in found.values())


def test_rows_with_equal_z_exchange_with_each_other():
    z = torch.arange(4, dtype=torch.float64).repeat_interleave(100).unsqueeze(-1)
    found = surrogates.exchanged_locally(z, 5, 3)(0, 10)
    assert torch.equal(found // 100, torch.arange(400).expand_as(found) // 100)
    used = torch.stack([torch.bincount(order, minlength=400) for order in found])
    assert (used == 1).double().mean() > 0.6


def test_batch_of_local_exchange_is_that_of_its_items():
    z = torch.randn(3, 2, 40, 2, dtype=torch.float64)
    found = surrogates.exchanged_locally(z, 4, 9)(2, 5)
    assert found.shape == (5, 3, 2, 40)
    assert torch.equal(found[:, 1, 1], surrogates.exchanged_locally(z[1, 1], 4, 9)(2, 5))


def test_rotations_go_beyond_the_window():
    found = surrogates.rotated(30, 5, 3)(0, 500)
    offsets = found[:, 0]
    assert torch.equal(found, (torch.arange(30) + offsets.unsqueeze(-1)) % 30)
    assert sorted(set(offsets.tolist())) == list(range(6, 25))


@pytest.mark.parametrize(("n", "length"), [(12, 4), (13, 4), (5, 5), (7, 1), (9, 8)])
def test_blocks_stay_whole(n, length):
    blocks = [tuple(range(begin, min(begin + length, n))) for begin in range(0, n, length)]
    every = {sum(order, ()) for order in itertools.permutations(blocks)} if len(blocks) < 8 else None
    found = surrogates.permuted_in_blocks(n, length, 3)(0, 300)
    assert is_permutation(found)
    if every is not None:
        assert set(map(tuple, found.tolist())) <= every
        assert len(set(map(tuple, found.tolist()))) > min(len(every), 20) * 0.8


def test_groups_keep_their_rows():
    sizes = [20, 1, 29]
    found = surrogates.within_groups(lambda b, e, s: surrogates.shuffled(e - b, 3, stream=s), sizes)(0, 10)
    label = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    assert is_permutation(found)
    assert torch.equal(label[found], label.expand_as(found))

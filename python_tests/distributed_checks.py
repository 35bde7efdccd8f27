"""What a rank checks in groups of the first 1, 2, ... ranks: distributed_checks.py INIT_FILE SEED WORLD_SIZE RANK."""

import copy
import functools
import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
from echo_cases import relative_error
from torch import distributed as dist
from torch import nn

import echo_ext
from echo_ext import distributed, reference

EXACT = 1e-10  # float64, of the largest value


def joined_rows(sizes, shape, largest_scale=0.9):
    """The same on every rank, and this rank's slice of it."""
    total, rank = sum(sizes), dist.get_rank()
    f = torch.randn((total, *shape), dtype=torch.float64).tanh()
    s = largest_scale * torch.rand((total, *shape), dtype=torch.float64)
    first = sum(sizes[:rank])
    return f, s, slice(first, first + sizes[rank])


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def uneven_sizes(world):
    """One row on a rank, none on another where there are more than two."""
    return [[7], [7, 1], [5, 1, 9], [1, 6, 0, 8]][world - 1]


def check_ring(group, world):
    for sizes in ([4] * world, uneven_sizes(world)):
        for shape in ((3,), (), (2, 2), (200,)):  # the last is wider than an exchange's first block
            f, s, own = joined_rows(sizes, shape)
            weights = torch.randn_like(f)
            here = leaves(f[own], s[own])
            z = distributed.echo_sample(*here, group=group, seed=9)
            there = leaves(f, s)
            expected = reference.echo_circle(*there, distributed.ring_order(sizes, 9))
            assert relative_error(z, expected[own]) < EXACT
            gradients = torch.autograd.grad((z * weights[own]).square().sum(), here)
            wanted = torch.autograd.grad((expected * weights).square().sum(), there)
            for actual, whole in zip(gradients, wanted, strict=True):
                assert relative_error(actual, whole[own]) < EXACT


def check_gathered(group, world):
    """Each row draws from the rows of all ranks, its own rank's first in what it sees."""
    sizes = uneven_sizes(world)
    rank, total = dist.get_rank(), sum(sizes)
    for sampling, code in (("permutation", 0), ("replacement", 1)):
        f, s, own = joined_rows(sizes, (3,))
        here = leaves(f[own], s[own])
        z = distributed.echo_sample(*here, group=group, seed=9, sampling=sampling)
        there = leaves(f, s)
        rows = torch.arange(total).split(sizes)
        losses, mine = [], None
        for r in range(world):
            order = torch.cat([rows[r], *(rows[other] for other in range(world) if other != r)])
            seed = distributed._echo.rank_seed(torch.tensor(9), r)
            drawn = torch.ops.echo_ext.echo_indices(seed, sizes[r], total, total - 1, code, True)
            indices = order[drawn]
            assert (indices != rows[r].unsqueeze(1)).all()
            expected = there[0][rows[r]] + there[1][rows[r]] * reference.echo_noise(*there, indices)
            losses.append(expected.square().sum())
            mine = expected if r == rank else mine
        assert relative_error(z, mine) < EXACT
        gradients = torch.autograd.grad(z.square().sum(), here)
        wanted = torch.autograd.grad(sum(losses), there)
        for actual, whole in zip(gradients, wanted, strict=True):
            assert relative_error(actual, whole[own]) < EXACT


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6).double()

    def forward(self, x, send):
        f, s = self.layer(x).chunk(2, dim=-1)
        return send(f.tanh(), 0.9 * s.sigmoid())


def check_data_parallel(group, world):
    """DistributedDataParallel averages over ranks: a loss of W / N times the sum gives the joined batch's gradient."""
    sizes = [max(1, size) for size in uneven_sizes(world)]
    x = torch.randn(sum(sizes), 4, dtype=torch.float64)
    own = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
    alone = Encoder()
    order = distributed.ring_order(sizes, 4)
    alone(x, lambda f, s: reference.echo_circle(f, s, order)).square().sum(1).mean().backward()
    together = nn.parallel.DistributedDataParallel(Encoder(), process_group=group)
    together.module.load_state_dict(alone.state_dict())
    z = together(x[own], lambda f, s: distributed.echo_sample(f, s, group=group, seed=4))
    (world / sum(sizes) * z.square().sum()).backward()
    for ours, theirs in zip(together.module.parameters(), alone.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) < EXACT


@contextmanager
def counted_bytes():
    """The bytes that this rank hands to collectives."""
    sent = []
    names = {"all_gather": 1, "all_reduce": 0}
    originals = {name: getattr(dist, name) for name in names}

    def wrap(name, place):
        def call(*arguments, **options):
            sent.append(arguments[place].numel() * arguments[place].element_size())
            return originals[name](*arguments, **options)

        return call

    for name, place in names.items():
        setattr(dist, name, wrap(name, place))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def check_bytes(group, world):
    """A block forward and d numbers backward, whatever the batch."""
    for width, expected in ((32, [1024, 32 * 8]), (100, [1024, 2 * 100 * 8 - (1024 - 128), 100 * 8])):
        for rows in (1, 10, 1000):
            f, s = leaves(torch.randn(rows + 1, width).double().tanh(), torch.rand(rows + 1, width).double())
            with counted_bytes() as sent:
                distributed.echo_sample(f, s, group=group).sum().backward()
            assert sent == ([] if world == 1 else expected), sent


def check_disagreements(group, world):
    """Every rank reports who differs, and the group can go on."""
    rank, last = dist.get_rank(), world - 1
    odd = rank == last
    ones, send = torch.ones, functools.partial(distributed.echo_sample, group=group)
    cases = [
        (ValueError, rf"f must have rows of one shape on all ranks, but it is .*\(4,\) on rank {last}",
         lambda: send(*2 * [0.5 * ones(3, 4 if odd else 3)])),
        (ValueError, rf"f must have rows of one shape.*\(200,\) on rank {last}",
         lambda: send(*2 * [0.5 * ones(3, 200 if odd else 3)])),
        (TypeError, rf"f must have one dtype on all ranks, but it is torch.float32 on .*torch.float64 on rank {last}",
         lambda: send(*2 * [0.5 * ones(3, 4, dtype=torch.float64 if odd else torch.float32)])),
        (ValueError, rf"f must or must not need a gradient on all ranks, .*True on rank {last}",
         lambda: send(*2 * [ones(3, 4, requires_grad=odd)])),
        (ValueError, "f and s must have one shape" if odd else rf"f was refused on rank {last}",
         lambda: send(ones(3, 4), ones(3, 5 if odd else 4))),
        (ValueError, rf"f must have rows of one shape.*\(4,\) on rank {last}",
         lambda: send(*2 * [0.5 * ones(3, 4 if odd else 3)], sampling="permutation")),
        (ValueError, rf"y must have rows of one shape on all ranks.*\(2,\) on rank {last}",
         lambda: distributed.mutual_information(torch.randn(9, 1), torch.randn(9, 2 if odd else 1), group=group)),
    ]  # fmt: skip
    for error, message, call in cases if world > 1 else []:
        with pytest.raises(error, match=message):
            call()
    total = torch.ones(())
    dist.all_reduce(total, group=group)
    assert total == world


def check_channel(world):
    """More terms than one rank has rows; a small batch is filled up; eval needs no other rank."""
    for sync in (True, "gather"):
        channel = echo_ext.EchoChannel(10 * world - 1, bank_size=40, sync=sync)
        f_raw, s_raw = leaves(torch.randn(10, 3), torch.randn(10, 3))
        z, rate = channel(f_raw, s_raw)
        (z.square().sum() + rate.sum()).backward()
        assert f_raw.grad.abs().min() > 0
        assert s_raw.grad.abs().min() > 0
        assert channel(f_raw[: 3 + dist.get_rank()], s_raw[: 3 + dist.get_rank()]).z.shape == (3 + dist.get_rank(), 3)
        channel.eval()
        if dist.get_rank() == 0:
            assert channel(f_raw[:1], s_raw[:1]).z.shape == (1, 3)


def check_information(group, world):
    sizes = [[50], [50, 31], [50, 0, 30], [40, 1, 33, 20]][world - 1]
    rank = dist.get_rank()
    x = torch.randn(sum(sizes), 2, dtype=torch.float64)
    y = x[:, :1] + torch.randn(sum(sizes), 1, dtype=torch.float64)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for method in ("ksg1", "ksg2", "bi-ksg", "mixed"):
        for options in ({"k": (2, 5)}, {"exclude_within": 2, "unit": "bits"}, {"local": True}):
            expected = echo_ext.mutual_information(x, y, method=method, **options)
            actual = distributed.mutual_information(x[own], y[own], group=group, method=method, **options)
            expected = expected[..., own] if options.get("local") else expected
            assert actual.shape == expected.shape
            assert torch.allclose(actual, expected, rtol=0, atol=1e-12), (method, options)
    array = distributed.mutual_information(x[own].numpy(), y[own].numpy(), group=group)
    assert isinstance(array, float)
    assert abs(array - float(echo_ext.mutual_information(x, y))) < 1e-12


def check_fully_sharded(world):
    """FSDP2 shards the layers: its gradients are the ranks' mean, as without sharding."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # before torch 2.6
        return
    rank = dist.get_rank()
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    whole = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6))
    for parameter in whole.parameters():
        dist.broadcast(parameter.data, 0)
    sharded = copy.deepcopy(whole)
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    x = torch.randn(world, 9, 4)[rank]
    for layers in (whole, sharded):
        torch.manual_seed(rank)
        z, rate = echo_ext.EchoChannel(9 * world - 1, sync=True)(*layers(x).chunk(2, dim=-1))
        (z.square().sum(1).mean() + rate.sum(1).mean()).backward()
    for one, part in zip(whole.parameters(), sharded.parameters(), strict=True):
        dist.all_reduce(one.grad)
        assert relative_error(part.grad.full_tensor(), one.grad / world) < 1e-5


def check_subgroup():
    """Two groups of ranks are two circles."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    sizes, mine = [3, 4], dist.get_rank() % 2
    f, s = torch.rand(7, 2, dtype=torch.float64) + mine, 0.9 * torch.rand(7, 2, dtype=torch.float64)
    place = dist.get_rank(groups[mine])
    own = slice(0, 3) if place == 0 else slice(3, 7)
    z = distributed.echo_sample(f[own], s[own], group=groups[mine], seed=2)
    assert relative_error(z, reference.echo_circle(f, s, distributed.ring_order(sizes, 2))[own]) < EXACT
    with pytest.raises(ValueError, match="group must contain this process"):
        distributed.echo_sample(f, s, group=groups[1 - mine])


def check_missing_ranks():
    """One rank never calls, then one dies: the engine's error within its time-out, and no number."""
    rank, world = dist.get_rank(), dist.get_world_size()
    trio = dist.new_group(range(3), timeout=timedelta(seconds=1))
    if rank < 2:
        with pytest.raises(RuntimeError):
            distributed.echo_sample(torch.ones(3, 2), torch.full((3, 2), 0.5), group=trio)
    if rank == world - 1:
        os._exit(0)
    with pytest.raises(RuntimeError) as error:
        distributed.echo_sample(torch.ones(3, 2), torch.full((3, 2), 0.5))
    print(f"ended by the engine: {error.value}", flush=True)
    os._exit(0)  # a broken group cannot be taken down in order


IN_GROUPS = (
    check_ring,
    check_gathered,
    check_data_parallel,
    check_bytes,
    check_disagreements,
    check_information,
)


def main():
    init, seed, world, rank = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init}",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=60),
    )
    for size in range(1, int(world) + 1):
        group = dist.new_group(range(size))
        for number, check in enumerate(IN_GROUPS):
            torch.manual_seed(int(seed) + number)
            if int(rank) < size:
                check(group, size)
    check_channel(int(world))
    check_fully_sharded(int(world))
    torch.manual_seed(int(seed))
    check_subgroup()
    check_missing_ranks()


if __name__ == "__main__":
    main()

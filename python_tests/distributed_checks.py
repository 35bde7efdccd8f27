"""Checks that every rank runs in process groups of the first 1, 2, ... ranks.

Usage: distributed_checks.py INIT_FILE SEED WORLD_SIZE RANK
"""

import copy
import functools
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
from echo_cases import relative_error
from torch import distributed as dist
from torch import nn

import echo_ext
from echo_ext import distributed, reference
from echo_ext.distributed._collectives import BLOCK_BYTES, HEADER_BYTES, Ranks
from echo_ext.distributed.echo import rank_seed

EXACT = 1e-10  # tolerance in float64, relative to the largest value


def joined_rows(sizes, shape, largest_scale=0.9):
    """Return f and s of all ranks, equal on every rank, and the slice of this rank's rows."""
    total, rank = sum(sizes), dist.get_rank()
    f = torch.randn((total, *shape), dtype=torch.float64).tanh()
    s = largest_scale * torch.rand((total, *shape), dtype=torch.float64)
    first = sum(sizes[:rank])
    return f, s, slice(first, first + sizes[rank])


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def uneven_sizes(world):
    """Return rows per rank: one rank has a single row and, with more than two ranks, another has none."""
    return [[7], [7, 1], [5, 1, 9], [1, 6, 0, 8]][world - 1]


def check_ring(group, world):
    for sizes in ([4] * world, uneven_sizes(world)):
        for shape in ((3,), (), (2, 2), (500,)):  # the last does not fit in the first block of an exchange
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


def check_gathered_sampling(group, world):
    """Each row draws from the rows of all ranks, ordered with its own rank's rows first."""
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
            seed = rank_seed(torch.tensor(9), r)
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

    def forward(self, x, add_noise):
        f, s = self.layer(x).chunk(2, dim=-1)
        return add_noise(f.tanh(), 0.9 * s.sigmoid())


def check_data_parallel(group, world):
    """A loss of W / N times the sum over local rows gives the gradient of the mean over all N rows.

    The reason is that DistributedDataParallel averages gradients over the W ranks.
    """
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
    """Record the number of bytes that this rank passes to each collective."""
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


def check_bytes_sent(group, world):
    """Each pass sends one block, plus whatever does not fit in it, independent of the batch size."""
    room = BLOCK_BYTES - HEADER_BYTES
    narrow, wide = [BLOCK_BYTES, BLOCK_BYTES], [BLOCK_BYTES, 2 * 500 * 8 - room, BLOCK_BYTES, 500 * 8 - room]
    for width, expected in ((32, narrow), (192, narrow), (500, wide)):
        for rows in (1, 10, 1000):
            f, s = leaves(torch.randn(rows + 1, width).double().tanh(), torch.rand(rows + 1, width).double())
            with counted_bytes() as sent:
                distributed.echo_sample(f, s, group=group).sum().backward()
            assert sent == ([] if world == 1 else expected), sent


def rank_names(ranks):
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def disagreement_cases(group, world):
    """Return calls that differ on the last rank, as (name, error type, message, call).

    The message is raised on every rank. If only the last rank can detect the error, the message is that of the last
    rank, and the other ranks quote it as the reason.
    """
    rank, last = dist.get_rank(), world - 1
    odd = rank == last
    f, s = torch.linspace(-1, 1, 18).view(6, 3), torch.full((6, 3), 0.5)
    x, y = torch.randn(9, 1), torch.randn(9, 1)
    add_noise = functools.partial(distributed.echo_sample, group=group)
    estimate = functools.partial(distributed.mutual_information, group=group)

    def mismatch(what, usual, unusual):
        usual_ranks = list(range(last))
        found = f"{usual} on {rank_names(usual_ranks)} and {unusual} on rank {last}"
        return f"{what} must be the same on all ranks, got {found}"

    def noise(**options):
        return lambda: add_noise(f, s, seed=1, **(options if odd else {}))

    def drawn(**options):
        return lambda: add_noise(
            f, s, seed=1, **{"sampling": "permutation", "num_terms": 3, **(options if odd else {})}
        )

    def information(**options):
        return lambda: estimate(x, y, **(options if odd else {}))

    def without_gradient(sampling):
        with torch.set_grad_enabled(not odd):
            add_noise(f.requires_grad_(), s, sampling=sampling)

    def skip_a_backward_pass(sampling):
        z = add_noise(*leaves(f, s), sampling=sampling)
        if not odd:
            z.sum().backward()
        add_noise(*leaves(f, s), sampling="ring")

    def other_order(sampling):
        first, second = (add_noise(*leaves(f, s), sampling=sampling).sum() for _ in range(2))
        (second if odd else first).backward()

    def twice(sampling):
        z = add_noise(*leaves(f, s), sampling=sampling).sum()
        z.backward(retain_graph=not odd)
        z.backward()

    def number_of_the_next_call(ahead):
        return Ranks._latest_number + ahead

    def back(ahead):
        return f"the backward pass of echo_sample (call {number_of_the_next_call(ahead)})"

    call, gradient = "the function called", "whether a gradient is needed"
    rows, columns = "the shape of f's rows", "the number of columns of"
    long_k = list(range(1, 9)) * 40
    second_time = "Trying to backward through the graph a second time"
    cases = [
        # Calls that once gave a wrong result, hung or crashed.
        ("k", ValueError, mismatch("k", 3, 5), information(k=5)),
        ("method", ValueError, mismatch("method", "'ksg1'", "'ksg2'"), information(method="ksg2")),
        ("window", ValueError, mismatch("exclude_within", 0, 1), information(exclude_within=1)),
        ("k = 0", ValueError, "k must be at least 1, got 0", information(k=0)),
        ("k = 3.0", ValueError, "k must be an int or a fraction in (0, 1), got 3.0", information(k=3.0)),
        ("k = 5000", ValueError, mismatch("k", 3, 5000), information(k=5000)),
        ("window = -1", ValueError, "exclude_within must be at least 0, got -1", information(exclude_within=-1)),
        ("num_terms = 500", ValueError, mismatch("num_terms", 3, 500), drawn(num_terms=500)),
        ("local", ValueError, mismatch("local", False, True), information(local=True)),
        ("several k", ValueError, mismatch("k", 3, "(3, 5)"), information(k=[3, 5])),
        ("ring and permutation", ValueError, mismatch("sampling", "'ring'", "'permutation'"),
         noise(sampling="permutation")),
        ("ring and permutation, wide", ValueError, mismatch("sampling", "'ring'", "'permutation'"),
         lambda: add_noise(*leaves(f.repeat(1, 400), s.repeat(1, 400)), sampling="permutation" if odd else "ring")),
        # Other arguments that must agree.
        ("permutation and replacement", ValueError, mismatch("sampling", "'permutation'", "'replacement'"),
         drawn(sampling="replacement")),
        ("num_terms", ValueError, mismatch("num_terms", 3, 5), drawn(num_terms=5)),
        ("all terms", ValueError, mismatch("num_terms", 3, None), drawn(num_terms=None)),
        ("num_terms = True", TypeError, "num_terms must be an int, got True", drawn(num_terms=True)),
        ("terms of a ring", ValueError, "num_terms must be None for sampling='ring' across ranks, got 2",
         noise(num_terms=2)),
        ("seed", ValueError, f"seed must fit into 64 bits, between {-2**63} and {2**63 - 1}, got {2**63}",
         lambda: add_noise(f, s, seed=2**63 if odd else 1)),
        ("unit", ValueError, mismatch("unit", "'nats'", "'bits'"), information(unit="bits")),
        ("unknown unit", ValueError, "unit must be one of 'nats', 'bits', got 'hartleys'",
         information(unit="hartleys")),
        ("one k in a sequence", ValueError, mismatch("k", 3, "(3,)"), information(k=[3])),
        ("many k", ValueError, f"{str(tuple(long_k))[:34]} ... (SHA-256 ", information(k=long_k)),
        ("two functions", ValueError, mismatch(call, "echo_sample", "mutual_information"),
         lambda: estimate(x, y) if odd else add_noise(f, s)),
        ("two functions, gathered", ValueError, mismatch(call, "echo_sample", "mutual_information"),
         lambda: estimate(x, y) if odd else add_noise(f, s, sampling="permutation")),
        ("no tensor", TypeError, "f must be a torch.Tensor, got int", lambda: add_noise(3 if odd else f, s)),
        ("f and s", ValueError, "f and s must have the same shape, got (6, 3) and (6, 2)",
         lambda: add_noise(f, s[:, :2] if odd else s)),
        ("rows", ValueError, mismatch(rows, "(3,)", "(4,)"),
         lambda: add_noise(*2 * [0.5 * torch.ones(3, 4 if odd else 3)])),
        ("wide rows", ValueError, mismatch(rows, "(3,)", "(900,)"),
         lambda: add_noise(*2 * [0.5 * torch.ones(3, 900 if odd else 3)])),
        ("rows, gathered", ValueError, mismatch(rows, "(3,)", "(3, 1)"),
         lambda: add_noise(*2 * [0.5 * torch.ones(3, 3, *([1] * odd))], sampling="permutation")),
        ("dtype", TypeError, mismatch("the dtype of f", "torch.float32", "torch.float64"),
         lambda: add_noise(f.double(), s.double()) if odd else add_noise(f, s)),
        ("gradient", ValueError, mismatch(gradient, False, True),
         lambda: add_noise(f.clone().requires_grad_(odd), s)),
        ("no_grad", ValueError, mismatch(gradient, True, False), lambda: without_gradient("ring")),
        ("no_grad, gathered", ValueError, mismatch(gradient, True, False), lambda: without_gradient("replacement")),
        ("backward left out", ValueError, mismatch(call, back(1), "echo_sample"), lambda: skip_a_backward_pass("ring")),
        ("backward left out, gathered", ValueError, mismatch(call, back(2), "echo_sample"),
         lambda: skip_a_backward_pass("permutation")),
        ("columns of x", ValueError, mismatch(f"{columns} x", 1, 2), lambda: estimate(x.repeat(1, 1 + odd), y)),
        ("columns of y", ValueError, mismatch(f"{columns} y", 1, 2), lambda: estimate(x, y.repeat(1, 1 + odd))),
        ("batch", ValueError, mismatch("the leading dimensions of y", "()", "(2,)"),
         lambda: estimate(x, y.expand(2, 9, 1) if odd else y)),
        ("dtype of x", TypeError, mismatch("the dtype of x and y", "torch.float32", "torch.float64"),
         lambda: estimate(x.double(), y.double()) if odd else estimate(x, y)),
        ("NaN", ValueError, "y must be finite, got 9 NaN or infinite values, the first at [0, 0]",
         lambda: estimate(x, y * float("nan") if odd else y)),
        ("samples", ValueError, "x and y must have the same number of samples, got 9 and 8 (shapes (9, 1) and (8, 1))",
         lambda: estimate(x, y[: 8 if odd else 9])),
        # Errors that are equal on all ranks and detected after the exchange.
        ("k of all", ValueError, f"k must be less than the number of samples, got 99 of {9 * world}",
         lambda: estimate(x, y, k=99)),
        ("terms of all", ValueError, f"num_terms must be at most {6 * world - 1}, the number of other rows",
         lambda: add_noise(f, s, sampling="permutation", num_terms=99)),
        ("no samples", ValueError, "k must be less than the number of samples, got 3 of 0",
         lambda: estimate(x[:0], y[:0])),
    ]  # fmt: skip
    for sampling in ("ring", "permutation"):
        cases += [
            (f"other order, {sampling}", ValueError, None, lambda sampling=sampling: other_order(sampling)),
            (f"twice, {sampling}", RuntimeError, second_time, lambda sampling=sampling: twice(sampling)),
        ]
    return cases


def check_same_error(name, error, text, call, group):
    """Every rank raises the error without waiting for the timeout, and the group stays usable."""
    rank, world = dist.get_rank(), dist.get_world_size(group)
    began = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert time.monotonic() - began < 10, name  # well below the process group's timeout of 60 seconds
    message = str(caught.value)
    messages = [None] * world
    dist.all_gather_object(messages, (type(caught.value), message), group=group)
    reasons = [found.removeprefix(f"rank {world - 1} rejected the call: ") for _, found in messages]
    kinds = {kind for kind, _ in messages}
    assert len(kinds) == 1, (name, messages)
    if text is not None and reasons[0] != messages[0][1]:  # only the last rank could detect the error
        assert text in message, (name, messages)
        assert messages[-1][1].startswith(reasons[0]), (name, messages)
        return
    assert len(set(reasons)) == 1, (name, messages)
    assert text is None or text in message, (name, text, message, rank)


def check_disagreements(group, world):
    if world > 1:
        for name, error, text, call in disagreement_cases(group, world):
            check_same_error(name, error, text, call, group)
    total = torch.ones(())
    dist.all_reduce(total, group=group)
    assert total == world


def check_channel_disagreements(world):
    """The channels differ between ranks, or one of them rejects its batch."""
    odd = dist.get_rank() == world - 1
    f_raw, s_raw = torch.randn(10, 3), torch.randn(10, 3)

    def mismatch(name, usual, unusual):
        found = f"{usual} on {rank_names(range(world - 1))} and {unusual} on rank {world - 1}"
        return f"the channel's {name} must be the same on all ranks, got {found}"

    def channel(**options):
        options = {"num_terms": 9, "sync": True, **(options if odd else {})}
        return echo_ext.EchoChannel(options.pop("num_terms"), bank_size=40, **options)

    def widen():
        trained = channel()
        if odd:
            trained.bank_f, trained.bank_s = torch.randn(2, 40, 4)
        return trained

    def on_a_small_batch():
        return channel()(f_raw[:1] if odd else f_raw, s_raw[:1] if odd else s_raw)

    cases = [
        ("num_terms", ValueError, mismatch("num_terms", 9, 19), lambda: channel(num_terms=19)(f_raw, s_raw)),
        ("bound", ValueError, mismatch("bound", 1.0, 2.0), lambda: channel(bound=2.0)(f_raw, s_raw)),
        ("sync", ValueError, mismatch("sync", True, "gather"), lambda: channel(sync="gather")(f_raw, s_raw)),
        ("std", ValueError, mismatch("initial_std", 1.0, 2.0), lambda: channel(initial_std=2.0)(f_raw, s_raw)),
        ("an empty bank", ValueError, "rows for num_terms=9 while the bank is still empty, got 1", on_a_small_batch),
        ("another bank", ValueError, "rows of the shape seen in training, (4,)", lambda: widen()(f_raw, s_raw)),
        ("no pair", ValueError, "f_raw and s_raw must have the same shape",
         lambda: channel()(f_raw, s_raw[:, :2] if odd else s_raw)),
        ("a channel and a call", ValueError, "the function called must be the same on all ranks, got EchoChannel",
         lambda: distributed.echo_sample(f_raw, s_raw) if odd else channel()(f_raw, s_raw)),
    ]  # fmt: skip
    for name, error, text, call in cases:
        check_same_error(name, error, text, call, None)


def check_channel(world):
    """Noise may use more terms than a rank has rows; small batches draw from the bank; eval needs no other rank."""
    for sync in (True, "gather"):
        channel = echo_ext.EchoChannel(10 * world - 1, bank_size=40, sync=sync)
        f_raw, s_raw = leaves(torch.randn(10, 3), torch.randn(10, 3))
        z, rate = channel(f_raw, s_raw)
        (z.square().sum() + rate.sum()).backward()
        assert f_raw.grad.abs().min() > 0
        assert s_raw.grad.abs().min() > 0
        check_gain(channel, z.detach(), world)
        assert channel(f_raw[: 3 + dist.get_rank()], s_raw[: 3 + dist.get_rank()]).z.shape == (3 + dist.get_rank(), 3)
        channel.eval()
        if dist.get_rank() == 0:
            assert channel(f_raw[:1], s_raw[:1]).z.shape == (1, 3)


def check_gain(channel, z, world):
    """The first batches of all ranks together have a mean standard deviation of 1."""
    gathered = [torch.empty_like(z) for _ in range(world)]
    dist.all_gather(gathered, z)
    assert abs(float(torch.cat(gathered).std(0, correction=0).mean()) - 1) < 1e-5
    gains = [torch.empty(()) for _ in range(world)]
    dist.all_gather(gains, channel.gain)
    assert len(set(map(float, gains))) == 1


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
    """With layers sharded by FSDP2, gradients are the mean over ranks, as without sharding."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # before torch 2.6
        return
    if not hasattr(torch.cpu.Stream, "record_event"):  # torch 2.6, where it fails on the CPU
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
    """Two process groups form two independent rings."""
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
    """If a rank makes no call, and then if a rank exits, the others raise the error of the process group."""
    rank, world = dist.get_rank(), dist.get_world_size()
    trio = dist.new_group(range(3), timeout=timedelta(seconds=1))
    if rank < 2:
        with pytest.raises(RuntimeError):
            distributed.echo_sample(torch.ones(3, 2), torch.full((3, 2), 0.5), group=trio)
    if rank == world - 1:
        os._exit(0)
    with pytest.raises(RuntimeError) as error:
        distributed.echo_sample(torch.ones(3, 2), torch.full((3, 2), 0.5))
    print(f"process group error: {error.value}", flush=True)
    os._exit(0)  # a broken process group cannot be destroyed cleanly


IN_GROUPS = (
    check_ring,
    check_gathered_sampling,
    check_data_parallel,
    check_bytes_sent,
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
    check_channel_disagreements(int(world))
    check_fully_sharded(int(world))
    torch.manual_seed(int(seed))
    check_subgroup()
    check_missing_ranks()


if __name__ == "__main__":
    main()

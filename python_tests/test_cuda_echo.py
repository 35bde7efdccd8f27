"""The Echo ops on a GPU: compared with the reference (the oracle); the CPU's draws; CUDA graphs, streams and memory."""

import contextlib
import copy
import functools

import pytest
import torch
from device_cases import (
    DEVICES,
    assert_close,
    busy_stream,
    deterministic,
    inputs,
    on_devices,
    poisoned_memory,
    random_circles,
    run,
    run_oracle,
    synchronize,
)
from echo_cases import DTYPES, SAMPLINGS, TOLERANCE, signal_and_scale

import echo_ext
from echo_ext import reference

LAYOUTS = {
    "at an odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "transposed": lambda t: t.T.contiguous().T,
    "every second column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}
# Rows, columns, rows of a bank. The first is the shape for which speed was asked: two passes over the rows, full tiles.
SHAPES = [(1024, 128, 0), (2, 1, 0), (33, 17, 0), (257, 129, 0), (600, 70, 0), (2100, 9, 0), (2000, 40, 0)]
SHAPES += [(1, 5, 40), (300, 40, 7), (64, 20, 2500)]
SMALL_SHAPES = [(2, 1), (3, 5), (17, 1), (66, 67), (257, 31), (100, 32), (11, 2, 3, 5)]


def check(
    device,
    shape,
    sampling,
    dtype,
    *,
    function="echo_sample",
    bank_rows=0,
    size=None,
    num_terms=None,
    stream=None,
    **more,
):
    """Compare a function of Echo noise and its gradients with the oracle; `more` is for `inputs`."""
    options = {"sampling": sampling, "seed": int(torch.randint(2**62, ())), "num_terms": num_terms}
    own = inputs(device, shape, dtype, **more)
    bank = inputs(device, (bank_rows, *shape[1:]), dtype, **more) if bank_rows else []
    tensors = [*own, *bank]
    rows = shape[0] if size is None else size
    layout = more.get("layout", torch.clone)
    grad = layout(torch.randn((rows, *shape[1:]), dtype=torch.float64).to(device, dtype))

    def call(f, s, *bank):
        if function == "echo_noise":
            return echo_ext.echo_noise(f, s, bank=bank or None, size=size, **options)
        return echo_ext.echo_sample(f, s, bank=bank or None, **options)

    if function == "echo_noise" and bank:  # noise drawn from a bank depends only on the bank
        call, tensors = functools.partial(call, *own), bank
    synchronize(device)
    with poisoned_memory(), stream(device) if stream else contextlib.nullcontext():
        given = [tensor.detach().clone().requires_grad_() for tensor in tensors] if stream else tensors
        found = run(call, given, grad)
    assert all(tensor.dtype == dtype for tensor in found)
    indices = echo_ext.echo_indices(rows, bank_size=bank_rows or None, device=device, **options)
    assert_close(found, run_oracle(function, tensors, indices, grad), TOLERANCE[dtype])


@on_devices("shape", cpu=[(40, 9, 0), (33, 9, 7)], cuda=SHAPES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_oracle(device, shape, dtype, sampling):
    *shape, bank_rows = shape
    for mode, flat in ((False, False), (True, False), (False, True)):
        with deterministic(mode):
            check(device, shape, sampling, dtype, bank_rows=bank_rows, flat=flat)


@on_devices("shape", cpu=[(11, 2, 3)], cuda=SMALL_SHAPES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_terms_agrees_with_the_oracle(device, shape, dtype, sampling):
    for largest_scale in (0.05, 0.6, 0.97):
        for num_terms in {None, 1, shape[0] // 2}:
            for function in ("echo_sample", "echo_noise"):
                options = {"function": function, "num_terms": num_terms, "largest_scale": largest_scale}
                check(device, shape, sampling, dtype, **options)


BANKS = [((1, 3), 1), ((1, 40), 70), ((9, 17), 5), ((300, 5), 33)]


@on_devices("shapes", cpu=BANKS[:1], cuda=BANKS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bank_agrees_with_the_oracle(device, shapes, dtype, sampling):
    shape, bank_rows = shapes
    options = {"bank_rows": bank_rows, "largest_scale": 0.8}
    check(device, shape, sampling, dtype, **options)
    for size in (None, 3 * bank_rows + 1):
        check(device, shape, sampling, dtype, function="echo_noise", size=size, **options)


@on_devices("shape", cpu=[(6, 3, 0)], cuda=[(65, 33, 0), (30, 20, 70)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_agrees_with_the_oracle(device, shape, dtype, sampling, layout):
    *shape, bank_rows = shape
    check(device, shape, sampling, dtype, bank_rows=bank_rows, layout=LAYOUTS[layout])


@on_devices("shape", cpu=[(300, 9, 20)], cuda=[(2**16, 64, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_ring_agrees_with_the_oracle(device, shape, dtype):
    """Many segments of the ring: its grid and its 64-bit offsets at scale."""
    *shape, num_terms = shape
    check(device, shape, "ring", dtype, num_terms=num_terms)


@on_devices("shape", cpu=[(40, 9)], cuda=[(401, 33)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_runs_on_the_current_stream(device, shape, sampling):
    check(device, shape, sampling, torch.float32, stream=busy_stream)


@pytest.mark.parametrize("device", DEVICES)
def test_comparisons_find_wrong_and_unwritten_values(device, monkeypatch):
    case = (device, (40, 9), "permutation", torch.float32)
    check(*case)
    correct = echo_ext.echo_sample
    monkeypatch.setattr(echo_ext, "echo_sample", lambda f, s, **options: correct(f, s, **options) * 1.001)
    with pytest.raises(AssertionError, match=r"value: error 1\.00e-03 against the oracle, must be at most"):
        check(*case)
    monkeypatch.setattr(echo_ext, "echo_sample", lambda f, s, **options: correct(f, s, **options) * f.new_empty(40, 1))
    with pytest.raises(AssertionError, match="value: error nan"):
        check(*case)


@pytest.mark.parametrize("device", DEVICES)
def test_new_memory_is_poisoned(device):
    """Of the forward and of the backward pass; else the comparisons find less."""
    tensors = inputs(device, (50, 9))
    with poisoned_memory() as memory:
        value = echo_ext.echo_sample(*tensors)
        in_forward = memory.count
        torch.autograd.grad(value.sum(), tensors)
    assert 0 < in_forward < memory.count


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_size", [None, 40])
def test_draws_are_those_of_the_cpu(device, sampling, bank_size):
    options = {"sampling": sampling, "seed": 5, "bank_size": bank_size}
    for rows in (130, 500):
        found = echo_ext.echo_indices(rows, device=device, **options)
        assert torch.equal(found.cpu(), echo_ext.echo_indices(rows, **options))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_repeats_bit_for_bit(device, sampling):
    f, s = inputs(device, (700, 50))
    grad = torch.randn_like(f)
    for mode in {True, sampling != "ring"}:  # the ring repeats in any mode
        with deterministic(mode):
            draw = functools.partial(echo_ext.echo_sample, sampling=sampling, seed=5)
            once, again = (run(draw, (f, s), grad) for _ in range(2))
        assert all(map(torch.equal, once, again))


# ---- Noise around a whole circle -------------------------------------------------------------------------------------

CIRCLES = {"matrix ring": reference.echo_matrix_circle, "one rank's ring": reference.echo_circle}


@on_devices(
    "shape", cpu=[(2, 1), (7, 9)], cuda=[(2, 1), (2, 33), (2, 36), (70, 1), (70, 33), (70, 36), (70, 64), (257, 31)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", CIRCLES)
def test_circles_agree_with_the_oracle(device, shape, dtype, noise):
    """Matrices are copied by elements, and where rows are whole vectors by these."""
    function, tensors = random_circles(device, *shape, dtype)[noise]
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    with poisoned_memory():
        found = run(functools.partial(function, seed=3), tensors, grad.to(device))
    order = echo_ext.echo_indices(1, sampling="ring", seed=3, bank_size=shape[0])[0]
    wide = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    assert_close(found, run(lambda f, s: CIRCLES[noise](f, s, order), wide, grad), 4 * TOLERANCE[dtype])


def check_against_cpu(function, tensors, tolerance):
    grad = torch.randn(tensors[0].shape).to(tensors[0].dtype)
    with poisoned_memory():
        found = run(function, tensors, grad.to(tensors[0].device))
    on_cpu = [tensor.detach().cpu().requires_grad_() for tensor in tensors]
    assert_close(found, run(function, on_cpu, grad), tolerance, "the CPU")


@on_devices("shape", cpu=[(20, 3)], cuda=[(1000, 9), (1500, 1), (1500, 33), (1500, 36)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", CIRCLES)
def test_long_circles_equal_those_of_the_cpu(device, shape, dtype, noise):
    function, tensors = random_circles(device, *shape, dtype)[noise]
    check_against_cpu(functools.partial(function, seed=3), tensors, 4 * TOLERANCE[dtype])


@on_devices("shape", cpu=[(6, 2, 5)], cuda=[(20_000, 3), (64, 2, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ring_of_one_rank_equals_that_of_the_cpu(device, shape, dtype):
    ring = functools.partial(echo_ext.distributed.echo_sample, seed=3)
    check_against_cpu(ring, inputs(device, shape, dtype), 4 * TOLERANCE[dtype])


# ---- What only a GPU has ---------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tensors_on_another_device_than_the_current_one(sampling):
    """On cuda:1 while cuda:0 is the current device, on a stream of cuda:1."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    device = torch.device("cuda", 1)
    f, s = (torch.rand(400, 33, device="cuda:0") for _ in range(2))
    expected = echo_ext.echo_sample(f, s, sampling=sampling, seed=3)
    there = [tensor.to(device) for tensor in (f, s)]
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream), torch.cuda.device(0):
        found = echo_ext.echo_sample(*there, sampling=sampling, seed=3)
        assert torch.cuda.current_device() == 0
    stream.synchronize()
    assert_close([found], [expected], 1e-6, "cuda:0")


NOISES = {
    **{how: lambda f, s, how=how, **options: echo_ext.echo_sample(f, s, sampling=how, **options) for how in SAMPLINGS},
    "matrix": lambda f, s, **options: echo_ext.echo_sample_matrix(f, s.diag_embed(), **options),
    "across ranks": lambda f, s, **options: echo_ext.distributed.echo_sample(f, s, **options),
}


@pytest.mark.cuda
@pytest.mark.parametrize("noise", NOISES)
def test_graph_draws_fresh_noise_at_every_replay(noise):
    f, s = (t.detach() for t in signal_and_scale((100, 32), torch.float32, device="cuda"))
    for _ in range(3):
        NOISES[noise](f, s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = NOISES[noise](f, s)
    graph.replay()
    first = z.clone()
    graph.replay()
    assert not torch.equal(z, first)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch calls a prototype
@pytest.mark.parametrize("noise", NOISES)
def test_never_synchronizes_the_host(noise):
    f, s = signal_and_scale((100, 32), torch.float32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        NOISES[noise](f, s).sum().backward()
        NOISES[noise](f, s, seed=7)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_memory_stays_linear():
    """No (B, D, d) tensor and no index tensor: at most a few dozen times the input."""
    f, s = signal_and_scale((1024, 128), torch.float32, device="cuda")
    echo_ext.echo_sample(f, s).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    echo_ext.echo_sample(f, s).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 64 * f.numel() * 4


@pytest.mark.cuda
def test_compiles_and_moves_between_devices():
    channel = echo_ext.EchoChannel(num_terms=20, bank_size=50)
    channel(torch.randn(30, 4), torch.randn(30, 4))
    moved = copy.deepcopy(channel).cuda()
    assert moved.bank_f.device.type == "cuda"
    compiled = torch.compile(moved, fullgraph=True)
    z, rate = compiled(torch.randn(30, 4, device="cuda"), torch.randn(30, 4, device="cuda"))
    assert z.isfinite().all()
    assert rate.isfinite().all()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = torch.randn(30, 4, device="cuda", dtype=torch.bfloat16)
        assert moved(half, half).z.dtype == torch.bfloat16


@pytest.mark.cuda
def test_devices_must_agree():
    f, s = (t.detach() for t in signal_and_scale((5, 3)))
    with pytest.raises(ValueError, match="must be on the same device, got cuda:0 and cpu"):
        echo_ext.echo_sample(f.cuda(), s)
    with pytest.raises(ValueError, match="seed must be on f's device, cuda:0, got cpu"):
        echo_ext.echo_sample(f.cuda(), s.cuda(), seed=torch.tensor(1))

"""The Echo ops on a GPU: the oracle again, the CPU's draws bit for bit, and CUDA's own engines.

benchmarks/gpu_check.sh compares larger shapes with the oracle, which it keeps on the GPU.
"""

import copy

import pytest
import torch
from echo_cases import DTYPES, SAMPLINGS, TOLERANCE, check_against_oracle, relative_error, results, signal_and_scale

import echo_ext

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (3, 5), (17, 1), (66, 67), (257, 31), (100, 32), (11, 2, 3, 5)])
def test_agrees_with_the_oracle(shape, dtype, sampling):
    for largest_scale in (0.05, 0.6, 0.97):
        for num_terms in {None, 1, shape[0] // 2}:
            check_against_oracle("cuda", shape, dtype, sampling, num_terms, largest_scale)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "bank_rows"), [((1, 3), 1), ((1, 40), 70), ((9, 17), 5), ((300, 5), 33)])
def test_bank_agrees_with_the_oracle(shape, bank_rows, dtype, sampling):
    check_against_oracle("cuda", shape, dtype, sampling, None, 0.8, bank_rows=bank_rows)
    check_against_oracle("cuda", shape, dtype, sampling, None, 0.8, bank_rows=bank_rows, size=3 * bank_rows + 1)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bank_size", [None, 40])
def test_draws_are_the_cpus(sampling, bank_size):
    options = {"sampling": sampling, "seed": 5, "bank_size": bank_size}
    assert torch.equal(
        echo_ext.echo_indices(130, device="cuda", **options).cpu(), echo_ext.echo_indices(130, **options)
    )


def check_against_cpu(function, tensors, weights):
    """Value and gradients, on the draws that both devices make of one seed."""
    on_device = [tensor.detach().cuda().requires_grad_() for tensor in tensors]
    pairs = zip(results(function, on_device, weights.cuda()), results(function, tensors, weights), strict=True)
    for what, (ours, theirs) in enumerate(pairs):
        assert relative_error(ours, theirs) < 4 * TOLERANCE[tensors[0].dtype], what


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (70, 64), (1000, 9)])
def test_matrices_are_as_on_the_cpu(shape, dtype):
    f, s = torch.randn(shape), torch.randn(*shape, shape[1])
    s *= 0.9 / torch.linalg.matrix_norm(s, 2)[:, None, None]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (f, s)]
    check_against_cpu(lambda f, s: echo_ext.echo_sample_matrix(f, s, seed=3), tensors, torch.randn(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (257, 31), (20_000, 3), (64, 2, 5)])
def test_one_ranks_ring_is_as_on_the_cpu(shape, dtype):
    tensors = signal_and_scale(shape, dtype)
    check_against_cpu(lambda f, s: echo_ext.distributed.echo_sample(f, s, seed=3), tensors, torch.randn(shape))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_repeats_bit_for_bit(sampling):
    f, s = signal_and_scale((500, 40), torch.float32, device="cuda")
    torch.use_deterministic_algorithms(sampling != "ring")  # the ring needs no asking
    try:
        once, again = (
            results(lambda f, s: echo_ext.echo_sample(f, s, sampling=sampling, seed=1), (f, s), torch.ones(500, 40))
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, once, again))


NOISES = {
    **{how: lambda f, s, how=how, **options: echo_ext.echo_sample(f, s, sampling=how, **options) for how in SAMPLINGS},
    "matrix": lambda f, s, **options: echo_ext.echo_sample_matrix(f, s.diag_embed(), **options),
    "across ranks": lambda f, s, **options: echo_ext.distributed.echo_sample(f, s, **options),
}


@pytest.mark.parametrize("noise", NOISES)
def test_a_graph_draws_fresh_noise_at_every_replay(noise):
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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch calls a prototype
@pytest.mark.parametrize("noise", NOISES)
def test_never_synchronises_the_host(noise):
    f, s = signal_and_scale((100, 32), torch.float32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        NOISES[noise](f, s).sum().backward()
        NOISES[noise](f, s, seed=7)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    f, s = (t.detach() for t in signal_and_scale((400, 64), torch.float32, device="cuda"))
    expected = echo_ext.echo_sample(f, s, seed=2)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late_f = f + 0.0
        z = echo_ext.echo_sample(late_f, s, seed=2)
    stream.synchronize()
    assert torch.equal(z, expected)


def test_memory_stays_linear():
    """No (B, D, d) tensor and no index tensor: at most a few dozen times the input."""
    f, s = signal_and_scale((1024, 128), torch.float32, device="cuda")
    echo_ext.echo_sample(f, s).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    echo_ext.echo_sample(f, s).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 64 * f.numel() * 4


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


def test_devices_must_agree():
    f, s = (t.detach() for t in signal_and_scale((5, 3)))
    with pytest.raises(ValueError, match="must be on the same device, got cuda:0 and cpu"):
        echo_ext.echo_sample(f.cuda(), s)
    with pytest.raises(ValueError, match="seed must be on f's device, cuda:0, got cpu"):
        echo_ext.echo_sample(f.cuda(), s.cuda(), seed=torch.tensor(1))

"""The ops inside PyTorch: opcheck, torch.compile, torch.export, autocast, checkpointing and DistributedDataParallel."""

import os

import pytest
import torch
from echo_cases import SAMPLINGS, signal_and_scale
from torch import nn

import echo_ext

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def check_op(op, arguments):
    assert set(torch.library.opcheck(op, arguments, test_utils=OPCHECKS).values()) == {"SUCCESS"}


@pytest.mark.parametrize("sampling", range(len(SAMPLINGS)))
def test_opcheck(sampling):
    f, s = signal_and_scale((7, 3))
    bank_f, bank_s = signal_and_scale((9, 3))
    seed = torch.tensor(3)
    check_op(torch.ops.echo_ext.echo, (f, s, f, s, seed, 7, 6, sampling, True))
    check_op(torch.ops.echo_ext.echo, (f, s, bank_f, bank_s, seed, 7, 5, sampling, False))
    check_op(torch.ops.echo_ext.echo, (None, None, bank_f, bank_s, seed, 11, 9, sampling, False))
    check_op(torch.ops.echo_ext.echo_indices, (seed, 7, 9, 4, sampling, False))
    grad = torch.randn(7, 3, dtype=torch.float64)
    for own in (True, False):
        tensors = [t.detach() for t in ((s, f, s) if own else (s, bank_f, bank_s))]
        check_op(torch.ops.echo_ext.echo_backward, (grad, *tensors, seed, 7, 6, sampling, own))


class Encoder(nn.Module):
    """A small autoencoder: linear layers around a channel."""

    def __init__(self, **options):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.channel = echo_ext.EchoChannel(num_terms=7, bank_size=20, **options)
        self.decoder = nn.Linear(3, 4)

    def forward(self, x):
        z, rate = self.channel(*self.layer(x).chunk(2, dim=-1))
        return self.decoder(z), rate


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_compiles_without_graph_breaks(sampling):
    torch._dynamo.reset()
    f, s = signal_and_scale((12, 3), torch.float32)
    eager = lambda f, s: echo_ext.echo_sample(2 * f, s, sampling=sampling, seed=5).square().sum()  # noqa: E731
    compiled = torch.compile(eager, fullgraph=True)
    expected = torch.autograd.grad(eager(f, s), (f, s))
    actual = torch.autograd.grad(compiled(f, s), (f, s))
    assert all(torch.allclose(a, e, rtol=1e-5, atol=1e-6) for a, e in zip(actual, expected, strict=True))


def test_compiled_training_step_draws_fresh_noise():
    torch._dynamo.reset()
    model = Encoder()
    x = torch.randn(10, 4)
    model(x)  # fills the bank
    compiled = torch.compile(model, fullgraph=True)
    outputs = [compiled(x)[0] for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs[0].sum().backward()
    assert model.layer.weight.grad.isfinite().all()
    torch.manual_seed(1)
    first = compiled(x)[0]
    torch.manual_seed(1)
    assert torch.equal(compiled(x)[0], first)


def test_exports_with_dynamic_batch_size():
    model = Encoder()
    model(torch.randn(10, 4))
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    for rows in (1, 5):
        x = torch.randn(rows, 4)
        reconstruction, rate = program.module()(x)
        assert reconstruction.shape == (rows, 4)
        assert torch.allclose(rate, model(x)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(dtype):
    model = Encoder()
    with torch.autocast("cpu", dtype=dtype):
        reconstruction, rate = model(torch.randn(10, 4))
        assert rate.dtype == torch.float32
        reconstruction.float().sum().add(rate.sum()).backward()
    assert model.layer.weight.grad.isfinite().all()


def test_autocast_promotes_to_wider_dtype():
    f, s = signal_and_scale((10, 3), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = echo_ext.echo_sample(f.bfloat16(), s, seed=1)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, echo_ext.echo_sample(f.bfloat16().float(), s, seed=1))


def test_meta_tensors_propagate_shapes():
    f = torch.empty(10, 2, 3, device="meta")
    assert echo_ext.echo_sample(f, f, seed=torch.empty((), dtype=torch.int64, device="meta")).shape == (10, 2, 3)


def test_activation_checkpointing_reproduces_noise():
    f, s = signal_and_scale((20, 3))
    add_noise = lambda f, s: echo_ext.echo_sample(f, s).square()  # noqa: E731
    torch.manual_seed(3)
    plain = torch.autograd.grad(add_noise(f, s).sum(), (f, s))
    torch.manual_seed(3)
    checkpointed = torch.utils.checkpoint.checkpoint(add_noise, f, s, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(checkpointed.sum(), (f, s)), plain))


def _train_as_rank(rank, world_size, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Encoder())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        x = torch.randn(10, 4)
        reconstruction, rate = model(x)
        loss = (reconstruction - x).square().sum(1).mean() + rate.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    results.put((rank, model.module.layer.weight.detach().numpy().copy()))
    torch.distributed.destroy_process_group()


def test_data_parallel_ranks_keep_equal_weights():
    """Ranks see different rows and noise but keep equal weights."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_train_as_rank, args=(rank, 2, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    weights = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (weights[0] == weights[1]).all()

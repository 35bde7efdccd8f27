"""torch.compile on the training step of an Echo autoencoder: one graph, one recompilation, same results as eager."""

import copy

import pytest
import torch
from echo_cases import relative_error
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import echo_ext

BATCHES = (64, 100, 128, 333, 512, 777, 1000, 1024)


class Autoencoder(nn.Module):
    """Encoder and decoder around a channel; the forward pass returns the loss."""

    def __init__(self, channel, width=4):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.signal = nn.Linear(16, width)
        self.scale = nn.Linear(16, getattr(channel, "num_scale_features", width))
        self.channel = channel
        self.decoder = nn.Linear(width, 8)

    def forward(self, x):
        hidden = self.encoder(x)
        z, rate = self.channel(self.signal(hidden), self.scale(hidden))
        return (self.decoder(z) - x).square().sum(1).mean() + rate.sum(1).mean()


CHANNELS = {
    "permutation": lambda: echo_ext.EchoChannel(20, bank_size=40),
    "ring": lambda: echo_ext.EchoChannel(20, bank_size=40, sampling="ring"),
    "matrix": lambda: echo_ext.EchoMatrixChannel(4, 20, bank_size=40),
}


@pytest.fixture(params=CHANNELS)
def model(request):
    torch._dynamo.reset()
    model = Autoencoder(CHANNELS[request.param]())
    model(torch.randn(64, 8))  # fills the bank
    return model


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def train(model, step, batches):
    """Take one Adam step on each batch and return the parameters."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for seed, x in enumerate(batches):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        step(x).backward()
        optimizer.step()
    return list(model.parameters())


def test_compiles_at_most_twice_and_matches_eager(model):
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(model, fullgraph=True, backend=counter)
    eager_model = copy.deepcopy(model)
    batches = [torch.randn(rows, 8) for rows in BATCHES]
    compiled, eager = train(model, step, batches), train(eager_model, eager_model, batches)
    assert counter.frame_count <= 2  # once for 64 rows, then for a dynamic batch size
    assert all(relative_error(ours, theirs) < 1e-4 for ours, theirs in zip(compiled, eager, strict=True))
    assert torch.allclose(model.channel.bank_f, eager_model.channel.bank_f, atol=1e-5)


def test_first_batch_sets_the_gain_when_compiled(model):
    """The first step is compiled with the bank still empty, the second with the gain known."""
    eager_model = Autoencoder(CHANNELS["matrix" if hasattr(model.channel, "dim") else "ring"]())
    eager_model.load_state_dict(model.state_dict())
    for each in (model, eager_model):
        each.channel = type(each.channel)(*([4] if hasattr(each.channel, "dim") else []), 20, bank_size=40)
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    batches = [torch.randn(64, 8) for _ in range(3)]
    compiled, eager = train(model, step, batches), train(eager_model, eager_model, batches)
    assert all(relative_error(ours, theirs) < 1e-4 for ours, theirs in zip(compiled, eager, strict=True))
    assert torch.allclose(model.channel.gain, eager_model.channel.gain)
    assert float(model.channel.gain) > 1


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch cannot compile a backward pass"
)
def test_backward_and_update_in_one_graph(model):
    eager_model, x = copy.deepcopy(model), torch.randn(64, 8)
    parameters = list(model.parameters())

    def step(x):
        loss = model(x)
        slopes = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.sub_(slope, alpha=1e-2)
        return loss.detach()

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.manual_seed(1)
        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    torch.manual_seed(1)
    expected = eager_model(x)
    expected.backward()
    assert relative_error(loss, expected) < 1e-5
    for ours, theirs in zip(parameters, eager_model.parameters(), strict=True):
        assert relative_error(ours, theirs - 1e-2 * theirs.grad) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_matches_eager_under_autocast(model, dtype):
    eager_model, x = copy.deepcopy(model), torch.randn(64, 8)
    losses = []
    for each, step in ((model, torch.compile(model, fullgraph=True, backend="aot_eager")), (eager_model, eager_model)):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype):
            loss = step(x)
        loss.backward()
        losses.append(loss)
        assert all(gradient.isfinite().all() for gradient in gradients(each))
    assert relative_error(*losses) < 20 * torch.finfo(dtype).eps


def test_checkpointing_reproduces_noise(model):
    eager_model, x = copy.deepcopy(model), torch.randn(64, 8)
    torch.manual_seed(1)
    model(x).backward()
    torch.manual_seed(1)
    checkpoint(eager_model, x, use_reentrant=False).backward()
    assert all(map(torch.equal, gradients(model), gradients(eager_model)))


def test_compiled_func_grad_raises():
    torch._dynamo.reset()
    f, s = torch.randn(8, 3), torch.rand(8, 3)
    slope = torch.func.grad(lambda f: echo_ext.echo_sample(f, s, seed=1).sum())
    with pytest.raises(Exception, match=r"torch\.func cannot differentiate Echo noise"):
        torch.compile(slope, fullgraph=True, backend="aot_eager")(f)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")  # raised inside torch while it lowers tril
def test_inductor_training_matches_eager(model):
    eager_model = copy.deepcopy(model)
    batches = [torch.randn(rows, 8) for rows in BATCHES[:4]]
    with torch._inductor.config.patch(fallback_random=True):
        compiled = train(model, torch.compile(model, fullgraph=True), batches)
    eager = train(eager_model, eager_model, batches)
    assert all(relative_error(ours, theirs) < 1e-4 for ours, theirs in zip(compiled, eager, strict=True))

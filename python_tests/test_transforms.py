"""Echo noise inside torch.func's transforms."""

import pytest
import torch
from echo_cases import SAMPLINGS, relative_error, signal_and_scale
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import echo_ext


def bank_of(rows, width):
    return tuple(t.detach() for t in signal_and_scale((rows, width)))


def send_matrix(f, s):
    return echo_ext.echo_sample_matrix(f, torch.diag_embed(s), seed=1)


CALLS = {
    **{name: lambda f, s, name=name: echo_ext.echo_sample(f, s, sampling=name, seed=1) for name in SAMPLINGS},
    "noise": lambda f, s: echo_ext.echo_noise(f, s, num_terms=3, seed=1),
    "matrix": send_matrix,
}


@pytest.fixture(params=CALLS)
def send(request):
    return CALLS[request.param]


def plain(shape):
    return tuple(t.detach() for t in signal_and_scale(shape))


def test_grad_is_autograds(send):
    f, s = signal_and_scale((6, 3))
    loss = lambda f, s: send(f, s).square().sum()  # noqa: E731
    transformed = grad(loss, argnums=(0, 1))(f.detach(), s.detach())
    for ours, theirs in zip(transformed, torch.autograd.grad(loss(f, s), (f, s)), strict=True):
        assert relative_error(ours, theirs) < 1e-14


def test_vjp_and_jacobian(send):
    f, s = plain((5, 2))
    _, pull = vjp(send, f, s)
    weights = torch.randn_like(f)
    jacobian = jacrev(send)(f, s)
    assert relative_error(pull(weights)[0], torch.einsum("ij,ijkl->kl", weights, jacobian)) < 1e-13


@pytest.mark.parametrize(("in_dims", "shapes"), [((0, 0), ((4, 6, 3), (4, 6, 3))), ((2, None), ((6, 3, 4), (6, 3)))])
def test_vmap_is_a_loop_with_one_seed(send, in_dims, shapes):
    f, s = plain(shapes[0])[0], plain(shapes[1])[1]
    rows = [(f.select(in_dims[0], i), s if in_dims[1] is None else s.select(in_dims[1], i)) for i in range(4)]
    assert relative_error(vmap(send, in_dims)(f, s), torch.stack([send(*row) for row in rows])) < 1e-14
    slope = grad(lambda f, s: send(f, s).square().sum(), argnums=(0, 1))
    for ours, theirs in zip(vmap(slope, in_dims)(f, s), zip(*[slope(*row) for row in rows], strict=True), strict=True):
        assert relative_error(ours, torch.stack(theirs)) < 1e-13


def test_vmap_over_a_bank():
    f, s = plain((4, 6, 3))
    bank = bank_of(9, 3)
    send = lambda f, s: echo_ext.echo_sample(f, s, bank=bank, seed=2)  # noqa: E731
    each = list(zip(f, s, strict=True))
    assert relative_error(vmap(send)(f, s), torch.stack([send(*row) for row in each])) < 1e-14
    slope = grad(lambda f, s: send(f, s).square().sum(), argnums=(0, 1))
    for ours, theirs in zip(vmap(slope)(f, s), zip(*[slope(*row) for row in each], strict=True), strict=True):
        assert relative_error(ours, torch.stack(theirs)) < 1e-13


def test_vmap_over_seeds_and_randomness():
    f, s = plain((6, 3))
    seeds = torch.arange(5)
    send = lambda seed: echo_ext.echo_sample(f, s, seed=seed)  # noqa: E731
    assert torch.equal(vmap(send)(seeds), torch.stack([send(seed) for seed in seeds]))
    draw = lambda f: echo_ext.echo_sample(f, s)  # noqa: E731
    batch = f.expand(4, 6, 3)
    assert vmap(draw, randomness="same")(batch).std(0).max() < 1e-15
    assert vmap(draw, randomness="different")(batch).std(0).min() > 0
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(batch)


def test_ensembles_of_channels():
    """Per-model gradients of stacked parameters, the usual use of vmap."""
    layer = torch.nn.Linear(4, 6).double()
    weights = {name: torch.randn(3, *p.shape, dtype=torch.float64) for name, p in layer.named_parameters()}
    x = torch.randn(8, 4, dtype=torch.float64)

    def loss(parameters):
        f, s = functional_call(layer, parameters, (x,)).chunk(2, dim=-1)
        return echo_ext.echo_sample(f.tanh(), 0.8 * s.sigmoid(), seed=1).square().sum()

    together = vmap(grad(loss))(weights)
    for i in range(3):
        alone = grad(loss)({name: value[i] for name, value in weights.items()})
        assert all(relative_error(together[name][i], alone[name]) < 1e-12 for name in alone)


def test_what_there_is_not_is_said(send):
    f, s = plain((5, 2))
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        jvp(lambda f: send(f, s), (f,), (f,))
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        hessian(lambda f: send(f, s).sum())(f)
    once = grad(lambda f: send(f, s).square().sum())
    with pytest.raises(RuntimeError, match="has no double backward"):
        grad(lambda f: once(f).square().sum())(f)

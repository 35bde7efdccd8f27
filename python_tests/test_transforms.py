"""Echo noise under the transforms of torch.func."""

import pytest
import torch
from echo_cases import SAMPLINGS, relative_error, signal_and_scale
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import echo_ext


def detached_bank(rows, width):
    return tuple(t.detach() for t in signal_and_scale((rows, width)))


def add_matrix_noise(f, s):
    return echo_ext.echo_sample_matrix(f, torch.diag_embed(s), seed=1)


CALLS = {
    **{name: lambda f, s, name=name: echo_ext.echo_sample(f, s, sampling=name, seed=1) for name in SAMPLINGS},
    "noise": lambda f, s: echo_ext.echo_noise(f, s, num_terms=3, seed=1),
    "matrix": add_matrix_noise,
}


@pytest.fixture(params=CALLS)
def add_noise(request):
    return CALLS[request.param]


def detached_inputs(shape):
    return tuple(t.detach() for t in signal_and_scale(shape))


def test_func_grad_matches_autograd(add_noise):
    f, s = signal_and_scale((6, 3))
    loss = lambda f, s: add_noise(f, s).square().sum()  # noqa: E731
    transformed = grad(loss, argnums=(0, 1))(f.detach(), s.detach())
    for ours, theirs in zip(transformed, torch.autograd.grad(loss(f, s), (f, s)), strict=True):
        assert relative_error(ours, theirs) < 1e-14


def test_vjp_matches_jacrev(add_noise):
    f, s = detached_inputs((5, 2))
    _, vjp_function = vjp(add_noise, f, s)
    weights = torch.randn_like(f)
    jacobian = jacrev(add_noise)(f, s)
    assert relative_error(vjp_function(weights)[0], torch.einsum("ij,ijkl->kl", weights, jacobian)) < 1e-13


@pytest.mark.parametrize(("in_dims", "shapes"), [((0, 0), ((4, 6, 3), (4, 6, 3))), ((2, None), ((6, 3, 4), (6, 3)))])
def test_vmap_matches_loop_with_fixed_seed(add_noise, in_dims, shapes):
    f, s = detached_inputs(shapes[0])[0], detached_inputs(shapes[1])[1]
    rows = [(f.select(in_dims[0], i), s if in_dims[1] is None else s.select(in_dims[1], i)) for i in range(4)]
    assert relative_error(vmap(add_noise, in_dims)(f, s), torch.stack([add_noise(*row) for row in rows])) < 1e-14
    gradient = grad(lambda f, s: add_noise(f, s).square().sum(), argnums=(0, 1))
    for ours, theirs in zip(
        vmap(gradient, in_dims)(f, s), zip(*[gradient(*row) for row in rows], strict=True), strict=True
    ):
        assert relative_error(ours, torch.stack(theirs)) < 1e-13


def test_vmap_with_bank():
    f, s = detached_inputs((4, 6, 3))
    bank = detached_bank(9, 3)
    add_noise = lambda f, s: echo_ext.echo_sample(f, s, bank=bank, seed=2)  # noqa: E731
    each = list(zip(f, s, strict=True))
    assert relative_error(vmap(add_noise)(f, s), torch.stack([add_noise(*row) for row in each])) < 1e-14
    gradient = grad(lambda f, s: add_noise(f, s).square().sum(), argnums=(0, 1))
    for ours, theirs in zip(vmap(gradient)(f, s), zip(*[gradient(*row) for row in each], strict=True), strict=True):
        assert relative_error(ours, torch.stack(theirs)) < 1e-13


def test_vmap_over_seeds_and_randomness_modes():
    f, s = detached_inputs((6, 3))
    seeds = torch.arange(5)
    add_noise = lambda seed: echo_ext.echo_sample(f, s, seed=seed)  # noqa: E731
    assert torch.equal(vmap(add_noise)(seeds), torch.stack([add_noise(seed) for seed in seeds]))
    draw = lambda f: echo_ext.echo_sample(f, s)  # noqa: E731
    batch = f.expand(4, 6, 3)
    assert vmap(draw, randomness="same")(batch).std(0).max() < 1e-15
    assert vmap(draw, randomness="different")(batch).std(0).min() > 0
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(batch)


def test_per_model_gradients_of_ensemble():
    """vmap over stacked parameters gives the gradients of each model of an ensemble."""
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


def test_unsupported_derivatives_raise(add_noise):
    f, s = detached_inputs((5, 2))
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        jvp(lambda f: add_noise(f, s), (f,), (f,))
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        hessian(lambda f: add_noise(f, s).sum())(f)
    once = grad(lambda f: add_noise(f, s).square().sum())
    with pytest.raises(RuntimeError, match="has no double backward"):
        grad(lambda f: once(f).square().sum())(f)

"""Shapes, sizes and initial weights of encoders and decoders, and the errors for shapes they do not support."""

import math

import pytest
import torch
from torch import nn

from echo_ext.models.networks import ACTIVATIONS, architecture_for, make_decoder, make_encoder, mlp


def parameters(*networks):
    return sum(p.numel() for network in networks for p in network.parameters())


def test_parameter_count_is_the_papers():
    pair = make_encoder("conv28", (1, 28, 28), 64), make_decoder("conv28", (1, 28, 28), 32)
    assert parameters(*pair) == 1_399_137  # 1.40e6


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("conv28", (1, 28, 28)), ("conv28", (3, 28, 28)), ("conv64", (1, 64, 64)), ("mlp", (2, 5, 3)), ("mlp", (7,))],
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_shapes(architecture, shape, outputs):
    x, z = torch.rand(2, *shape), torch.randn(2, 4)
    assert make_encoder(architecture, shape, 8)(x).shape == (2, 8)
    assert make_decoder(architecture, shape, 4, outputs=outputs)(z).shape == (2, outputs * shape[0], *shape[1:])


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 28, 28), "conv28"), ((1, 64, 64), "conv64"), ((1, 8, 8), "mlp"), ((28,), "mlp")]
)
def test_default_architecture(shape, expected):
    assert architecture_for(shape) == expected


def test_convolutions_reach_every_pixel():
    # Each latent affects every pixel and each pixel affects the code: no padding cuts off a border.
    for architecture, side in (("conv28", 28), ("conv64", 64)):
        shape = (1, side, side)
        x = torch.rand(4, *shape, dtype=torch.float64, requires_grad=True)
        make_encoder(architecture, shape, 6, activation="softplus").double()(x).square().sum().backward()
        assert (x.grad != 0).all()
        z = torch.randn(1, 3, dtype=torch.float64)
        net = make_decoder(architecture, shape, 3, activation="softplus").double()
        assert (net(z) != net(z + 1)).all()


def test_glorot_bounds():
    for network in (make_encoder("conv28", (1, 28, 28), 64), make_decoder("conv64", (1, 64, 64), 10), mlp(5, 300, 2)):
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                fans = sum(layer.weight.shape[:2]) * math.prod(layer.weight.shape[2:])
                bound = math.sqrt(6 / fans)
                assert layer.weight.abs().max() <= bound
                if layer.weight.numel() > 2000:
                    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
                assert not layer.bias.any()


def test_torch_initialization_has_biases():
    network = make_encoder("mlp", (4,), 3000, hidden=(2500,), activation="tanh", initialization="torch")
    for layer, inputs in zip((network[1][0], network[1][2]), (4, 2500), strict=True):
        for values in (layer.weight, layer.bias):
            bound = 1 / math.sqrt(inputs)
            assert values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    odd = make_encoder("mlp", (4,), 3, hidden=(20,), activation="tanh")
    x = torch.randn(5, 4)
    torch.testing.assert_close(odd(-x), -odd(x))  # what symmetric data cannot leave


def test_mlp_layers():
    network = mlp(3, 8, 5, 2, activation="tanh")
    assert [type(layer) for layer in network] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    x = torch.randn(4, 3)
    linear = make_encoder("mlp", (3,), 2, hidden=())
    torch.testing.assert_close(linear(x) + linear(-x), 2 * linear(torch.zeros(4, 3)))
    for name in ACTIVATIONS:
        assert mlp(3, 4, 2, activation=name)(x).shape == (4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv28", (1, 64, 64), 8), r"must be \(channels, 28, 28\) for .* 'conv28', got \(1, 64, 64\); .*'mlp'"),
        (("conv64", (10,), 8), r"must be \(channels, 64, 64\) for architecture 'conv64', got \(10,\)"),
        (("conv", (1, 28, 28), 8), "architecture must be one of 'conv28', 'conv64', 'mlp', got 'conv'"),
    ],
)
def test_bad_shapes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(*arguments)
    with pytest.raises(ValueError, match=message):
        make_decoder(*arguments)


def test_bad_options_raise():
    with pytest.raises(ValueError, match=r"activation must be one of .*'relu'.*, got 'rely'"):
        make_encoder("mlp", (3,), 2, activation="rely")
    with pytest.raises(ValueError, match=r"hidden must be a list or tuple of positive integers, got \(4, 0\)"):
        make_encoder("mlp", (3,), 2, hidden=(4, 0))
    with pytest.raises(ValueError, match=r"hidden must be None for architecture 'conv28', got \(4,\)"):
        make_encoder("conv28", (1, 28, 28), 2, hidden=(4,))

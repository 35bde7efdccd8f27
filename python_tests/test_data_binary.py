"""Binarization of images: the distribution of the pixels, and the values that they depend on."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from echo_ext import data
from echo_ext.data import datasets

SEED = 1234567


@pytest.fixture
def images():
    levels = torch.arange(256, dtype=torch.uint8).repeat(40, 1).view(40, 1, 16, 16)
    return data.ImageDataset(levels, torch.arange(40))


def test_random_numbers_are_splitmix64():
    # The first five outputs of the published generator for this seed.
    state = torch.tensor(SEED) + torch.arange(1, 6) * datasets._GOLDEN
    expected = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    assert [int(value) % 2**64 for value in datasets._mix(state)][:4] == list(expected)


def test_pixels_are_one_with_the_probability_of_their_level(images):
    seed = int(torch.randint(2**31, ()))
    drawn = data.binarize(images, "dynamic", seed=seed)
    epochs = []
    for epoch in range(50):
        drawn.set_epoch(epoch)
        epochs.append(drawn.values(slice(None)))
    draws = torch.stack(epochs).view(-1, 256)  # 2000 of every level
    assert set(draws.unique().tolist()) == {0, 1}
    probability = torch.arange(256) / 255
    assert torch.equal(draws.mean(0)[[0, 255]], torch.tensor([0.0, 1.0]))
    scores = (draws.mean(0) - probability)[1:-1] / (probability * (1 - probability) / len(draws))[1:-1].sqrt()
    # The 254 scores are nearly independent N(0, 1): their mean square is 1 with the standard error sqrt(2 / 254).
    assert scores.abs().max() < 5
    assert abs(float(scores.square().mean()) - 1) < 5 * (2 / 254) ** 0.5


def test_pixels_of_epochs_rows_and_places_are_independent():
    gray = data.ImageDataset(torch.full((200, 1, 10, 10), 51, dtype=torch.uint8), torch.zeros(200).long(), white=102)
    drawn = data.binarize(gray, "dynamic", seed=int(torch.randint(2**31, ())))
    epochs = []
    for epoch in range(2):
        drawn.set_epoch(epoch)
        epochs.append(2 * drawn.values(slice(None)).flatten(1) - 1)
    first, second = epochs
    other = 2 * data.binarize(gray, "static", seed=drawn.seed + 1).values(slice(None)).flatten(1) - 1
    pairs = [(first, second), (first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]
    for left, right in pairs:  # products of independent fair signs: mean 0, variance 1
        assert abs(float((left * right).mean())) < 5 / left.numel() ** 0.5


def test_pixels_depend_only_on_seed_epoch_row_and_place(images):
    drawn = data.binarize(images, "dynamic", seed=SEED)
    first = drawn.values(slice(None))
    drawn.set_epoch(3)
    third = drawn.values(slice(None))
    assert not torch.equal(first, third)
    order = torch.randperm(40)
    assert torch.equal(drawn[order][0], third[order])
    assert torch.equal(drawn[order][1], order)
    assert torch.equal(torch.stack([drawn[row][0] for row in range(40)]), third)
    assert torch.equal(drawn.select(order).select(slice(5, 9)).values(slice(None)), third[order[5:9]])
    assert torch.equal(drawn.to("cpu")[7][0], third[7])
    assert torch.equal(pickle.loads(pickle.dumps(drawn))[:][0], third)
    drawn.set_epoch(0)
    assert torch.equal(drawn.values(slice(None)), first)
    assert not torch.equal(data.binarize(images, "dynamic", seed=SEED + 1).values(slice(None)), first)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**70])
def test_any_integer_is_a_valid_seed(images, seed):
    drawn = data.binarize(images, "static", seed=seed).values(slice(None))
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(drawn, data.binarize(images, "static", seed=seed + 1).values(slice(None)))


def test_loader_workers_have_the_same_pixels(images):
    drawn = data.binarize(images, "dynamic", seed=SEED)
    drawn.set_epoch(2)
    loaded = torch.cat([x for x, _ in DataLoader(drawn, batch_size=16, num_workers=1, timeout=60)])
    assert torch.equal(loaded, drawn.values(slice(None)))


def test_static_pixels_do_not_change(images):
    drawn = data.binarize(images, "static", seed=SEED)
    first = drawn.values(slice(None))
    drawn.set_epoch(5)
    assert torch.equal(drawn.values(slice(None)), first)
    assert drawn.binary
    assert data.binarize(drawn, "dynamic") is drawn


def test_binary_images_and_how_none_are_returned_unchanged(images):
    assert data.binarize(images, "none") is images
    black_and_white = data.ImageDataset(torch.randint(2, (4, 1, 3, 3), dtype=torch.uint8), torch.zeros(4), white=1)
    assert data.binarize(black_and_white, "dynamic") is black_and_white


def test_load_redraws_only_training_pixels():
    pytest.importorskip("sklearn")
    gray = data.load("digits")
    drawn = data.load("digits", binarization="dynamic", seed=5)
    again = data.load("digits", binarization="dynamic", seed=5)
    before = {part: rows.values(slice(None)) for part, rows in drawn.items()}
    for part, rows in drawn.items():
        assert torch.equal(rows.labels, gray[part].labels)
        assert torch.equal(before[part], again[part].values(slice(None)))
        rows.set_epoch(1)
    changed = {part: not torch.equal(rows.values(slice(None)), before[part]) for part, rows in drawn.items()}
    assert changed == {"train": True, "valid": False, "test": False}
    static = data.load("digits", binarization="static", seed=5)
    assert torch.equal(static["train"].values(slice(None)), before["train"])


def test_bad_binarizations_raise(images):
    with pytest.raises(ValueError, match="binarization must be one of 'none', 'static', 'dynamic', got 'daily'"):
        data.binarize(images, "daily")
    with pytest.raises(ValueError, match="got 'daily'"):
        data.load("digits", binarization="daily")
    with pytest.raises(TypeError, match="dataset must be an ImageDataset to be binarized, got MixtureDataset"):
        data.load("gmm2d", binarization="static")

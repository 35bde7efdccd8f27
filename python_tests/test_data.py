"""Data sets by name: their content, and the errors for missing and damaged folders and files."""

import gzip
import re
import sys

import numpy as np
import pytest
import torch
from data_cases import REAL, away_from_all_data, idx, needs_real_files, write_idx
from torch.utils.data import DataLoader

from echo_ext import cli, data
from echo_ext.data import catalog, mixtures, principal


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    away_from_all_data(monkeypatch, tmp_path)


def test_digits_parts_have_their_sizes_and_values():
    pytest.importorskip("sklearn")
    parts = data.load("digits")
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 1297, "valid": 200, "test": 300}
    x, labels = parts["train"][:]
    assert x.shape == (1297, 1, 8, 8)
    assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(10))
    for rows in parts.values():  # all digits are about equally frequent in every part
        assert torch.bincount(rows.labels).min() > 0.06 * len(rows)
    assert torch.equal(x, data.load("digits")["train"][:][0])


def test_dataset_returns_rows_slices_and_batches():
    levels = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
    dataset = data.ImageDataset(levels, torch.arange(6), white=23)
    x, label = dataset[5]
    assert x.shape == dataset.data_shape == (1, 2, 2)
    assert torch.equal(x, torch.tensor([[[20, 21], [22, 23]]]) / 23)
    assert label == 5
    assert torch.equal(dataset[torch.tensor([4, 0])][1], torch.tensor([4, 0]))
    batches = list(DataLoader(dataset, batch_size=4))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 1, 2, 2), (2, 1, 2, 2)]
    assert torch.equal(torch.cat([x for x, _ in batches]), dataset[:][0])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("subfolder", [True, False])
@pytest.mark.parametrize("by_variable", [True, False])
def test_idx_files_are_found_in_every_layout(tmp_path, monkeypatch, name, packed, subfolder, by_variable):
    how = {} if packed else {"pack": bytes, "suffix": ""}
    arrays = write_idx(tmp_path / name if subfolder else tmp_path, **how)
    if by_variable:
        monkeypatch.setenv("ECHO_EXT_DATA", str(tmp_path))
    parts = data.load(name, None if by_variable else tmp_path)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 15, "valid": 3, "test": 5}
    images = torch.from_numpy(arrays["train-images-idx3-ubyte"]).unsqueeze(1) / 255
    assert torch.equal(torch.cat([parts["train"][:][0], parts["valid"][:][0]]), images)
    assert parts["test"][:][1].tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fashion-mnst", "fashion-mnist, "),
        ("dsprite", "dsprites, dsprites-dependent"),
        ("mnst", "mnist"),
        ("?", ", ".join(data.names())),
    ],
)
def test_unknown_name_suggests_similar_ones(name, near):
    with pytest.raises(ValueError, match=rf"no data set {re.escape(repr(name))}; the most similar are {near}"):
        data.load(name)


def test_missing_folder_error_names_the_options():
    with pytest.raises(FileNotFoundError, match=r"https://github.com/zalandoresearch.*--data-dir.*ECHO_EXT_DATA"):
        data.load("fashion-mnist")


def test_missing_folder_and_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'nowhere'} does not exist")):
        data.load("mnist", tmp_path / "nowhere")
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=rf"t10k-labels-idx1-ubyte.gz .*of mnist.* in {re.escape(str(tmp_path))}.*by hand from https://",
    ):
        data.load("mnist", tmp_path)


def test_folder_of_another_data_set_is_refused(tmp_path):
    write_idx(tmp_path / "fashion-mnist")
    with pytest.raises(FileNotFoundError, match="must be the data folder for mnist, but looks like that of fashion-mn"):
        data.load("mnist", tmp_path / "fashion-mnist")


def test_modified_published_file_is_named(tmp_path):
    # A file of the length of the published one must be the published one.
    write_idx(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(10_000, np.uint8))))
    with pytest.raises(ValueError, match=r"is not the file of mnist: it has the length .* another SHA-256") as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)


def damaged(change):
    return lambda content: gzip.compress(change(content))


@pytest.mark.parametrize(
    ("pack", "complaint"),
    [
        (lambda content: gzip.compress(content)[:-20], "is not a whole gzip file"),
        (lambda content: content, "is not a whole gzip file"),
        (damaged(lambda content: b"\0\0\x0d" + content[3:]), "must begin with 00000803, got 00000d03"),
        (damaged(lambda content: b""), "must begin with 00000803, got $"),
        (damaged(lambda content: content[:9]), "truncated: its header must have 16 bytes, got 9"),
        (damaged(lambda content: content[:-7]), "announces 18 x 28 x 28 = 14112 bytes, but 14105 follow"),
        (damaged(lambda content: content + b"x"), "announces 18 x 28 x 28 = 14112 bytes, but 14113 follow"),
    ],
)
def test_damaged_file_is_named_with_the_reason(tmp_path, pack, complaint):
    arrays = write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(pack(idx(arrays["train-images-idx3-ubyte"])))
    with pytest.raises(ValueError, match=complaint) as error:
        data.load("mnist", tmp_path)
    assert str(path) in str(error.value)


def test_images_without_labels_are_refused(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    with pytest.raises(ValueError, match="labels must have one label for each of 5 rows, got 4"):
        data.load("mnist", tmp_path)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'echo-ext\[demo\]'"):
        data.load("digits")


# ---- Vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(mixtures.MIXTURES))
def test_mixtures_have_their_distribution(name):
    mixture = mixtures.MIXTURES[name]
    parts = data.load(name)
    components, columns = mixture.means.shape
    assert parts["train"].data_shape == (columns,)
    x, labels = parts["train"][:]
    assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
    rows = len(x)
    # The weights, means and variances agree within five standard errors.
    share = torch.bincount(labels, minlength=components) / rows
    assert (share - 1 / components).abs().max() < 5 * (1 / components / rows) ** 0.5
    noise = (x - mixture.means[labels]) / mixture.sigma
    assert noise.mean(0).abs().max() < 5 * rows**-0.5
    assert (noise.square().mean() - 1).abs() < 5 * (2 / (rows * columns)) ** 0.5
    # The estimate lies between the pairwise bounds on the entropy of a mixture (Kolchinsky & Tracey 2017), which
    # depend on the Bhattacharyya and the Kullback-Leibler distances of the components.
    noise_entropy = columns * (np.log(mixture.sigma) + 0.5 * np.log(2 * np.pi * np.e))
    squares = torch.cdist(mixture.means, mixture.means).square() / mixture.sigma**2
    low, high = (float(noise_entropy - (-squares / scale).exp().mean(1).log().mean()) for scale in (8, 2))
    estimate = -mixture.log_prob(x)
    error = 5 * float(estimate.std()) * rows**-0.5
    assert low - error < float(estimate.mean()) < high + error
    assert torch.equal(x, data.load(name)["train"][:][0])


def test_means_are_those_of_the_published_code():
    plane, space = (mixtures.MIXTURES[name].means for name in ("gmm2d", "gmm20d"))
    fifth = np.exp(2j * np.pi / 5) ** np.arange(4)
    np.testing.assert_allclose(plane, [[0, 0], *zip(fifth.real, fifth.imag, strict=True)], atol=1e-12)
    assert torch.equal(space[:, :2], plane)
    expected = np.linspace(-50, 50, 100).reshape(5, 20)
    np.testing.assert_allclose(space[:, 2:], expected[:, 2:])


@pytest.mark.parametrize("name", sorted(mixtures.MIXTURES))
def test_mixtures_draw_fresh_training_rows_in_each_epoch(name):
    parts, again = data.load(name), data.load(name)
    before = {part: rows[:] for part, rows in parts.items()}
    for rows in parts.values():
        rows.set_epoch(3)
    changed = {part: not torch.equal(rows.values(slice(None)), before[part][0]) for part, rows in parts.items()}
    assert changed == {"train": True, "valid": False, "test": False}
    x, labels = parts["train"][:]
    mixture = mixtures.MIXTURES[name]
    assert ((x - mixture.means[labels]) / mixture.sigma).std() == pytest.approx(1, abs=0.05)
    again["train"].set_epoch(3)
    assert torch.equal(again["train"].values(slice(None)), x)
    again["train"].set_epoch(0)
    for found, expected in zip(again["train"][:], before["train"], strict=True):
        assert torch.equal(found, expected)


def test_selections_of_fresh_rows_are_those_of_the_whole():
    parts = data.load("gmm2d")
    train, order = parts["train"], torch.randperm(10_000)
    chosen = train.select(order).to("cpu").select(slice(5, 50))
    joined = train.joined(parts["valid"])
    assert torch.equal(joined.values(slice(10_000, None)), parts["valid"].values(slice(None)))
    for each in (chosen, joined):
        each.set_epoch(2)
    assert torch.equal(train.values(slice(None)), data.load("gmm2d")["train"].values(slice(None)))
    train.set_epoch(2)
    for found, expected in zip(chosen[:], train[order[5:50]], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(joined.values(slice(10_000)), train.values(slice(None)))
    assert not (joined.values(slice(10_000, None)) == parts["valid"].values(slice(None))).any()
    joined.set_epoch(0)
    assert torch.equal(joined.labels[10_000:], parts["valid"].labels)


def test_ten_states_are_one_hot_and_equally_frequent():
    for part in data.load("ten-states").values():
        x, labels = part[:]
        assert torch.equal(x.argmax(1), labels)
        torch.testing.assert_close(x.sum(0), torch.full((10,), len(x) / 10))
        assert torch.equal(x.sum(1), torch.ones(len(x)))


def test_mixture_density_integrates_to_one():
    grid = torch.linspace(-3, 3, 301, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    density = mixtures.MIXTURES["gmm2d"].log_prob(points).exp()
    assert float(density.sum() * 0.02**2) == pytest.approx(1, abs=1e-9)


def test_principal_axes_of_a_known_covariance():
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    scores = torch.randn(500, 6, dtype=torch.float64)
    scores = torch.linalg.qr(scores - scores.mean(0)).Q * torch.tensor([8.0, 5, 3, 2, 1, 0.5], dtype=torch.float64)
    pca = principal.fit_pca(scores @ basis.T + 7, 3)
    mean, axes, shares = map(torch.from_numpy, (pca.mean_, pca.components_.T, pca.explained_variance_ratio_))
    torch.testing.assert_close(mean, torch.full((6,), 7.0, dtype=torch.float64))
    torch.testing.assert_close((axes * basis[:, :3]).sum(0).abs(), torch.ones(3, dtype=torch.float64))
    variances = torch.tensor([64.0, 25, 9, 4, 1, 0.25], dtype=torch.float64)
    torch.testing.assert_close(shares, variances[:3] / variances.sum())
    assert axes.gather(0, axes.abs().argmax(0, keepdim=True)).min() > 0


def test_projection_preserves_distances(tmp_path):
    write_idx(tmp_path / "fashion-mnist", train=24)
    images, vectors = data.load("fashion-mnist", tmp_path), data.load("fashion-pca20", tmp_path)
    assert vectors["test"].data_shape == (20,)
    # 20 training rows span 19 dimensions, so the projection keeps their distances.
    torch.testing.assert_close(
        torch.pdist(vectors["train"][:][0]), torch.pdist(images["train"][:][0].flatten(1)), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(vectors["test"].labels, images["test"].labels)
    torch.testing.assert_close(vectors["train"][:][0].mean(0), torch.zeros(20), rtol=0, atol=1e-5)


@needs_real_files
def test_twenty_axes_have_the_variance_of_the_paper():
    x = data.load("fashion-mnist", REAL)["train"][:][0].flatten(1)
    assert float(principal.fit_pca(x, 20).explained_variance_ratio_.sum()) == pytest.approx(0.785, abs=5e-4)


# ---- The catalog ---------------------------------------------------------------------------------------------------

EMBEDDED = {name for name, entry in catalog.CATALOG.items() if not entry.files}


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_catalog_agrees_with_generated_data(name):
    check_entry(name, data.load(name))


@needs_real_files
@pytest.mark.filterwarnings("ignore:these images of dSprites are rendered")
@pytest.mark.parametrize("name", sorted(set(catalog.CATALOG) - EMBEDDED - {"celeba"}))
def test_catalog_agrees_with_the_real_files(name):
    parts = data.load(name, REAL)
    check_entry(name, parts)
    if "dsprites" in name:
        rows = torch.cat([part.rows for part in parts.values()])
        assert len(rows.unique()) == len(rows)
    elif name == "omniglot":
        assert set(torch.cat([part.labels for part in parts.values()]).tolist()) == set(range(50))
    else:
        assert all(set(part.labels.tolist()) == set(range(10)) for part in parts.values())


def check_entry(name, parts):
    entry = catalog.CATALOG[name]
    assert tuple(map(len, parts.values())) == entry.rows
    assert list(parts) == ["train", "valid", "test"]
    for part in parts.values():
        x, label = part[torch.tensor([1, 0])]
        assert x.shape == (2, *entry.data_shape)
        assert part.data_shape == entry.data_shape
        assert (x.dtype, label.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x[1], part[0][0])
        if len(entry.data_shape) == 3:
            assert x.min() >= 0
            assert x.max() <= 1
        assert not part.binary or set(x.unique().tolist()) == {0, 1}


def test_command_lists_every_data_set_and_its_files(tmp_path, capsys):
    pytest.importorskip("sklearn")
    write_idx(tmp_path / "mnist")
    assert cli.main(["data", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::3]] == data.names()
    entries = dict(zip(data.names(), zip(lines[::3], lines[1::3], lines[2::3], strict=True), strict=True))
    assert "1 x 28 x 28, 50000 / 10000 / 10000 rows" in entries["mnist"][0]
    assert f"found: {tmp_path / 'mnist' / 'train-images-idx3-ubyte.gz'}" in entries["mnist"][2]
    assert "license: MIT" in entries["fashion-mnist"][1]
    assert "not found; will be downloaded: https://github.com/zala" in entries["fashion-mnist"][2]
    assert "not found; will be downloaded, or else rendered when it is loaded" in entries["dsprites"][2]


def test_command_refuses_a_missing_folder(tmp_path, capsys):
    assert cli.main(["data", "--data-dir", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"echo-ext data: error: the data folder {tmp_path / 'nowhere'} does not exist\n"

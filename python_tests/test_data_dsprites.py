"""dSprites: the geometry of the shapes, the grid of factors, the subset with dependent factors, and the files."""

import itertools
import math
import zipfile

import numpy as np
import pytest
import torch
from data_cases import REAL, away_from_all_data, needs_real_files

from echo_ext import data
from echo_ext.data import dsprites, sprites

SQUARE, ELLIPSE, HEART = range(3)
RENDERED = "images of dSprites are rendered; 38 of 363 .* differ .*https://github.com/google-deepmind/dsprites-dataset"
EVERY = list(itertools.product(range(3), range(6), range(40)))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    return away_from_all_data(monkeypatch, tmp_path)


def frames(shape, scale, orientation):
    return np.unpackbits(sprites.render(shape, scale, orientation), axis=2).reshape(32, 32, 64, 64).astype(bool)


def some(count):
    return [tuple(int(torch.randint(size, ())) for size in (6, 40)) for _ in range(count)]


# ---- Geometry --------------------------------------------------------------------------------------------------------


def moments(pixels):
    """The area, center (x, y) and second central moments of a white shape made of unit squares."""
    y, x = np.nonzero(pixels)
    points = np.stack([x + 0.5, y + 0.5])
    return len(x), points.mean(1), np.cov(points, bias=True)


@pytest.mark.parametrize("scale", range(6))
def test_squares_have_their_area_and_center(scale):
    side = 2 * 9.599 * sprites.SCALES[scale]
    for orientation in (0, 3, 17, 30):
        shown = frames(SQUARE, scale, orientation)
        areas = shown.sum((2, 3))
        # The mean over positions is the mean number of lattice points in a randomly placed square, which is its area.
        assert areas.mean() == pytest.approx(side**2, rel=0.02)
        assert abs(areas - side**2).max() < 4 * side
        for column, row in ((0, 31), (13, 7)):
            _, center, covariance = moments(shown[column, row])
            wanted = 16 + 32 * sprites.POSITIONS[[column, row]]
            assert center == pytest.approx(wanted, abs=0.5)
            assert np.diag(covariance) == pytest.approx(side**2 / 12, rel=0.15)


def test_ellipses_have_their_axes_and_rotate_counterclockwise():
    for orientation in range(0, 39, 4):
        area, _, covariance = moments(frames(ELLIPSE, 5, orientation)[16, 16])
        assert area == pytest.approx(math.pi * 12.77 * 7.21, rel=0.03)
        small, large = np.linalg.eigvalsh(covariance)  # the variances of an ellipse are its squared half axes over 4
        assert (2 * large**0.5, 2 * small**0.5) == pytest.approx((12.77, 7.21), rel=0.03)
        # Row numbers increase downward, so a counterclockwise rotation has a negative angle.
        angle = 0.5 * math.atan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1])
        assert math.remainder(angle + sprites.ORIENTATIONS[orientation], math.pi) == pytest.approx(0, abs=0.05)


def test_hearts_have_a_notch_above_and_a_tip_below():
    heart = frames(HEART, 5, 0)[0, 0]  # centered at (16, 16)
    assert np.array_equal(heart[:, :32], heart[:, 31::-1])
    rows = np.flatnonzero(heart.any(1))
    assert heart[rows[0], 15:17].sum() == 0
    assert heart[rows[0]].sum() > 0
    assert heart[rows[-1]].sum() == heart[rows[-1], 15:17].sum() > 0
    widths = heart.sum(1)
    assert widths.argmax() < 16


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_shapes_are_symmetric_about_the_middle_of_the_grid(shape):
    upright = frames(shape, 3, 0)
    assert np.array_equal(upright[::-1, :, :, ::-1], upright)
    if shape == HEART:
        return
    for scale, orientation in some(3):  # squares and ellipses are symmetric under half a turn
        shown = frames(shape, scale, orientation)
        assert (shown[::-1, ::-1, ::-1, ::-1] != shown).mean() < 1e-5


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_last_orientation_equals_the_first(shape):
    # The angles are 2 pi and 0 up to rounding, so pixels on the edge may differ.
    assert (frames(shape, 2, 39) != frames(shape, 2, 0)).mean() < 1e-5


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_shapes_grow_with_their_scale_and_stay_inside(shape):
    orientation = int(torch.randint(40, ()))
    shown = [frames(shape, scale, orientation) for scale in range(6)]
    for smaller, larger in itertools.pairwise(shown):
        assert not (smaller & ~larger).any()  # all three are star-shaped around their center
        assert (larger.sum((2, 3)) > smaller.sum((2, 3))).all()
    edges = shown[-1][..., [0, 63], :].any() or shown[-1][..., :, [0, 63]].any()
    assert not edges


def test_position_steps_shift_the_shape():
    # 31 steps are exactly 32 pixels.
    for shape, (scale, orientation) in itertools.product(range(3), some(2)):
        shown = frames(shape, scale, orientation)
        assert np.array_equal(shown[31, 5][:, 32:], shown[0, 5][:, :32])
        assert np.array_equal(shown[5, 31][32:], shown[5, 0][:32])


@needs_real_files
def test_frames_equal_the_rebuilt_ones():
    with np.load(f"{REAL}/dsprites/{dsprites.REBUILT}") as arrays:
        rebuilt = arrays["images_packed"]
    for index in torch.randperm(len(EVERY))[:24].tolist():
        assert np.array_equal(sprites.render(*EVERY[index]), rebuilt[EVERY[index]])


@pytest.mark.slow
@needs_real_files
def test_all_frames_equal_the_rebuilt_ones():
    with np.load(f"{REAL}/dsprites/{dsprites.REBUILT}") as arrays:
        rebuilt = arrays["images_packed"]
    assert all(np.array_equal(sprites.render(*index), rebuilt[index]) for index in EVERY)


# ---- The data set ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered():
    """A grid whose frames have the number of their row in their first 32 pixels."""
    bits = np.zeros((737280, 512), dtype=np.uint8)
    bits[:, :4] = np.arange(737280, dtype=">u4").view(np.uint8).reshape(-1, 4)
    return data.DSprites(torch.from_numpy(bits))


def test_rows_have_their_pixels_factors_and_labels(numbered):
    rows = torch.randint(737280, (50,))
    x, labels = numbered[rows]
    assert x.shape == (50, 1, 64, 64)
    powers = 2.0 ** torch.arange(31, -1, -1, dtype=torch.float64)
    assert torch.equal((x.flatten(1)[:, :32].double() @ powers).long(), rows)
    factors = numbered.select(rows).factors
    assert torch.equal(labels, factors[:, 0])
    strides = torch.tensor([6 * 40 * 1024, 40 * 1024, 1024, 32, 1])
    assert torch.equal((factors * strides).sum(1), rows)
    assert torch.equal(numbered[int(rows[3])][0], x[3])
    chosen = numbered.select(rows)
    assert torch.equal(chosen.select(slice(7, 11))[:][0], x[7:11])
    assert chosen.bits is numbered.bits
    assert torch.equal(chosen.whole().rows, numbered.rows)


def test_dependent_factors_agree_with_the_paper(numbered):
    subset = numbered.select(dsprites.dependent_rows())
    assert len(subset) / len(numbered) == pytest.approx(0.15, abs=0.005)
    assert dsprites.factor_total_correlation(subset.factors) == pytest.approx(1.49, abs=0.005)
    assert dsprites.factor_total_correlation(numbered.factors) == pytest.approx(0, abs=1e-9)
    # A pair of bins of two factors either occurs as the other exclusions allow, or not at all.
    bins = subset.factors * 4 // torch.tensor([4, 6, 40, 32, 32])
    missing = 0
    for first, second in itertools.combinations(range(5), 2):
        counts = torch.zeros(4, 4).index_put_((bins[:, first], bins[:, second]), torch.tensor(1.0), accumulate=True)
        missing += int((counts[: 3 if first == 0 else 4] == 0).sum())
    pairs = 4 * 12 + 6 * 16
    assert abs(missing - 0.15 * pairs) < 5 * (pairs * 0.15 * 0.85) ** 0.5
    assert missing > 0


def test_factor_total_correlation_is_a_divergence():
    table = torch.randint(2, (3, 4, 5)).bool()
    table[0, 0, 0] = True
    factors = table.nonzero()
    joint = table.double() / table.sum()
    product = torch.einsum("a,b,c->abc", joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1)))
    divergence = (joint[table] * (joint / product)[table].log()).sum()
    assert dsprites.factor_total_correlation(factors) == pytest.approx(float(divergence), abs=1e-12)


def test_no_exclusion_keeps_all_rows():
    assert torch.equal(dsprites.dependent_rows(exclude=0), torch.arange(737280))
    assert len(dsprites.dependent_rows(exclude=1)) == 0


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_images_are_rendered_once_and_cached(monkeypatch, cache):
    drawn = []

    def render(*index):
        drawn.append(index)
        return np.full((32, 32, 512), len(drawn) % 256, np.uint8)

    monkeypatch.setattr(sprites, "render", render)
    with pytest.warns(UserWarning, match=RENDERED):
        parts = data.load("dsprites")
    assert drawn == EVERY
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 663552, "valid": 36864, "test": 36864}
    rows = torch.cat([part.rows for part in parts.values()])
    assert torch.equal(rows.sort().values, torch.arange(737280))
    assert [path.name for path in (cache / "dsprites").iterdir()] == [dsprites.REBUILT]
    with pytest.warns(UserWarning, match=RENDERED):
        again = data.load("dsprites-dependent")
    assert len(drawn) == len(EVERY)
    assert torch.equal(again["train"].bits, parts["train"].bits)
    assert set(again["valid"].rows.tolist()) <= set(dsprites.dependent_rows().tolist())


def test_unwritable_cache_warns(monkeypatch, tmp_path):
    monkeypatch.setattr(sprites, "render", lambda *_: np.zeros((32, 32, 512), np.uint8))
    (tmp_path / "cache").write_text("a file where the folder should be")
    saved = pytest.warns(UserWarning, match="dSprites could not be saved and will be rendered again")
    with pytest.warns(UserWarning, match=RENDERED), saved:
        assert len(data.load("dsprites")["test"]) == 36864


def write_original(path, *, rows=737280, keep=None):
    """Write a file in the format of the original, whose images have as many white pixels as their row modulo 97."""
    images = [b"\1" * white + bytes(4096 - white) for white in range(97)]
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("imgs.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 64, 64)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows if keep is None else keep, 4096):
            file.write(b"".join(images[row % 97] for row in range(start, min(start + 4096, keep or rows))))


@pytest.mark.slow
def test_original_format_is_read(tmp_path):
    write_original(tmp_path / dsprites.ORIGINAL.name)
    part = data.load("dsprites", tmp_path)["valid"]
    white = torch.cat([part[rows][0].sum((1, 2, 3)) for rows in torch.arange(len(part)).split(1024)])
    assert torch.equal(white.long(), part.rows % 97)


@pytest.mark.parametrize("how", ["short", "other shape", "cut", "text"])
def test_damaged_original_is_named(tmp_path, how):
    path = tmp_path / dsprites.ORIGINAL.name
    write_original(path, rows=4096 if how == "other shape" else 737280, keep=8192)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif how == "text":
        path.write_text("not found")
    with pytest.raises(ValueError, match="is not a whole dSprites file") as error:
        data.load("dsprites", tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [4096, 4097, 8191, 8193])
def test_truncated_last_chunk_is_not_broadcast(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(dsprites, "_ROWS", 8192)
    write_original(tmp_path / dsprites.ORIGINAL.name, rows=8192, keep=keep)
    with pytest.raises(ValueError, match="is not a whole dSprites file"):
        data.load("dsprites", tmp_path)


def test_rebuilt_file_of_another_shape_is_named(tmp_path):
    np.savez(tmp_path / dsprites.REBUILT, images_packed=np.zeros((3, 6, 40, 8, 512), np.uint8))
    wrong = pytest.raises(ValueError, match=r"'images_packed' must be numbers of shape 3 x 6 x 40 x 32 x 32 x 512")
    with pytest.warns(UserWarning, match=RENDERED), wrong:
        data.load("dsprites", tmp_path)


def test_original_is_preferred_to_rendered_images(tmp_path, monkeypatch, cache):
    (tmp_path / "dsprites").mkdir()
    (tmp_path / "dsprites" / dsprites.REBUILT).write_bytes(b"rendered")
    cache.joinpath("dsprites").mkdir(parents=True)
    (cache / "dsprites" / dsprites.ORIGINAL.name).write_bytes(b"original")
    read = []
    monkeypatch.setattr(dsprites, "_read_original", lambda path: read.append(path) or np.zeros((737280, 512), np.uint8))
    assert len(data.load("dsprites", tmp_path)["test"]) == 36864
    assert read == [cache / "dsprites" / dsprites.ORIGINAL.name]


def test_missing_folder_is_an_error_without_a_warning(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.load("dsprites", tmp_path / "nowhere")

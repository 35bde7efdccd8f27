"""The geometry of dSprites, from which all frames of the data set are rendered.

A 64 x 64 frame shows one white shape, which is scaled, rotated counterclockwise and shifted (Matthey et al. 2017,
"dSprites: Disentanglement testing Sprites dataset"). A pixel is white if its center lies inside the shape. The numbers
were fitted to the original. Of 363 original frames 325 are rendered exactly, and none differs in more than 5 pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["ORIENTATIONS", "POSITIONS", "SCALES", "SHAPES", "SIDE", "render"]

SIDE = 64
SHAPES = ("square", "ellipse", "heart")
SCALES = np.linspace(0.5, 1, 6)
ORIENTATIONS = np.linspace(0, 2 * np.pi, 40)  # the last orientation equals the first, as in the original
POSITIONS = np.linspace(0, 1, 32)

_SQUARE_HALF = 9.599
_ELLIPSE_AXES = (12.77, 7.21)
_REACH = 14.0  # maximum distance from the center of any shape of scale 1

# The right half of the heart in polar coordinates around a point 2 above the center: radii at equally spaced angles
# from straight up to straight down, which a natural cubic spline interpolates.
_HEART_CENTER = -2.0
_HEART_RADII = np.array(
    (
        *(2.9236411714518273, 3.9374391071581782, 4.876163537759159, 5.712260809880995, 6.473370884677814),
        *(7.161682139899272, 7.779544761572632, 8.288110667734493, 8.712687130681577, 9.080585932133522),
        *(9.377860978974399, 9.60613485533174, 9.803449858394508, 9.951788888172292, 10.03783941638973),
        *(10.089027652979636, 10.081518240689222, 10.03734317026927, 9.949134836528524, 9.805665151873),
        *(9.643280616474122, 9.44184798421177, 9.207672250197255, 8.966768066039267, 8.71664686559974),
        *(8.454542386135882, 8.231528158496298, 8.007667433961192, 7.839348109338437, 7.677962381521895),
        *(7.55750145115333, 7.4558159221607445, 7.401381622526839, 7.362260016415908, 7.371599141844586),
        *(7.410482205076002, 7.529205901080949, 7.584640955907685, 7.816824463237241, 8.004895126932244),
        *(8.334687746818744, 8.7049501983866, 9.303097995102535, 9.998170551288762, 11.607767970135674),
    )
)

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def render(shape: int, scale: int, orientation: int) -> npt.NDArray[np.uint8]:
    """Render all frames of one shape, scale and orientation.

    Args:
        shape: Index into ``SHAPES``.
        scale: Index into ``SCALES``.
        orientation: Index into ``ORIENTATIONS``.

    Returns:
        The packed frames: (32 positions in x, 32 positions in y, 512 bytes of 8 pixels each).
    """
    size = float(SCALES[scale])
    angle = float(ORIENTATIONS[orientation])
    # Only the pixels of a box around the center are computed; x and y have the same box.
    centers = 16 + 32 * POSITIONS
    pixels = np.floor(centers - _REACH * size).astype(np.intp)[:, None] + np.arange(2 * math.ceil(_REACH * size) + 1)
    offsets = (pixels + 0.5 - centers[:, None]) / size  # (positions, box)
    x, y = offsets[:, None, None, :], offsets[None, :, :, None]
    cosine, sine = math.cos(angle), math.sin(angle)
    white = _CONTAINS[shape](cosine * x - sine * y, sine * x + cosine * y)

    frames = np.zeros((len(POSITIONS), len(POSITIONS), SIDE, SIDE), dtype=np.bool_)
    for i, columns in enumerate(pixels):
        for j, rows in enumerate(pixels):
            frames[i, j, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = white[i, j]
    return np.packbits(frames.reshape(*frames.shape[:2], -1), axis=2)


def _in_square(x: Array, y: Array) -> Mask:
    return (np.abs(x) <= _SQUARE_HALF) & (np.abs(y) <= _SQUARE_HALF)


def _in_ellipse(x: Array, y: Array) -> Mask:
    inside: Mask = np.hypot(x / _ELLIPSE_AXES[0], y / _ELLIPSE_AXES[1]) <= 1
    return inside


def _in_heart(x: Array, y: Array) -> Mask:
    across, down = np.abs(x), y - _HEART_CENTER
    step = np.pi / (len(_HEART_RADII) - 1)
    position = (np.arctan2(down, across) + np.pi / 2) / step
    piece = np.minimum(position.astype(np.intp), len(_HEART_RADII) - 2)
    after = position - piece
    before = 1 - after
    radius = before * _HEART_RADII[piece] + after * _HEART_RADII[piece + 1]
    radius += (before**3 - before) * _HEART_BENDS[piece] + (after**3 - after) * _HEART_BENDS[piece + 1]
    inside: Mask = np.hypot(across, down) <= radius
    return inside


def _bends(values: Array) -> Array:
    """One sixth of the second derivative of the natural cubic spline through values at unit steps."""
    inner = len(values) - 2
    system = 4 * np.eye(inner) + np.eye(inner, k=1) + np.eye(inner, k=-1)
    return np.pad(np.linalg.solve(system, np.diff(values, 2)), 1)


_HEART_BENDS = _bends(_HEART_RADII)
_CONTAINS = (_in_square, _in_ellipse, _in_heart)

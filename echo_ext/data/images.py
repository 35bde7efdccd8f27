"""Reading of PNG and JPEG images with Pillow, which are checked before they are decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from echo_ext import _checks
from echo_ext.data._files import InvalidFile, parsing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "central_square", "channels_first", "opened"]

SUFFIXES = (".png", ".jpg", ".jpeg")
# What the modes of Pillow are converted to: gray levels, or RGB.
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
_CHANNELS = {"L": 1, "RGB": 3}


@contextlib.contextmanager
def opened(file: Path | IO[bytes], where: object) -> Iterator[tuple[Image, tuple[int, int, int]]]:
    """Open an image, whose pixels are decoded only when they are used; yield it with (channels, height, width).

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        ValueError: The image has an alpha channel or unusual colors, or is damaged; ``where`` is its name.
    """
    _checks.installed("PIL", purpose=f"reading {where}")
    from PIL import Image

    with parsing(f"{where} is not a whole image"), Image.open(file, formats=("PNG", "JPEG")) as image:
        if image.has_transparency_data:
            raise InvalidFile(f"{where} must have no alpha channel, got mode {image.mode}; save it as gray or RGB")
        if image.mode not in _MODES:
            raise InvalidFile(f"{where} must have 8-bit gray levels or RGB colors, got mode {image.mode}")
        yield image, (_CHANNELS[_MODES[image.mode]], image.height, image.width)


def channels_first(image: Image) -> npt.NDArray[np.uint8]:
    """The pixels of an image as uint8 (channels, height, width), with one channel for gray levels and three for RGB."""
    pixels = np.asarray(image.convert(_MODES[image.mode]))
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def central_square(image: Image, crop: int, side: int) -> Image:
    """The central square of ``crop`` x ``crop`` pixels, resized to ``side`` x ``side``."""
    from PIL.Image import Resampling

    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return image.crop((left, top, left + crop, top + crop)).resize((side, side), Resampling.BILINEAR)

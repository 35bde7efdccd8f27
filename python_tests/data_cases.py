"""Small files in the formats of the data sets."""

import gzip
import os
import struct

import numpy as np
import pytest

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

REAL = os.environ.get("ECHO_EXT_DATA")
needs_real_files = pytest.mark.skipif(not REAL, reason="needs the real files; set ECHO_EXT_DATA to their folder")


def away_from_all_data(monkeypatch, tmp_path):
    """Hide the user's files and the network from a test; return a cache of its own."""
    monkeypatch.delenv("ECHO_EXT_DATA", raising=False)
    monkeypatch.setenv("ECHO_EXT_OFFLINE", "1")
    monkeypatch.setenv("ECHO_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, pack=gzip.compress, suffix=".gz", train=18, test=5):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    arrays = {}
    for name, rows in zip(IDX, (train, train, test, test), strict=True):
        shape = (rows, 28, 28) if "images" in name else (rows,)
        arrays[name] = random.integers(0, 256 if "images" in name else 10, shape).astype(np.uint8)
        (folder / (name + suffix)).write_bytes(pack(idx(arrays[name])))
    return arrays

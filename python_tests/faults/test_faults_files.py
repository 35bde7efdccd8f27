"""Damaged and hostile files: each is read correctly or refused with a ValueError, quickly and with little memory.

A child process reads them under a memory limit, so that a crash or a hang of a parser is a failure, not the end of the
tests. Content that a checksum of the format covers must be unchanged. A CSV file has none, so any table is accepted.
"""

import collections
import dataclasses
import functools
import gzip
import hashlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import echo_ext

SECONDS = 30  # for one file; most take milliseconds
MEBIBYTE = 1 << 20
MAX_ADDRESS_SPACE = 2048 * MEBIBYTE  # in addition to that after reading the intact files
MAX_GROWTH = 256 * MEBIBYTE  # growth of the resident memory after reading the intact files


# ---- Damage ----------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)


def place(dice, content):
    """A random place in the content, mostly in its headers and directories."""
    edge = min(len(content), 256)
    return dice.choice(
        (dice.randrange(len(content)), dice.randrange(edge), len(content) - 1 - dice.randrange(edge)),
    )


def truncate(dice, content):
    del content[place(dice, content) :]


def flip(dice, content):
    for _ in range(dice.choice((1, 1, 2, 8))):
        content[place(dice, content)] ^= 1 << dice.randrange(8)


def insert(dice, content):
    at = place(dice, content)
    content[at:at] = dice.choice((dice.randbytes(dice.randint(1, 16)), b"\0" * 8, b'"', b"\n", b",", b"(" * 500))


def delete(dice, content):
    at = place(dice, content)
    del content[at : at + dice.choice((1, 2, 8, 100))]


def repeat(dice, content):
    at = place(dice, content)
    content[at:at] = content[at : at + dice.randint(1, 200)]


def overwrite(dice, content):
    at, size = place(dice, content), dice.choice((2, 4, 8))
    number = dice.choice(NUMBERS) % (1 << 8 * size)
    content[at : at + size] = number.to_bytes(size, dice.choice(("big", "little")))


DAMAGE = (truncate, flip, insert, delete, repeat, overwrite)


def damaged(dice, content):
    """The content with up to three kinds of damage."""
    content = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if content:
            dice.choice(DAMAGE)(dice, content)
    return bytes(content)


SHAPES = ((), (0,), (-1,), (3,), (0, 10**12), (10**12, 0), (10**16,), (2**63,), (2**32, 2**32), (1,) * 40, (3, 2, 2))
TYPES = ("<f8", "|O", "|S0", "|V0", "<U2", "<M8[ns]", ">i8", "<c16", "|b1", f"|V{2**31 - 1}", [("x", "<f8", (10**9,))])


def hostile_array(dice):
    """An array whose header does not fit its content."""
    file = io.BytesIO()
    header = {"descr": dice.choice(TYPES), "fortran_order": dice.random() < 0.5, "shape": dice.choice(SHAPES)}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue() + bytes(dice.choice((0, 24, 1000)))


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def damaged_zip(dice, content):
    """Damage a zip file, or one of its members, whose checksum is then correct."""
    if dice.random() < 0.5:
        return damaged(dice, content), True
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(sorted(members))
    members[name] = hostile_array(dice) if dice.random() < 0.5 else damaged(dice, members[name])
    return zipped(members), False


def damaged_gzip(dice, content):
    if dice.random() < 0.5:
        return damaged(dice, content), True
    return gzip.compress(damaged(dice, gzip.decompress(content)) + bytes(dice.choice((0, 1, 10**7))), 1), False


def damaged_array(dice, content):
    return (hostile_array(dice) if dice.random() < 0.2 else damaged(dice, content)), False


def damaged_bytes(dice, content, *, checked=False):
    return damaged(dice, content), checked


# ---- Readers ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reader:
    """A reader of one file format.

    Attributes:
        path: The file that is damaged.
        read: Function that reads the file and returns its content.
        damage: Function that damages the content, and returns it with whether a checksum covers the damage.
    """

    path: Path
    read: Callable[[], Any]
    damage: Callable[[random.Random, bytes], tuple[bytes, bool]]


def table(path):
    from echo_ext.cli.tables import read_table

    found = read_table(path)
    return {name: found.numbers([name]).tobytes() for name in found.names}


def rows(name, folder):
    from echo_ext import data

    parts = data.load(name, folder)
    return {part: (found.stored.numpy().tobytes(), found.labels.tolist()) for part, found in parts.items()}


def table_reader(folder, suffix, page_checksums=True):
    import pandas

    values = np.random.default_rng(1).standard_normal((40, 3))
    path = folder / f"a.{suffix}"
    if suffix == "csv":
        pandas.DataFrame(values, columns=["x", "y", "a name"]).to_csv(path, index=False)
    elif suffix == "npy":
        np.save(path, values)
    elif suffix == "npz":
        np.savez_compressed(path, x=values[:, 0], rest=values[:, 1:], label=np.arange(40))
    else:
        frame = pandas.DataFrame(values, columns=["x", "y", "z"]).assign(text="a", count=np.arange(40))
        frame.to_parquet(path, write_page_checksum=page_checksums)
        # The text column is refused, and all other columns must be read.
        return Reader(path, functools.partial(parquet_table, path), damaged_bytes)
    damage = {"csv": damaged_bytes, "npy": damaged_array, "npz": damaged_zip}[suffix]
    return Reader(path, functools.partial(table, path), damage)


def parquet_table(path):
    from echo_ext.cli.tables import read_table

    found = read_table(path)
    return {name: found.numbers([name]).tobytes() for name in found.numeric_names()}


def idx_reader(folder, suffix):
    from data_cases import IDX, write_idx

    write_idx(folder, pack=gzip.compress if suffix else bytes, suffix=suffix)
    damage = damaged_gzip if suffix else damaged_bytes
    return Reader(folder / (IDX[0] + suffix), functools.partial(rows, "mnist", folder), damage)


def bits_reader(folder, form):
    from echo_ext.data import binary_mnist

    drawn = np.random.default_rng(1).integers(0, 2, (20, 784)).astype(np.uint8)
    if form == "npz":
        np.savez(folder / binary_mnist.PACKED, **dict.fromkeys(("train", "valid", "test"), np.packbits(drawn, axis=1)))
        return Reader(folder / binary_mnist.PACKED, functools.partial(rows, "binary-mnist", folder), damaged_zip)
    for remote in binary_mnist.FILES.values():
        np.savetxt(folder / remote.name, drawn, "%d")
    path = folder / binary_mnist.FILES["test"].name
    return Reader(path, functools.partial(rows, "binary-mnist", folder), damaged_bytes)


def omniglot_reader(folder, form):
    from echo_ext.data import omniglot

    dice = np.random.default_rng(1)
    if form == "npz":
        path = folder / omniglot.REBUILT
        images = {f"{part}_images": dice.integers(0, 256, (20, 28, 28)).astype(np.uint8) for part in ("train", "test")}
        np.savez(path, **images, train_alphabet=np.arange(20), test_alphabet=np.arange(20))
        return Reader(path, functools.partial(rows, "omniglot", folder), damaged_zip)
    from scipy.io import savemat

    path = folder / omniglot.FILE.name
    ink, alphabets = dice.random((784, 20)), np.eye(50)[:, :20]
    savemat(path, {"data": ink, "target": alphabets, "testdata": ink, "testtarget": alphabets}, do_compression=True)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    omniglot.FILE = dataclasses.replace(omniglot.FILE, checksum=f"md5:{digest}")
    return Reader(path, functools.partial(rows, "omniglot", folder), functools.partial(damaged_bytes, checked=True))


def dsprites_reader(folder, form):
    from echo_ext.data import dsprites

    # A grid with fewer rows, which is read in milliseconds.
    dsprites.FACTOR_SIZES, dsprites._ROWS = (1, 1, 4, 32, 32), 4096
    bits = np.random.default_rng(1).integers(0, 256, 512).astype(np.uint8) * np.ones((4096, 1), np.uint8)
    if form == "original":
        path = folder / dsprites.ORIGINAL.name
        np.savez_compressed(path, imgs=np.unpackbits(bits, axis=1).reshape(4096, 64, 64))
        return Reader(path, lambda: dsprites._read_original(path).tobytes(), damaged_zip)
    path = folder / dsprites.REBUILT
    np.savez_compressed(path, images_packed=bits.reshape(*dsprites.FACTOR_SIZES, 512))
    return Reader(path, lambda: dsprites._read_packed(path).tobytes(), damaged_zip)


def own_reader(folder, form):
    levels = np.random.default_rng(1).integers(0, 256, (12, 8, 8)).astype(np.uint8)
    if form == "npz":
        path = folder / "own.npz"
        np.savez_compressed(path, x=levels, labels=np.arange(12))
        # No checksum covers the names in a zip file, so labels whose name is damaged are not found.
        return Reader(path, lambda: {part: x for part, (x, _) in rows(path, None).items()}, damaged_zip)
    from PIL import Image

    for index, image in enumerate(levels):
        Image.fromarray(image).save(folder / f"{index:02}.{form}")
    return Reader(folder / f"00.{form}", functools.partial(rows, folder, None), damaged_bytes)


READERS = {
    **{suffix: functools.partial(table_reader, suffix=suffix) for suffix in ("csv", "npy", "npz", "parquet")},
    "parquet.unchecked": functools.partial(table_reader, suffix="parquet", page_checksums=False),
    "idx": functools.partial(idx_reader, suffix=""),
    "idx.gz": functools.partial(idx_reader, suffix=".gz"),
    "amat": functools.partial(bits_reader, form="amat"),
    "bits.npz": functools.partial(bits_reader, form="npz"),
    "omniglot.npz": functools.partial(omniglot_reader, form="npz"),
    "mat": functools.partial(omniglot_reader, form="mat"),
    "dsprites": functools.partial(dsprites_reader, form="original"),
    "dsprites.rebuilt": functools.partial(dsprites_reader, form="rebuilt"),
    "own.npz": functools.partial(own_reader, form="npz"),
    "own.png": functools.partial(own_reader, form="png"),
    "own.jpg": functools.partial(own_reader, form="jpg"),
}


# ---- The child -------------------------------------------------------------------------------------------------------


def attack(name, seed, count):
    """Read damaged files; print how many were read and refused."""
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
        intact, expected = reader.path.read_bytes(), reader.read()
        limit_memory()
        before = peak()
        outcomes = collections.Counter()
        for case in range(count):
            # If the process crashes, this is its last line.
            print(f"{name}: seed {seed}, case {case}", flush=True)
            content, checked = reader.damage(random.Random(f"{seed} {name} {case}"), intact)
            reader.path.write_bytes(content)
            signal.alarm(SECONDS)
            outcomes[outcome(reader, expected if checked else None)] += 1
            signal.alarm(0)
        growth = peak() - before
    if growth > MAX_GROWTH:
        raise MemoryError(f"{name} needed {growth // MEBIBYTE} MiB")
    print(f"{name}: {dict(outcomes)}, {growth // MEBIBYTE} MiB")


def outcome(reader, expected):
    try:
        found = reader.read()
    except (ValueError, FileNotFoundError) as refusal:
        if str(reader.path.parent) not in str(refusal) and "one label for each" not in str(refusal):
            raise AssertionError(f"the error does not name the file: {refusal}") from refusal
        return "refused"
    if expected not in (None, found):
        raise AssertionError("a checksum was not compared: the content is wrong")
    return "read"


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_ADDRESS_SPACE, -1))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attack_in_child(names, seed, count, timeout):
    """Run :func:`attack` in its own process; return the summaries that it printed."""
    command = [sys.executable, __file__, str(seed), str(count), *names]
    packages = str(Path(echo_ext.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": packages, "ECHO_EXT_OFFLINE": "1", "ECHO_EXT_CACHE": os.devnull}
    environment.pop("ECHO_EXT_DATA", None)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=os.sep, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"exit code {done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
    return [line for line in lines if "MiB" in line]


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the memory limits of Linux")


def test_damaged_files_are_read_correctly_or_refused():
    names = readers_here()
    assert len(attack_in_child(names, torch.initial_seed(), 12, timeout=300)) == len(names)


@pytest.mark.faults
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_correctly_or_refused(name):
    if name not in readers_here():
        pytest.skip("needs a package that is not installed")
    print(*attack_in_child([name], torch.initial_seed(), 2000, timeout=3600))


def readers_here():
    """The readers whose packages are installed."""
    from importlib.util import find_spec

    wanted = {"csv": "pandas", "npy": "pandas", "npz": "pandas", "parquet": "pyarrow", "mat": "scipy"}
    wanted |= {"own.png": "PIL", "own.jpg": "PIL"}
    return [name for name in READERS if find_spec(wanted.get(name.split(".unchecked")[0], "numpy"))]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for chosen in sys.argv[3:]:
        attack(chosen, int(sys.argv[1]), int(sys.argv[2]))

"""Atomic writing: files are replaced completely or not at all."""

import errno
import os

import pytest

from echo_ext import _files


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_replacement_writes_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    with _files.replacement(path) as part:
        assert part.parent.parent == tmp_path
        part.write_bytes(b"first")

    def interrupted():
        with _files.replacement(path) as part:
            part.write_bytes(b"sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_replacements_wait_until_all_files_are_on_the_disk(tmp_path, monkeypatch):
    def write(content):
        with _files.replacements(tmp_path, "a", "b") as parts:
            for part in parts:
                part.write_bytes(content)

    write(b"first")
    flushed = []

    def fill_up(descriptor):
        flushed.append(descriptor)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(OSError, match="No space left on device"):
        write(b"second")
    assert [(tmp_path / name).read_bytes() for name in ("a", "b")] == [b"first", b"first"]
    assert names(tmp_path) == ["a", "b"]


def test_create_refuses_an_existing_file(tmp_path):
    _files.create(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        _files.create(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_create_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    _files.create(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]

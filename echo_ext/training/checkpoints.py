"""Checkpoint files, which contain a checksum of all their bytes that is verified before anything is parsed.

A checkpoint is a zip archive written by ``torch.save``, and loads with ``torch.load(weights_only=True)``. The comment
of the archive, which is the end of the file, is the SHA-256 of all bytes before it. The checksum detects damage. It is
not a signature: a hostile file can have a correct one, so the content is checked as well.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from echo_ext import __version__, _checks
from echo_ext._parsing import NUMBER, check_structure
from echo_ext.training.configuration import Configuration

__all__ = ["FORMAT", "check_structure_for", "dump", "model_identity", "read", "weights_only"]

FORMAT = 2  # of the content of a checkpoint; another format cannot be read

_MARK = b"echo-ext sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size
_END_OF_ARCHIVE = b"PK\x05\x06"  # the last record of the zip format; its last two bytes are the length of the comment
_END_BYTES = 22
_CHUNK = 2**20
_MAX_DEPTH = _MAX_DIMENSIONS = 8

# The settings that, with the shape of the data, determine the model.
MODEL_SETTINGS = ("recipe", "beta", "latent_dim", "model_settings")

# What training, evaluation and loading need of a checkpoint, as a schema of :func:`check_structure`.
_ROW = dict.fromkeys((str, "epoch", "step", "seconds", "learning_rate", "train_loss"), NUMBER)
_SCHEMA: dict[Any, Any] = {
    **{
        "epoch": int,
        "finished": bool,
        "data_shape": [int],
        "batch_rows": int,
        "state_dict": {str: Tensor},
        "precision": dict,
    },
    "history": [_ROW],
}
_OPTIMIZER = {"optimizer": {"state": dict}}
_COSTS = {"names": [str], "values": Tensor}
_UNFINISHED = {"unfinished_epoch": {"costs": _COSTS, "seconds": float, "cpu_random_state": Tensor}}


def model_identity(configuration: Configuration) -> dict[str, Any]:
    """The settings of the model, which a checkpoint contains."""
    return {name: getattr(configuration, name) for name in MODEL_SETTINGS}


def weights_only(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint without the state of the optimizer: nothing is trained from it, so that it counts as finished."""
    return {name: value for name, value in checkpoint.items() if name != "optimizer"} | {"finished": True}


def dump(checkpoint: Mapping[str, Any]) -> memoryview:
    """Return the bytes of the checkpoint's file."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    with buffer.getbuffer() as content:
        assert content[-_END_BYTES : -_END_BYTES + len(_END_OF_ARCHIVE)] == _END_OF_ARCHIVE
        content[-2:] = struct.pack("<H", _COMMENT)
    buffer.seek(0, io.SEEK_END)
    buffer.write(_MARK)
    with buffer.getbuffer() as content:
        checksum = hashlib.sha256(content).hexdigest()
    buffer.write(checksum.encode())
    return buffer.getbuffer()


def read(file: Path, configuration: Configuration) -> dict[str, Any]:
    """Return the checkpoint in a file, on the CPU.

    Raises:
        ValueError: The file is damaged, or is not a checkpoint of this format and of the configuration's model.
    """
    with file.open("rb") as opened:
        if not _has_valid_checksum(opened):
            if _is_other_archive(opened):
                raise ValueError(f"{file} is not a checkpoint of echo-ext: it has no checksum")
            raise ValueError(f"{file} is damaged: its checksum does not match its content")
        try:
            _refuse_compression(opened)
            opened.seek(0)
            checkpoint = torch.load(opened, map_location="cpu", weights_only=True)
            size = opened.seek(0, io.SEEK_END)
        except Exception as broken:  # a hostile archive may make its readers raise anything
            raise ValueError(f"{file} is not a checkpoint of echo-ext: torch cannot load it") from broken
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("format"), int):
        raise ValueError(f"{file} is not a checkpoint of echo-ext: it has no format")
    if checkpoint["format"] != FORMAT:
        written_by = _checks.brief(checkpoint.get("version"))
        raise ValueError(
            f"{file} is a checkpoint of format {checkpoint['format']}, which echo-ext {written_by} has written, "
            f"not of format {FORMAT} of echo-ext {__version__!r}; use that version, or train the run again"
        )
    if difference := configuration.first_difference(checkpoint, MODEL_SETTINGS):
        raise ValueError(f"{file} is the checkpoint of a model with {difference}")
    try:
        check_structure_for(checkpoint, configuration)
        _check_tensors(checkpoint, size)
    except ValueError as wrong:
        raise ValueError(f"{file} is not a checkpoint of echo-ext: {wrong}") from None
    return checkpoint


def _has_valid_checksum(file: BinaryIO) -> bool:
    size = file.seek(0, io.SEEK_END)
    digest = hashlib.sha256()
    left = size - 2 * digest.digest_size
    if left < _END_BYTES + len(_MARK):
        return False
    file.seek(0)
    for start in range(0, left, _CHUNK):
        digest.update(file.read(min(_CHUNK, left - start)))
    return file.read() == digest.hexdigest().encode()


def _is_other_archive(file: BinaryIO) -> bool:
    """Whether the file is a complete archive without a checksum, written by another program."""
    try:
        return not zipfile.ZipFile(file).comment
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _refuse_compression(file: BinaryIO) -> None:
    """Refuse an archive that could be larger when unpacked: torch stores its members uncompressed."""
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap")


def check_structure_for(content: Mapping[str, Any], configuration: Configuration) -> None:
    """Raise a ValueError that names the first entry which training, evaluation or loading could not use."""
    check_structure("it", content, _SCHEMA)
    if configuration.valid != "none":
        check_structure("it", content, {"history": [{"valid_loss": NUMBER}]})
    if len(content["history"]) != content["epoch"]:
        raise ValueError(f"history has {len(content['history'])} epochs, not {_checks.brief(content['epoch'])}")
    if len(content["data_shape"]) > _MAX_DIMENSIONS:
        raise ValueError(f"data_shape must be a few integers, got {_checks.brief(content['data_shape'])}")
    if not content["finished"]:
        check_structure("it", content, _OPTIMIZER)
    if content.get("unfinished_epoch") is not None:
        check_structure("it", content, _UNFINISHED)
        costs = content["unfinished_epoch"]["costs"]
        if costs["values"].ndim != 2 or costs["values"].shape[1] != len(costs["names"]):
            raise ValueError("the costs of unfinished_epoch must have a column for each name")


def _check_tensors(checkpoint: Mapping[str, Any], size: int) -> None:
    """Refuse tensors that are larger than the file: with strides of 0 a few bytes can stand for any number of rows."""
    storages: dict[int, int] = {}
    for tensor in _tensors(checkpoint, 0):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("it contains a tensor that is not dense")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(f"a tensor of shape {_checks.brief(tuple(tensor.shape))} repeats the same few bytes")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors have {sum(storages.values())} bytes, but the file has {size}")


def _tensors(content: object, depth: int) -> Iterator[Tensor]:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, list, tuple)):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value, depth + 1)

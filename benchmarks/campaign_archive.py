"""The archive of a campaign's runs: what the next call needs to continue them, in a few files of limited size.

The archive has all results. If there is room, it also has, in this order: the checkpoints of unfinished runs, the
most advanced first; figures; the weights of finished runs. The manifest lists what is left out.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import echo_ext
from echo_ext.training import RunDirectory, checkpoints
from echo_ext.training.run_directory import (
    BEST_FILE,
    CHECKPOINT_FILE,
    CONFIGURATION_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PART,
    RESULT_FILE,
)

FORMAT = 1
MANIFEST = "manifest.json"
NAME = "runs.tar.gz"
LIMIT = 60_000_000  # bytes of all parts together
PART_LIMIT = 15_000_000


class ArchiveError(Exception):
    """An archive that cannot be used; nothing was changed."""


@dataclass(frozen=True)
class RunState:
    """The progress of a run, read from its folder."""

    path: Path
    epochs: int  # finished
    epochs_in_all: int
    result: dict | None  # also None if its file is damaged, which the sweep reports
    has_patience: bool  # so that its model has the best weights, and not the last ones

    @property
    def finished(self):
        return self.result is not None

    @property
    def progress(self):
        """From 0 to 1, and 2 for a finished run."""
        return 2.0 if self.finished else self.epochs / self.epochs_in_all


def run_state(path):
    """Return the state of the run in a folder."""
    directory = RunDirectory(path)
    configuration, result = directory.configuration(), None
    with contextlib.suppress(FileNotFoundError, ValueError):
        result = directory.result()
    epochs = 0
    with contextlib.suppress(FileNotFoundError, ValueError, csv.Error), (path / METRICS_FILE).open(newline="") as file:
        epochs = sum(1 for _ in csv.DictReader(file))
    return RunState(path, epochs, configuration.epochs, result, configuration.patience is not None)


def whole_files(root, pattern):
    """Return the files of this name below a folder, except those that are being written."""
    return [file for file in sorted(root.rglob(pattern)) if PART not in str(file.relative_to(root))]


def run_states(root):
    """Return the states of all runs below a folder, in the order of their names."""
    states = []
    for file in whole_files(root, CONFIGURATION_FILE):
        with contextlib.suppress(FileNotFoundError):  # a run that failed in its first epoch is removed
            states.append(run_state(file.parent))
    return states


def weights_only(path):
    """Return the checkpoint of a finished run without the optimizer's state, which is no longer needed."""
    directory = RunDirectory(path.parent)
    return bytes(checkpoints.dump(checkpoints.weights_only(directory.load_checkpoint(directory.configuration()))))


def contents(root):
    """Yield what could be kept, the most valuable first: groups of (path, function that returns its bytes)."""
    states = run_states(root)
    unfinished = sorted((s for s in states if not s.finished), key=lambda s: -s.progress)
    finished = [s for s in states if s.finished]

    def read(*files):
        return [(file, file.read_bytes) for file in files if file.is_file()]

    def best(state):
        return read(state.path / BEST_FILE) if state.has_patience else []

    for state in finished:
        yield read(*(state.path / name for name in (CONFIGURATION_FILE, METRICS_FILE, RESULT_FILE, EVALUATION_FILE)))
    for file in whole_files(root, "table.*"):
        yield read(file)
    for state in unfinished:
        if (state.path / CHECKPOINT_FILE).is_file():
            # The last checkpoint is read first, so that the best one is not older while the run is being trained.
            last = read(*(state.path / name for name in (CONFIGURATION_FILE, CHECKPOINT_FILE, METRICS_FILE)))
            yield last + best(state)
    for file in whole_files(root, "*.png"):
        yield read(file)
    for state in finished:
        if (state.path / CHECKPOINT_FILE).is_file():
            last = [(state.path / CHECKPOINT_FILE, lambda file=state.path / CHECKPOINT_FILE: weights_only(file))]
            yield last + best(state)


def pack(root, out, *, commit=None, limit=LIMIT, part_limit=PART_LIMIT):
    """Write the archive of the runs below ``root`` into ``out``; returns the manifest.

    The manifest is written last, so that an incomplete archive is noticed.
    """
    kept, left_out, used = {}, [], 0
    with tempfile.TemporaryDirectory(dir=root, prefix=PART) as folder:
        whole = Path(folder) / NAME
        with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
            for group in contents(root):
                try:
                    files = [(file, content()) for file, content in group]
                except FileNotFoundError:  # a run that ended meanwhile: the next archive has it
                    continue
                except ValueError:  # a damaged checkpoint, which must not get a new checksum
                    left_out += [str(file.relative_to(root)) for file, _ in group]
                    continue
                # Weights hardly compress. The margin is for the archive's own blocks.
                size = sum(len(content) + 2048 for _, content in files)
                names = [str(file.relative_to(root)) for file, _ in files]
                if used + size > 0.99 * limit:
                    left_out += names
                    continue
                used += size
                for name, (_, content) in zip(names, files, strict=True):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
                    kept[name] = len(content)
        data = whole.read_bytes()
    parts = [data[begin : begin + part_limit] for begin in range(0, len(data), part_limit)]
    manifest = {
        "format": FORMAT,
        "echo_ext": echo_ext.__version__,
        "commit": commit,
        "parts": [
            {"name": f"{NAME}.{index}", "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            for index, part in enumerate(parts)
        ],
        "kept": kept,
        "left_out": left_out,
    }
    out.mkdir(parents=True, exist_ok=True)
    for file in out.glob(f"{NAME}.*"):
        file.unlink()
    folder = RunDirectory(out)
    for description, part in zip(manifest["parts"], parts, strict=True):
        folder.write(description["name"], part)
    folder.write_json(MANIFEST, manifest)
    return manifest


def read_manifest(source):
    """Check every part of an archive and return its manifest, or None if there is no archive."""
    file = source / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text())
        version, parts = manifest["format"], manifest["parts"]
        written_by = manifest["echo_ext"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"the archive in {source} is damaged: {MANIFEST} is not a manifest ({error})") from None
    if version != FORMAT:
        raise ArchiveError(f"the archive in {source} must be of format {FORMAT}, got {version}")
    if written_by != echo_ext.__version__:
        raise ArchiveError(
            f"the archive in {source} must be of echo-ext {echo_ext.__version__}, got {written_by}: "
            "unpack it with that version, or start without it"
        )
    for part in parts:
        path = source / part["name"]
        if not path.is_file():
            raise ArchiveError(f"the archive in {source} is damaged: {part['name']} is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != part["sha256"]:
            raise ArchiveError(
                f"the archive in {source} is damaged: {part['name']} has {path.stat().st_size} bytes of other content, "
                f"where {part['bytes']} were written"
            )
    return manifest


def unpack(source, root):
    """Unpack the runs of an archive that have progressed further than those below ``root``; returns their number.

    Raises:
        ArchiveError: The archive is damaged or of another version. Nothing was changed.
    """
    manifest = read_manifest(source)
    if manifest is None:
        return 0
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=PART) as folder:
        data = b"".join((source / part["name"]).read_bytes() for part in manifest["parts"])
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                # Python before 3.10.12 and 3.11.4 has no filters.
                archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ArchiveError(f"the archive in {source} is damaged: {error}") from None
        unpacked = 0
        for state in run_states(Path(folder)):
            target = root / state.path.relative_to(folder)
            if (target / CONFIGURATION_FILE).is_file() and run_state(target).progress >= state.progress:
                continue
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(state.path, target)
            unpacked += 1
    return unpacked

"""What trained runs are used for: the codes of data, and samples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from echo_ext import _checks, _files, data
from echo_ext._progress import progress
from echo_ext.data import LabeledDataset, catalog, own
from echo_ext.metrics._inputs import measure_rows
from echo_ext.training.configuration import SETTINGS, Configuration
from echo_ext.training.evaluation import SAMPLED_IMAGES, VECTORS, pixel_progress, watched
from echo_ext.training.fitting import evaluation_batch_size
from echo_ext.training.ownership import explained
from echo_ext.training.run_directory import load

__all__ = ["PARTS", "SAMPLES_FIGURE", "SAMPLES_FILE", "Part", "encode", "sample"]

Part = Literal["all", "train", "valid", "test"]
PARTS = ("all", "train", "valid", "test")
SAMPLES_FILE, SAMPLES_FIGURE = "samples.npz", "samples.png"


def encode(
    path: str | os.PathLike[str],
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    part: Part = "all",
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Encode data by the model of a run; write the codes as an npz file, and return them.

    The arrays are ``z``, a sample for each row, and ``mean``, the code without noise, both float32 (N, latent_dim) and
    in the units that the decoder sees, and ``labels``, int64 (N,), where the data have them. The data are binarized as
    those of the run, but only once.

    Args:
        path: The folder of the run.
        name: A data set, as for :func:`echo_ext.data.load`.
        out: The file to write, whose name ends with ``.npz``. It is replaced if it exists.
        part: The rows to encode. "all" are those of own data in their order, or else the train, valid and test rows,
            one after the other.
        seed: Seed of the noise.
        data_dir: The folder of the data, as ``root`` of :func:`echo_ext.data.load`.
        device: The device to compute on.

    Raises:
        FileNotFoundError: There is no trained run, or the files of the data are missing.
        TypeError: The model has no code without noise.
        ValueError: A file is damaged or of another version, a value is out of range, or the rows do not have the shape
            that the model needs.

    Example:
        >>> run = "runs/echo"  # see the example of train
        >>> codes = echo_ext.training.encode(run, "digits", "codes.npz", part="test")
        >>> {name: tuple(each.shape) for name, each in codes.items()}
        {'z': (300, 4), 'mean': (300, 4), 'labels': (300,)}
    """
    _checks.choice("part", part, PARTS)
    SETTINGS["seed"].checked(seed)
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"out must be a file name that ends with .npz, got {out}")
    if catalog.identify(name) == str(own.absolute(out)):
        raise ValueError(f"out must be another file than the data, got {out}")
    model, configuration, _ = load(path)
    if (shape := catalog.find(name).data_shape) != model.data_shape:
        wanted = f"rows of shape {model.data_shape} for the model in {path}"
        raise ValueError(f"data must have {wanted}, got {shape} in {os.fspath(name)}")
    sets = _data_sets(name, part, configuration, data_dir)
    with explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return model.encode(x).float().cpu(), model.encode_mean(x).float().cpu()

    model, size = model.to(device), evaluation_batch_size(torch.device(device))
    found = []
    for each in sets:
        with watched(each, "rows encoded") as rows:
            found.append([*measure_rows(model, rows, size, both), each.labels])
    codes = dict(zip(("z", "mean", "labels"), map(torch.cat, zip(*found, strict=True)), strict=True))
    if int(codes["labels"].min()) < 0:
        del codes["labels"]
    arrays: dict[str, Any] = {key: each.numpy() for key, each in codes.items()}
    with explained(out.parent), _files.replacement(out) as temporary:
        np.savez(temporary, **arrays)
    return codes


def _data_sets(
    name: str | os.PathLike[str], part: Part, configuration: Configuration, data_dir: str | os.PathLike[str] | None
) -> list[LabeledDataset]:
    """The rows to encode, one data set after the other."""
    binarization, seed = configuration.binarization, configuration.seed
    if binarization != "none":
        binarization = "static"
    known = catalog.identify(name)
    if part == "all" and known not in catalog.CATALOG:
        return [data.binarize(own.read_own(Path(known)), binarization, seed=seed)]
    parts = data.load(known, data_dir, binarization=binarization, seed=seed)
    return list(parts.values()) if part == "all" else [parts[part]]


@torch.no_grad()
def sample(
    path: str | os.PathLike[str],
    n: int = 64,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw samples from the model of a run; write ``samples.npz`` and ``samples.png``, and return them.

    The array ``x`` of the file, float32 ``(n, *data_shape)``, has the mean of x given each sample of z.

    Args:
        path: The folder of the run.
        n: Number of samples. The figure shows up to 64 images, or 2,000 vectors.
        out: The folder of both files. None means that of the run.
        seed: Seed of the samples.
        device: The device to compute on.

    Raises:
        FileNotFoundError: There is no trained run.
        ValueError: A file is damaged or of another version, or a value is out of range.

    Example:
        >>> echo_ext.training.sample("runs/echo", 4).shape  # see the example of train
        torch.Size([4, 1, 8, 8])
    """
    _checks.whole("n", n, minimum=1)
    SETTINGS["seed"].checked(seed)
    from echo_ext import plots

    folder = Path(path if out is None else out)
    model, configuration, _ = load(path)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = model.to(device)
    size = evaluation_batch_size(torch.device(device))
    parts = []
    with progress("samples", n, "sample") as bar, pixel_progress(model):
        for start in range(0, n, size):
            parts.append(model.sample(min(size, n - start)).float().cpu())
            bar.update(len(parts[-1]))
    x = torch.cat(parts)
    shown = x[: SAMPLED_IMAGES if x.ndim == 4 else VECTORS]
    with explained(folder), _files.replacements(folder, SAMPLES_FILE, SAMPLES_FIGURE) as (file, figure):
        np.savez(file, x=x.numpy())
        plots.samples({configuration.recipe: shown}).savefig(figure)
    return x

"""The catalog of data sets: shapes, sources, licenses, files, and the functions that load them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from echo_ext import _checks
from echo_ext.data import binary_mnist, celeba, dsprites, idx, omniglot, own
from echo_ext.data._files import FileLocator, StrPath
from echo_ext.data.datasets import LabeledDataset
from echo_ext.data.digits import load_digits
from echo_ext.data.mixtures import load_mixture, load_states
from echo_ext.data.principal import project

__all__ = ["CATALOG", "Entry", "find", "identify"]

Parts = Mapping[str, LabeledDataset]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A data set in the catalog.

    Attributes:
        source: Description of the data set and its authors.
        load: Function that reads the data set.
        license: License as stated by the source.
        data_shape: Shape of one x, by default that of MNIST.
        rows: Number of rows of the train, valid and test parts, by default those of MNIST.
        page: Web page where the files are available; empty if none are needed.
        folder: Name of the subfolder in which its files are searched.
        files: Sets of file names, each of which is a complete copy of the data; empty if none are needed.
        fallback: Where the data come from if no copy is found.
    """

    source: str
    load: Callable[[FileLocator], Parts]
    license: str = "none stated"
    data_shape: tuple[int, ...] = (1, 28, 28)
    rows: tuple[int, int, int] = (50_000, 10_000, 10_000)
    page: str = ""
    folder: str = ""
    files: tuple[tuple[str, ...], ...] = ()
    fallback: str = "will be downloaded"

    def locator(self, root: StrPath | None) -> FileLocator:
        """The locator of its files."""
        return FileLocator(self.folder, self.page, root, others={entry.folder for entry in CATALOG.values()})

    def found(self, root: StrPath | None) -> Path | None:
        """A file of a complete copy on this machine, or None if there is none."""
        if not self.files:
            return None
        locator = self.locator(root)
        copies = ([locator.find(name, f"{name}.gz") for name in copy] for copy in self.files)
        return next((copy[0] for copy in copies if all(copy)), None)


def identify(name: StrPath) -> str:
    """Return the name of a data set as it is, and the path of one's own data as an absolute path."""
    if isinstance(name, str) and (name in CATALOG or not own.looks_like_path(name)):
        return name
    return str(own.absolute(name))


def find(name: StrPath) -> Entry:
    """Return the entry of this name, or one for this npz file or folder of images.

    Raises:
        FileNotFoundError: The path does not exist, or is a folder without images.
        ValueError: The name is unknown, with suggestions of similar ones, or the path has the wrong content.
    """
    known = identify(name)
    if known in CATALOG:
        return CATALOG[known]
    if not own.looks_like_path(known):
        near = _checks.unknown("data set", known, CATALOG)
        raise ValueError(f"{near}; it can also be the path of an .npz file or of a folder of images")
    path = Path(known)
    rows, shape = own.describe(path)
    return Entry("own data", lambda _: own.load_own(path), data_shape=shape, rows=own.part_rows(rows))


def _generated(columns: int, source: str, load: Callable[[], Parts]) -> Entry:
    return Entry(
        source,
        lambda _: load(),
        license="that of this project",
        data_shape=(columns,),
        rows=(10_000, 2_000, 10_000),
        fallback="generated when it is loaded",
    )


def _mixture(name: str, columns: int, source: str) -> Entry:
    entry = _generated(columns, source, lambda: load_mixture(name))
    return dataclasses.replace(entry, fallback=f"{entry.fallback}, and the training rows again in each epoch")


_FASHION = Entry(
    "Fashion-MNIST, Zalando Research (Xiao et al. 2017)",
    idx.load_idx,
    license="MIT",
    page="https://github.com/zalandoresearch/fashion-mnist",
    folder="fashion-mnist",
    files=(idx.NAMES,),
)
_DSPRITES = Entry(
    "dSprites (Matthey et al. 2017); rendered, a tenth with small differences, where its file cannot be had",
    dsprites.load_dsprites,
    license="Apache-2.0",
    data_shape=(1, 64, 64),
    rows=(663_552, 36_864, 36_864),
    page="https://github.com/google-deepmind/dsprites-dataset",
    folder="dsprites",
    files=((dsprites.ORIGINAL.name,), (dsprites.REBUILT,)),
    fallback="will be downloaded, or else rendered when it is loaded",
)

CATALOG: dict[str, Entry] = {
    "binary-mnist": Entry(
        "statically binarized MNIST (Salakhutdinov & Murray 2008)",
        binary_mnist.load_binary_mnist,
        page="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        folder="binary-mnist",
        files=((binary_mnist.PACKED,), tuple(file.name for file in binary_mnist.FILES.values())),
    ),
    "celeba": Entry(
        "CelebA (Liu et al. 2015), faces cropped and resized to 64 x 64 pixels; the label is whether they smile",
        celeba.load_celeba,
        license="non-commercial research only",
        data_shape=(3, 64, 64),
        rows=(162_770, 19_867, 19_962),
        page=celeba.PAGE,
        folder="celeba",
        files=((celeba.PARTITION, celeba.ARCHIVE), (celeba.PARTITION, f"{celeba.FOLDER}/000001.jpg")),
        fallback="must be downloaded by hand",
    ),
    "digits": Entry(
        "handwritten digits (Alpaydin & Kaynak 1998), as distributed with scikit-learn",
        lambda _: load_digits(),
        license="CC BY 4.0",
        data_shape=(1, 8, 8),
        rows=(1_297, 200, 300),
        fallback="part of scikit-learn",
    ),
    "dsprites": _DSPRITES,
    "dsprites-dependent": dataclasses.replace(
        _DSPRITES,
        rows=(99_072, 5_504, 5_504),
        source="subset of dSprites with dependent factors (Echo paper, section 5.3)",
        load=lambda locator: dsprites.load_dsprites(locator, dsprites.dependent_rows()),
    ),
    "fashion-mnist": _FASHION,
    "fashion-pca20": dataclasses.replace(
        _FASHION,
        data_shape=(20,),
        source="first 20 principal components of Fashion-MNIST (MIM paper)",
        load=lambda locator: project(idx.load_idx(locator), 20),
    ),
    "gmm1d": _mixture("gmm1d", 1, "mixture of three normal distributions in one dimension"),
    "gmm2d": _mixture("gmm2d", 2, "mixture of five normal distributions in two dimensions (MIM paper)"),
    "gmm20d": _mixture("gmm20d", 20, "mixture of five normal distributions in twenty dimensions (MIM paper)"),
    "mnist": Entry(
        "MNIST (LeCun et al. 1998)",
        idx.load_idx,
        page="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="mnist",
        files=(idx.NAMES,),
    ),
    "normal": _mixture("normal", 1, "normal distribution N(0, 1) (Mutual Autoencoder paper)"),
    "omniglot": Entry(
        "Omniglot (Lake et al. 2015) at 28 x 28 pixels, with the split of Burda et al. (2016)",
        omniglot.load_omniglot,
        license="MIT",
        rows=(23_000, 1_345, 8_070),
        page="https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT",
        folder="omniglot",
        files=((omniglot.FILE.name,), (omniglot.REBUILT,)),
    ),
    "ten-states": _generated(10, "one-hot rows of ten equally frequent states (Mutual Autoencoder paper)", load_states),
}

"""The data sets there are: what each holds, whose it is, which files it needs and what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from echo_ext import _checks
from echo_ext.data import binary_mnist, dsprites, idx, omniglot
from echo_ext.data._files import Published, Shelf, StrPath
from echo_ext.data.datasets import LabelledDataset
from echo_ext.data.digits import load_digits
from echo_ext.data.mixtures import load_mixture, load_states
from echo_ext.data.principal import project

__all__ = ["CATALOG", "Entry", "find"]

Parts = Mapping[str, LabelledDataset]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A data set in the catalog.

    Attributes:
        data_shape: of one x.
        rows: of the train, valid and test parts.
        source: what it is and whose, for people.
        license: as its source states it.
        page: where a person can get the files; empty where none are needed.
        folder: the subfolder in which its files are looked for.
        files: sets of names; each set is a whole copy of the data. Empty where none are needed.
        without: what happens where no copy is found.
        load: reads it.
    """

    data_shape: tuple[int, ...]
    rows: tuple[int, int, int]
    source: str
    license: str
    load: Callable[[Shelf], Parts]
    page: str = ""
    folder: str = ""
    files: tuple[tuple[str, ...], ...] = ()
    without: str = ""

    def shelf(self, root: StrPath | None) -> Shelf:
        """Where its files are looked for."""
        return Shelf(self.folder, self.page, root, others=tuple({entry.folder for entry in CATALOG.values()}))

    def found(self, root: StrPath | None) -> Path | None:
        """A file of a whole copy on this machine."""
        if not self.files:
            return None
        shelf = self.shelf(root)
        copies = ([shelf.find(name, f"{name}.gz") for name in copy] for copy in self.files)
        return next((copy[0] for copy in copies if all(copy)), None)


def find(name: str) -> Entry:
    """The entry of this name, or a ValueError that lists the nearest names."""
    if name not in CATALOG:
        raise _checks.unknown("data set", name, CATALOG)
    return CATALOG[name]


def _names(*published: Published) -> tuple[str, ...]:
    return tuple(file.name.removesuffix(".gz") for file in published)


_DOWNLOADED = "downloaded when it is loaded"
_FASHION = Entry(
    (1, 28, 28),
    (50_000, 10_000, 10_000),
    "Fashion-MNIST, Zalando Research (Xiao et al. 2017)",
    "MIT",
    idx.load_idx,
    page="https://github.com/zalandoresearch/fashion-mnist",
    folder="fashion-mnist",
    files=(_names(*idx.FILES["fashion-mnist"]),),
    without=_DOWNLOADED,
)
_DSPRITES = Entry(
    (1, 64, 64),
    (663_552, 36_864, 36_864),
    "dSprites (Matthey et al. 2017), drawn from its geometry",
    "the original is Apache-2.0",
    dsprites.load_dsprites,
    page="https://github.com/google-deepmind/dsprites-dataset",
    folder="dsprites",
    files=((dsprites.ORIGINAL,), (dsprites.REBUILT,)),
    without="drawn when it is loaded",
)

CATALOG: dict[str, Entry] = {
    "binary-mnist": Entry(
        (1, 28, 28),
        (50_000, 10_000, 10_000),
        "MNIST drawn in black and white once for all (Salakhutdinov & Murray 2008)",
        "none stated",
        binary_mnist.load_binary_mnist,
        page="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        folder="binary-mnist",
        files=((binary_mnist.PACKED,), _names(*binary_mnist.FILES.values())),
        without=_DOWNLOADED,
    ),
    "digits": Entry(
        (1, 8, 8),
        (1_297, 200, 300),
        "handwritten digits (Alpaydin & Kaynak 1998) as scikit-learn has them",
        "CC BY 4.0",
        lambda _: load_digits(),
        without="part of scikit-learn",
    ),
    "dsprites": _DSPRITES,
    "dsprites-dependent": dataclasses.replace(
        _DSPRITES,
        rows=(99_072, 5_504, 5_504),
        source="dSprites whose factors depend (Echo paper, table 2)",
        load=dsprites.load_dependent_dsprites,
    ),
    "fashion-mnist": _FASHION,
    "fashion-pca20": dataclasses.replace(
        _FASHION,
        data_shape=(20,),
        source="Fashion-MNIST on its first 20 principal components (MIM paper)",
        load=lambda shelf: project(idx.load_idx(shelf), 20),
    ),
    "gmm1d": Entry(
        (1,),
        (10_000, 2_000, 10_000),
        "mixture of three normal laws on the line",
        "this project's",
        lambda _: load_mixture("gmm1d"),
        without="drawn when it is loaded",
    ),
    "gmm2d": Entry(
        (2,),
        (10_000, 2_000, 10_000),
        "mixture of five normal laws in two dimensions (MIM paper)",
        "this project's",
        lambda _: load_mixture("gmm2d"),
        without="drawn when it is loaded",
    ),
    "gmm20d": Entry(
        (20,),
        (10_000, 2_000, 10_000),
        "mixture of ten normal laws in twenty dimensions",
        "this project's",
        lambda _: load_mixture("gmm20d"),
        without="drawn when it is loaded",
    ),
    "mnist": Entry(
        (1, 28, 28),
        (50_000, 10_000, 10_000),
        "MNIST (LeCun et al. 1998)",
        "none stated",
        idx.load_idx,
        page="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="mnist",
        files=(_names(*idx.FILES["mnist"]),),
        without=_DOWNLOADED,
    ),
    "normal": Entry(
        (1,),
        (10_000, 2_000, 10_000),
        "the normal law N(0, 1) (Mutual Autoencoder paper)",
        "this project's",
        lambda _: load_mixture("normal"),
        without="drawn when it is loaded",
    ),
    "omniglot": Entry(
        (1, 28, 28),
        (23_000, 1_345, 8_070),
        "Omniglot (Lake et al. 2015) at 28 x 28 pixels, split as by Burda et al. (2016)",
        "MIT",
        omniglot.load_omniglot,
        page="https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT",
        folder="omniglot",
        files=((omniglot.FILE.name,), (omniglot.REBUILT,)),
        without=_DOWNLOADED,
    ),
    "ten-states": Entry(
        (10,),
        (10_000, 2_000, 10_000),
        "one-hot rows of ten equally frequent states (Mutual Autoencoder paper)",
        "this project's",
        lambda _: load_states(),
        without="drawn when it is loaded",
    ),
}

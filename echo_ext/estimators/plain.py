"""A first attempt at an estimate, for what most calls ask: plain samples, and the default keywords.

Plain samples are float64 arrays (N,) or (N, d) in C order whose values are finite. With a few hundred of them, reading
every other kind of input takes longer than the kernels. Whatever else is given, and whatever deserves an error or a
warning, is left to the estimator itself. Both apply the same formula, so their estimates are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from echo_ext.estimators.evaluation import TIED_SHARE
from echo_ext.estimators.local_values import LocalValues
from echo_ext.estimators.neighbors import PointSet
from echo_ext.estimators.options import read_options
from echo_ext.estimators.samples import MAX_SAMPLES

__all__ = ["try_plain_samples"]

Estimator = TypeVar("Estimator", bound=Callable[..., Any])
# From samples (N, d) to the variables of the formula, or None to leave them to the estimator.
Prepare: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor] | None]

FLOAT64 = np.dtype(np.float64)


def try_plain_samples(formula: LocalValues, prepare: Prepare | None = None) -> Callable[[Estimator], Estimator]:
    """Decorate an estimator: apply the formula of its default method to plain samples right away.

    Args:
        formula: From variables and options to local values.
        prepare: From samples to variables, where they are not the same.
    """

    def decorate(estimator: Estimator) -> Estimator:
        defaults = estimator.__kwdefaults__ or {}
        num_samples = estimator.__code__.co_argcount

        @wraps(estimator)
        def estimate(*given: Any, **keywords: Any) -> Any:
            has_others = any(
                name != "k" and (name not in defaults or value is not defaults[name])
                for name, value in keywords.items()
            )
            if not has_others and len(given) == num_samples:
                found = _estimate(formula, prepare, given, keywords.get("k", defaults["k"]))
                if found is not None:
                    return found
            return estimator(*given, **keywords)

        return estimate  # type: ignore[return-value]

    return decorate


def _estimate(formula: LocalValues, prepare: Prepare | None, given: Sequence[object], k: object) -> float | None:
    variables = _read(given)
    if variables is not None and prepare is not None:
        variables = prepare(variables)
    if variables is None or type(k) is not int or not 0 < k < variables[0].shape[0]:
        return None
    n = variables[0].shape[0]
    options = read_options(n, k=k)
    values = formula([PointSet(variable) for variable in variables], options)
    if any(share.item() > TIED_SHARE for share in options.tied_shares):
        return None
    return float(np.add.reduce(values.numpy()[0]) / n)


def _read(given: Sequence[object]) -> Sequence[Tensor] | None:
    """Return plain samples as tensors (N, d); None if any are not plain, or differ in number."""
    tensors: list[Tensor] = []
    for value in given:
        if type(value) is not np.ndarray or value.dtype != FLOAT64 or not value.flags.carray:
            return None
        n, dim = value.shape if value.ndim == 2 else (value.size, 1)
        if value.ndim not in (1, 2) or not 0 < dim <= n <= MAX_SAMPLES or not np.isfinite(value).all():
            return None
        if tensors and n != tensors[0].shape[0]:
            return None
        tensors.append(torch.from_numpy(value.reshape(n, dim)))
    return tensors

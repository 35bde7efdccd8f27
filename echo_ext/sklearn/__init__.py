"""Mutual information for scikit-learn: its score functions, with the same values but faster, and a feature selector.

This module needs scikit-learn. As there, continuous variables are scaled to unit variance, a little noise from
``random_state`` separates repeated values, and negative estimates of mutual information become 0. The functions of
``echo_ext`` itself do none of this.
"""

from echo_ext import _checks

_checks.installed("sklearn", purpose="echo_ext.sklearn")

from echo_ext.sklearn.scores import mutual_info_classif, mutual_info_regression  # noqa: E402
from echo_ext.sklearn.selector import MutualInformationSelector  # noqa: E402

__all__ = ["MutualInformationSelector", "mutual_info_classif", "mutual_info_regression"]


def __dir__() -> list[str]:
    return sorted(__all__)

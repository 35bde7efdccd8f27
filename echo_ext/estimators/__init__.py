"""Information estimators by nearest neighbours, for tensors and arrays."""

from .entropy import entropy
from .knn import knn
from .ksg import conditional_mutual_information, mutual_information, total_correlation

__all__ = ["conditional_mutual_information", "entropy", "knn", "mutual_information", "total_correlation"]

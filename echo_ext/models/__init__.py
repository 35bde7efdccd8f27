"""The models of the comparison, each a composition of parts: build one by name, or take the parts by themselves."""

from echo_ext.models.base import Model
from echo_ext.models.recipes import build, recipes

__all__ = ["Model", "build", "recipes"]

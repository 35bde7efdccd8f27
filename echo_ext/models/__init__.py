"""Generative models with a latent variable, each composed of parts: build one by name, or use the parts directly."""

from echo_ext.models.base import Model
from echo_ext.models.recipes import build, recipes

__all__ = ["Model", "build", "recipes"]


def __dir__() -> list[str]:
    return sorted(__all__)

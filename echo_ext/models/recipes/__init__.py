"""Recipes: short functions that compose the models of the papers from parts, each under a name."""

# Each module registers its recipes, in this order.
from echo_ext.models.recipes import echo, gaussian, corex, mutual, mim, two_level  # noqa: F401, I001
from echo_ext.models.recipes.composition import FOLLOW_BATCH
from echo_ext.models.recipes.registry import RECIPES, Recipe, build, find, recipes

__all__ = ["FOLLOW_BATCH", "RECIPES", "Recipe", "build", "find", "recipes"]

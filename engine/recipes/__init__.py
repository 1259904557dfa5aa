"""Recipes: the format, and running a list of steps under the accuracy limit."""

from .runner import RecipeRunner

__all__ = ["RecipeRunner"]

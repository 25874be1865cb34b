"""Recipes: field defaults < recipe file < command line, resolved into one printable, hashable `Recipe`."""

from dd.recipes.evaluation import Evaluation, resolve_evaluation
from dd.recipes.given import parse_overrides
from dd.recipes.layers import RunOptions, data_settings, run_options
from dd.recipes.listing import Listed, about, list_recipes, listed, recipe_file
from dd.recipes.recipe import SETTLED, Recipe
from dd.recipes.resolve import resolve
from dd.recipes.schema import parse_value
from dd.recipes.tables import Cell, RecipeFile

__all__ = [
    "SETTLED",
    "Cell",
    "Evaluation",
    "Listed",
    "Recipe",
    "RecipeFile",
    "RunOptions",
    "about",
    "data_settings",
    "list_recipes",
    "listed",
    "parse_overrides",
    "parse_value",
    "recipe_file",
    "resolve",
    "resolve_evaluation",
    "run_options",
]

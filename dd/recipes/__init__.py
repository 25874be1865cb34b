"""Settings: field defaults < recipe file < command line, resolved into one printable, hashable `Recipe`."""

from dd.recipes.evaluation import Evaluation, resolve_evaluation
from dd.recipes.listing import Listed, cells, listed, recipe_file
from dd.recipes.parse import parse_overrides, parse_value
from dd.recipes.recipe import Recipe
from dd.recipes.resolve import RunOptions, data_settings, resolve, run_options
from dd.recipes.tables import Cell, RecipeFile

__all__ = [
    "Cell",
    "Evaluation",
    "Listed",
    "Recipe",
    "RecipeFile",
    "RunOptions",
    "cells",
    "data_settings",
    "listed",
    "parse_overrides",
    "parse_value",
    "recipe_file",
    "resolve",
    "resolve_evaluation",
    "run_options",
]

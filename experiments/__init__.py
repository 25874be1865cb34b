"""Recipes, recorded results and benchmarks; all but the benchmarks ship with the package."""

"""What pyproject.toml cannot state: the recipes in `configs/` are installed as `lsmfm_jax/recipes`."""

from setuptools import find_packages, setup

RECIPES = "lsmfm_jax.recipes"

setup(packages=[*find_packages(include=["lsmfm_jax", "lsmfm_jax.*"]), RECIPES], package_dir={RECIPES: "configs"})

"""What pyproject.toml cannot state: the recipes and experiments in `configs/` are installed as `lsmfm_jax/recipes`."""

from setuptools import find_packages, setup

RECIPES = "lsmfm_jax.recipes"

EXPERIMENTS = f"{RECIPES}.experiments"

setup(
    packages=[*find_packages(include=["lsmfm_jax", "lsmfm_jax.*"]), RECIPES, EXPERIMENTS],
    package_dir={RECIPES: "configs", EXPERIMENTS: "configs/experiments"},
)

"""What pyproject.toml cannot state: what is in `configs/` is installed as `lsmfm_jax/recipes`."""

from setuptools import find_packages, setup

RECIPES = "lsmfm_jax.recipes"

BELOW = ("experiments", "experiments/tools", "sweeps")
FOLDERS = {RECIPES: "configs", **{f"{RECIPES}.{name.replace('/', '.')}": f"configs/{name}" for name in BELOW}}

setup(
    packages=[*find_packages(include=["lsmfm_jax", "lsmfm_jax.*"]), *FOLDERS],
    package_dir=FOLDERS,
)

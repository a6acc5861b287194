"""What pyproject.toml cannot state: what is in `configs/` is installed as `lsmfm_jax/recipes`."""

from setuptools import find_packages, setup

RECIPES = "lsmfm_jax.recipes"

FOLDERS = {RECIPES: "configs", **{f"{RECIPES}.{name}": f"configs/{name}" for name in ("experiments", "sweeps")}}

setup(
    packages=[*find_packages(include=["lsmfm_jax", "lsmfm_jax.*"]), *FOLDERS],
    package_dir=FOLDERS,
)

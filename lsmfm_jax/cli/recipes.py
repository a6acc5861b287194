"""Shows the recipes that come with the package: `lsmfm recipes`."""

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    recipes = commands.add_parser("recipes", help="list the recipes that --config takes by name")
    recipes.add_argument("name", nargs="?", help="a recipe: its whole run card, and where its file is")
    recipes.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> int:
    from lsmfm_jax.config.recipes import list_recipes, read_recipe

    if options.name:
        recipe = read_recipe(options.name)
        print(f"{recipe.card}\n\nfile: {recipe.path}")
        return 0
    for recipe in list_recipes():
        print(f"{recipe.name:24} {recipe.card.splitlines()[0] if recipe.card else ''}")
        print(f"{'':24} variants: {', '.join(recipe.variants) or 'none'}")
    print("\n--config NAME or NAME:VARIANT takes one; lsmfm recipes NAME shows its commands, hardware and variants")
    return 0

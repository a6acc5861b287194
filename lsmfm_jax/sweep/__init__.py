"""A search over settings of a recipe: many short runs, of which those that lag behind are stopped early."""

"""Plans a segmentation recipe from the patches at hand: `lsmfm plan`."""

import argparse
import pathlib

RECIPE = "segment_unet:cpu"


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command of this file."""
    plan = commands.add_parser(
        "plan",
        help="write a segmentation recipe for a folder of annotated patches",
        epilog="keys that say how the labels are read, or that the plan is to leave: "
        '"--config.data.ignore_labels=(0,)", --config.data.background_sigma_voxels=8',
    )
    plan.add_argument("folder", metavar="FOLDER", help="annotated patches, as data.folder of `lsmfm finetune`")
    plan.add_argument(
        "--recipe", default=RECIPE, metavar="RECIPE[:VARIANT]", help=f"what the plan starts from (default {RECIPE})"
    )
    plan.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("plan.py"), help="recipe to write, and a page beside it"
    )
    plan.add_argument("--overwrite", action="store_true", help="replace files that are no plan, or were changed since")
    plan.set_defaults(run=_plan, takes_overrides=True)


def _plan(options: argparse.Namespace) -> int:
    from lsmfm_jax.config import ConfigError, flatten, load_config
    from lsmfm_jax.errors import InputError
    from lsmfm_jax.files import refuse_foreign, replace_text
    from lsmfm_jax.planning import page, recipe

    config = load_config(options.recipe, options.overrides)
    if config.task != "segment":
        raise ConfigError(
            f"--recipe: {options.recipe} is of task {config.task!r}; `lsmfm plan` reads masks, so name a recipe of "
            f"segmentation, such as {RECIPE}"
        )
    out, beside = options.out, options.out.with_suffix(".html")
    if out.suffix != ".py":
        raise InputError(
            f"--out: {out} must end in .py, since --config takes a recipe by that; name one such as plan.py"
        )
    if pathlib.Path(options.recipe.partition(":")[0]).resolve() == out.resolve():
        raise InputError(f"--recipe, --out: {out} would call itself; write the plan to another file with --out")
    recipe.refuse_changed(out, overwrite=options.overwrite)
    refuse_foreign(beside, made_by="plan", mark=page.MARK.encode(), overwrite=options.overwrite)
    folder = pathlib.Path(options.folder).resolve()
    config.data.folder = str(folder)
    # Only now: JAX takes seconds to import, and a wrong argument should be told at once.
    from lsmfm_jax.planning.fingerprint import facts
    from lsmfm_jax.planning.plan import make_plan
    from lsmfm_jax.tasks.finetune_patches import annotated_patches
    from lsmfm_jax.tasks.inputs import configured_scale

    patches = annotated_patches(config, print_line=print)
    names = [one.removeprefix("--config.").partition("=")[0] for one in options.overrides]
    plan = make_plan(config, patches.train, patches.validation, given=names)
    if config.init_from:  # the recipe is to work from any folder
        config.init_from = str(pathlib.Path(config.init_from).resolve())
    values = dict(flatten(config))
    given = {"data.folder": str(folder)} | {name: values[name] for name in names}
    text = recipe.recipe_text(options.recipe, plan.decisions, plan.overall, given=given, name=out.name)
    replace_text(out, text)
    planned = load_config(str(out))
    subtitle = (
        f"patches: {plan.overall.patches}, volumes: {len(plan.volumes)}, in {folder}; the plan starts from "
        f"{options.recipe} and is in {out.name}"
    )
    everything = [*patches.train, *patches.validation]
    title = f"Plan: {folder.name}"
    replace_text(
        beside,
        page.plan_page(plan, everything, title=title, subtitle=subtitle, scale=configured_scale(planned)),
    )
    print("; ".join(f"{name}: {value}" for name, value in facts(plan.overall).items()))
    for one in plan.decisions:
        print(f"{one.key} = {recipe.source_of(one.value)}{'' if one.changed else ' (as the recipe has it)'}: {one.why}")
    print(f"recipe: {out}")
    print(f"page:   {beside}")
    print(f"next:   lsmfm finetune --config {out if out.is_absolute() else f'./{out}'} --workdir RUN")
    return 0

"""Judges masks of any tool, and pretrained runs: `lsmfm evaluate`, `lsmfm zeroshot`, `lsmfm probe`."""

import argparse
import pathlib

from lsmfm_jax.cli.arguments import three, whole_numbers


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    _add_zeroshot(commands)
    _add_probe(commands)
    evaluate = commands.add_parser("evaluate", help="judge masks or label images of any tool against labels")
    evaluate.add_argument(
        "--pred",
        required=True,
        help="folder of predictions: masks, labels, or CSVs of z,y,x; or one volume of any size",
    )
    evaluate.add_argument(
        "--label", required=True, help="folder of labels, or of CSVs of z,y,x; or the one volume's labels or CSV"
    )
    evaluate.add_argument("--out", required=True, type=pathlib.Path, help="CSV to write")
    kinds = ("auto", "mask", "labels")
    evaluate.add_argument("--kind", choices=kinds, default="auto", help="what predictions are (default: by content)")
    evaluate.add_argument("--label-kind", choices=kinds, default="auto", help="what labels are")
    evaluate.add_argument("--method", default="prediction", help="name of the predictions in the table")
    evaluate.add_argument("--threshold", type=float, default=0.5, help="value from which on a voxel is foreground")
    evaluate.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26, help="of components")
    evaluate.add_argument("--minimum-voxels", type=int, default=1, help="smaller instances are left out")
    evaluate.add_argument("--match-dice", type=float, default=0.3, help="least Dice of matched instances")
    evaluate.add_argument("--spacing-um", type=three(float), metavar="Z,Y,X", help="voxel size, for HD95")
    evaluate.add_argument("--match-distance-voxels", type=float, help="largest distance of one object (default: 4)")
    evaluate.add_argument("--match-distance-um", type=float, help="the same in micrometres; needs --spacing-um")
    evaluate.add_argument("--pattern", help="regular expression whose group in a file's name is the patch")
    evaluate.add_argument("--volume-pattern", help="regular expression whose first group is the volume's name")
    _add_label_values(evaluate)
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    evaluate.add_argument(
        "--max-ram", default="8G", help="of one volume: what needs all of it is left out beyond this (default 8G)"
    )
    evaluate.set_defaults(run=_evaluate)


def _add_label_values(command: argparse.ArgumentParser) -> None:
    values = {"type": whole_numbers, "default": (), "metavar": "VALUES"}
    command.add_argument("--foreground", **values, help="label values that are foreground, such as 2,4")
    command.add_argument("--background", **values, help="label values that are background")
    command.add_argument("--ignore", **values, help="label values of voxels that count in no metric")


def _add_zeroshot(commands: argparse._SubParsersAction) -> None:
    zeroshot = commands.add_parser(
        "zeroshot", help="classify patches by texts alone, with a run pretrained on captions"
    )
    zeroshot.add_argument("run_folder", type=pathlib.Path, metavar="RUN", help="folder of a pretraining run")
    zeroshot.add_argument("patches", type=pathlib.Path, metavar="PATCHES", help="folder of patches, or a store")
    zeroshot.add_argument(
        "--classes", required=True, type=pathlib.Path, help="JSON: a text or a list of texts for each class"
    )
    zeroshot.add_argument("--out", type=pathlib.Path, help="folder for zeroshot.csv, confusion.csv and summary.json")
    zeroshot.add_argument(
        "--class-from",
        choices=("name", "folder", "csv"),
        default="name",
        help="where a patch's class is: its name before _patch_, its folder (in a store: caption key), or a CSV",
    )
    zeroshot.add_argument("--csv", default="", help="table with the columns name and class, for --class-from csv")
    zeroshot.add_argument("--volume-pattern", default="", help="regular expression whose first group is the volume")
    zeroshot.add_argument(
        "--random-draws", type=int, default=3, help="networks with random weights to compare with (default 3)"
    )
    zeroshot.set_defaults(run=_zeroshot)


def _add_probe(commands: argparse._SubParsersAction) -> None:
    probe = commands.add_parser(
        "probe", help="what a run's features say of voxels: a linear layer on them, beside random weights"
    )
    probe.add_argument("run_folder", type=pathlib.Path, metavar="RUN", help="folder of a run; it may still train")
    probe.add_argument("folder", type=pathlib.Path, metavar="PATCHES", help="annotated patches, as for finetuning")
    _add_label_values(probe)
    probe.add_argument("--out", type=pathlib.Path, help="JSON to write")
    probe.add_argument("--seed", type=int, default=0, help="of the split, the voxels and the random weights")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.linear_probe import probe_run
    from lsmfm_jax.train.compilation import start_devices

    print_line = start_devices()
    probe_run(
        options.run_folder,
        options.folder,
        foreground=options.foreground,
        background=options.background,
        ignore=options.ignore,
        out=options.out,
        seed=options.seed,
        print_line=print_line,
    )
    return 0


def _zeroshot(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.zeroshot import PatchChoice, zero_shot
    from lsmfm_jax.train.compilation import start_devices

    zero_shot(
        options.run_folder,
        options.patches,
        options.classes,
        out=options.out,
        choice=PatchChoice(options.class_from, options.csv, options.volume_pattern),
        random_draws=options.random_draws,
        print_line=start_devices(),
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from lsmfm_jax.data.labels import LabelValues
    from lsmfm_jax.data.mask_folders import MaskFolderError
    from lsmfm_jax.evaluate import NAMES, are_volumes, evaluate_folders, evaluate_volumes, format_table
    from lsmfm_jax.predict.plan import parse_bytes

    names = ("kind", "label_kind", "method", "threshold", "connectivity", "minimum_voxels", "match_dice")
    names += ("spacing_um", "match_distance_voxels", "match_distance_um", "pattern", "volume_pattern", "seed")
    settings = {name: getattr(options, name) for name in names}
    settings["values"] = LabelValues(options.foreground, options.background, options.ignore, names=NAMES)
    if are_volumes(options.pred, options.label):
        if settings.pop("pattern") is not None:
            raise MaskFolderError("--pattern: it pairs the files of two folders; leave it out for two volumes")
        settings["max_ram_bytes"] = parse_bytes(options.max_ram)
        result = evaluate_volumes(options.pred, options.label, options.out, **settings)
    else:
        result = evaluate_folders(options.pred, options.label, options.out, **settings)
    print(format_table(result))
    print(f"table: {options.out}")
    return 0

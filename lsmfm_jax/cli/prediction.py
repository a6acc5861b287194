"""Predicts with a run, or with its baselines: `lsmfm predict`, `lsmfm baseline`."""

import argparse
import pathlib

from lsmfm_jax.cli.arguments import from_zero, part, three
from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.train.platform_flags import MODES


class ArgumentsError(LsmfmError, ValueError):
    """Arguments that do not go together; says which to give."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    _add_predict(commands)
    _add_baseline(commands)
    _add_calibrate(commands)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser(
        "predict", help="masks, classes, sharper or restored volumes of image files, or of one volume of any size"
    )
    predict.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        action="append",
        metavar="RUN",
        help="folder of a finetuned run; several times, for files: the mean of segmentation runs",
    )
    predict.add_argument("inputs", nargs="*", metavar="INPUT", help="image files, folders of them; or one volume")
    predict.add_argument(
        "--out",
        type=pathlib.Path,
        help="folder for results, table and pictures; RESULT.ome.zarr: one volume of any size is predicted into it",
    )
    predict.add_argument("--tta", action="store_true", help="average over the eight flips of each window")
    predict.add_argument(
        "--uncertainty", action="store_true", help="of one run with --tta: write how much the flips disagree, too"
    )
    predict.add_argument("--window", type=three(int), metavar="Z,Y,X", help="voxels (default: the run's patch size)")
    predict.add_argument("--overlap", type=float, default=0.25, help="least overlap of windows (default 0.25)")
    predict.add_argument("--threshold", type=float, default=0.5, help="probability of foreground (default 0.5)")
    predict.add_argument("--label-dir", type=pathlib.Path, help="labels to judge by (default: those beside the files)")
    predict.add_argument("--batch", type=int, default=1, help="windows on the device at a time (default 1)")
    predict.add_argument("--xla", choices=MODES, help="flags of the compiler (default: the run's train.xla)")
    predict.add_argument("--overwrite", action="store_true", help="replace results that are there")
    brain = predict.add_argument_group("one volume of any size, with --out RESULT.ome.zarr")
    brain.add_argument("--channel", type=from_zero, help="of the volume, or of each file, from 0")
    brain.add_argument("--level", type=from_zero, default=0, help="of its pyramid, 0 is the finest (default 0)")
    brain.add_argument(
        "--box",
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="voxels of it to predict, with the values that they have in a prediction of all of it (default: all)",
    )
    brain.add_argument(
        "--levels-from", type=pathlib.Path, metavar="RESULT", help="an earlier result that measured this volume already"
    )
    brain.add_argument(
        "--mask", metavar="VOLUME", help="above 0 where there is tissue, of the whole volume; may be coarser than it"
    )
    brain.add_argument("--max-ram", default="8G", help="memory that one process may use (default 8G)")
    brain.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    brain.add_argument("--prepare", action="store_true", help="measure the volume and make the result; predict nothing")
    brain.add_argument("--part", metavar="I/N", help="do this part of the work only; then --merge")
    brain.add_argument(
        "--merge", metavar="RESULT", type=pathlib.Path, help="all parts are done: pyramid, objects, table, report"
    )
    brain.add_argument("--outputs", default="probability,mask", help="of a segmentation (default probability,mask)")
    brain.add_argument("--shard", type=three(int), metavar="Z,Y,X", help="voxels of a file (default: by memory)")
    brain.add_argument("--no-skip", action="store_true", help="predict blank parts of the volume too")
    brain.add_argument(
        "--blank-below",
        type=float,
        metavar="COUNTS",
        help="parts with no voxel above are blank (default: what the network sees as 0)",
    )
    _add_objects(predict.add_argument_group("objects of the volume, also with --merge"))
    predict.set_defaults(run=_predict)


def _add_objects(objects: argparse._ArgumentGroup) -> None:
    # Without defaults here: with --merge, what is not given is as it was when the result was made.
    objects.add_argument("--no-objects", action="store_true", help="no instances and no table")
    objects.add_argument("--connectivity", type=int, choices=(6, 18, 26), help="of an object's voxels (default 26)")
    objects.add_argument("--minimum-um3", type=float, help="smaller objects are left out, in µm³ (default 0)")
    objects.add_argument("--split-touching", action="store_true", help="cut touching cells apart at their waists")
    objects.add_argument("--split-um", type=float, help="least distance of the middles of two cells (default 5)")
    objects.add_argument("--also", choices=("nifti", "tiff"), help="the mask as a file beside the result, too")


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    calibrate = commands.add_parser("calibrate", help="move a run's cut-off by annotated patches of a new volume")
    calibrate.add_argument("run_folder", type=pathlib.Path, metavar="RUN", help="folder of a segmentation run")
    calibrate.add_argument(
        "--patch", dest="patches", nargs="+", required=True, type=pathlib.Path, help="images with labels, or folders"
    )
    calibrate.add_argument("--label-dir", type=pathlib.Path, help="labels that do not lie beside their images")
    calibrate.add_argument("--out", required=True, type=pathlib.Path, help="folder for the calibrated copy")
    calibrate.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.calibration import calibrate
    from lsmfm_jax.train.compilation import start_devices

    calibrate(options.run_folder, options.patches, options.out, label_dir=options.label_dir, print_line=start_devices())
    return 0


def _add_baseline(commands: argparse._SubParsersAction) -> None:
    baseline = commands.add_parser(
        "baseline", help="thresholds, or PCA and logistic regression, fitted on the training patches of a run"
    )
    baseline.add_argument("--run", dest="folder", required=True, type=pathlib.Path, help="folder of a finetuned run")
    baseline.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="INPUT", help="image files, folders of them")
    baseline.add_argument("--out", required=True, type=pathlib.Path, help="folder for a folder of each baseline")
    baseline.add_argument("--label-dir", type=pathlib.Path, help="labels to judge by (default: those beside the files)")
    baseline.add_argument("--data", type=pathlib.Path, help="the run's labelled patches, if they have moved")
    baseline.add_argument("--overwrite", action="store_true", help="replace results that are there")
    baseline.set_defaults(run=_baseline)


def _predict(options: argparse.Namespace) -> int:
    if options.merge is not None:
        return _merge(options)
    for name, value in (("--checkpoint", options.checkpoint), ("--out", options.out), ("INPUT", options.inputs)):
        if not value:
            raise ArgumentsError(f"lsmfm predict needs {name}; or --merge RESULT.ome.zarr for a result of parts")
    if options.out.suffix == ".zarr":
        return _predict_brain(options)
    _refuse_options(options)
    from lsmfm_jax.predict.run import Settings, predict
    from lsmfm_jax.train.compilation import start_devices

    print_line = start_devices()
    predict(
        options.checkpoint,
        [pathlib.Path(path) for path in options.inputs],
        options.out,
        settings=Settings(options.overlap, options.threshold, options.batch, options.channel),
        window=options.window,
        flips=options.tta,
        uncertainty=options.uncertainty,
        xla=options.xla,
        label_dir=options.label_dir,
        overwrite=options.overwrite,
        print_line=print_line,
    )
    return 0


def _refuse_options(options: argparse.Namespace) -> None:
    """Options of one volume, and volumes that are folders, need an OME-Zarr to write to."""
    named = ("box", "levels_from", "mask", "part", "dry_run", "prepare", "shard", "no_skip", "blank_below")
    named += ("also",)
    given = [name for name in named if getattr(options, name) not in (None, False)]
    volumes = [path for path in options.inputs if "://" in path or pathlib.Path(path).suffix in (".zarr", ".n5")]
    if given or volumes:
        what = f"--{given[0].replace('_', '-')}" if given else volumes[0]
        raise ArgumentsError(
            f"--out {options.out}: {what} needs --out RESULT.ome.zarr, which takes volumes of any size"
        )


def _predict_brain(options: argparse.Namespace) -> int:
    if len(options.inputs) > 1:
        raise ArgumentsError(
            f"--out {options.out}: one volume is predicted into an OME-Zarr; {len(options.inputs)} named"
        )
    if options.label_dir is not None:
        raise ArgumentsError("--label-dir: not for one volume; judge the result with lsmfm evaluate")
    if len(options.checkpoint) > 1 or options.uncertainty:
        what = "--uncertainty" if options.uncertainty else f"{len(options.checkpoint)} times --checkpoint"
        raise ArgumentsError(
            f"--out {options.out}: {what}, and one volume of any size is predicted with one run and without "
            "uncertainty; name image files and a folder, or a single --checkpoint alone"
        )
    from lsmfm_jax.predict.brain import plan_brain, plan_lines, predict_brain
    from lsmfm_jax.predict.brain_settings import BrainSettings
    from lsmfm_jax.predict.merge import merge
    from lsmfm_jax.predict.network import load_predictor
    from lsmfm_jax.predict.plan import parse_bytes
    from lsmfm_jax.predict.tissue import TissueMask
    from lsmfm_jax.train.compilation import start_devices
    from lsmfm_jax.volumes.open import open_volume

    settings = BrainSettings(
        overlap_frac=options.overlap,
        threshold=options.threshold,
        batch_size=options.batch,
        flips=options.tta,
        outputs=tuple(options.outputs.split(",")),
        skip_blank=not options.no_skip,
        blank_below=options.blank_below,
        max_ram_bytes=parse_bytes(options.max_ram),
        part=_part(options.part),
        shard=options.shard,
        box=_box(options.box),
    )
    volume = open_volume(options.inputs[0], channel=options.channel, level=options.level)
    print_line = start_devices()
    predictor = load_predictor(options.checkpoint[0], window=options.window, flips=options.tta, xla=options.xla)
    if options.dry_run:
        for line in plan_lines(predictor, plan_brain(predictor, volume, settings), volume, settings):
            print_line(line)
        return 0
    tissue = None if options.mask is None else TissueMask(open_volume(options.mask, mask=True), volume.shape)
    predict_brain(
        predictor,
        volume,
        options.out,
        settings=settings,
        tissue=tissue,
        merging=_merging(options),
        levels_from=options.levels_from,
        overwrite=options.overwrite,
        prepare_only=options.prepare,
        print_line=print_line,
    )
    if options.part is None and not options.prepare:
        merge(options.out, max_ram_bytes=settings.max_ram_bytes, print_line=print_line)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.merge import merge
    from lsmfm_jax.predict.plan import parse_bytes

    if options.inputs or options.checkpoint or options.out or options.part:
        raise ArgumentsError(
            "--merge RESULT takes no INPUT, --checkpoint, --out or --part: it works on the result alone"
        )
    merge(options.merge, changes=_merging(options), max_ram_bytes=parse_bytes(options.max_ram), print_line=print)
    return 0


def _merging(options: argparse.Namespace) -> dict[str, object]:
    """What was given of how objects are made."""
    given = {name: getattr(options, name) for name in ("connectivity", "minimum_um3", "split_um", "also")}
    given |= {name: True for name in ("no_objects", "split_touching") if getattr(options, name)}
    return {name: value for name, value in given.items() if value is not None}


def _part(text: str | None) -> tuple[int, int]:
    try:
        return (1, 1) if text is None else part(text)
    except argparse.ArgumentTypeError as error:
        raise ArgumentsError(f"--part {error}") from None


def _box(text: str | None) -> tuple[slice, slice, slice] | None:
    from lsmfm_jax.volumes.lazy import parse_box

    try:
        return None if text is None else parse_box(text)
    except ValueError as error:
        raise ArgumentsError(f"--box: {error}") from None


def _baseline(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.baseline import predict_baselines

    predict_baselines(
        options.folder,
        options.inputs,
        options.out,
        label_dir=options.label_dir,
        data=options.data,
        overwrite=options.overwrite,
    )
    return 0

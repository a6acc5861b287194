"""Says what to annotate next: `lsmfm next-boxes`."""

import argparse
import pathlib

from lsmfm_jax.cli.arguments import three


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command of this file."""
    boxes = commands.add_parser("next-boxes", help="cut out the boxes to annotate next, where runs are most uncertain")
    boxes.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        action="append",
        required=True,
        metavar="RUN",
        help="folder of a segmentation run; several times: their disagreement (of one run: its entropy)",
    )
    boxes.add_argument("inputs", nargs="+", type=pathlib.Path, metavar="INPUT", help="image files, folders of them")
    boxes.add_argument("--out", required=True, type=pathlib.Path, help="new folder for boxes, table and picture")
    boxes.add_argument("--count", type=int, default=5, help="boxes, in turns from the volumes (default 5)")
    boxes.add_argument(
        "--size", type=three(int), default=(32, 32, 32), metavar="Z,Y,X", help="voxels of a box (default 32,32,32)"
    )
    boxes.add_argument("--tta", action="store_true", help="average over eight flips; of one run: their disagreement")
    boxes.add_argument("--window", type=three(int), metavar="Z,Y,X", help="voxels (default: each run's patch size)")
    boxes.add_argument("--overlap", type=float, default=0.25, help="least overlap of windows (default 0.25)")
    boxes.add_argument("--batch", type=int, default=1, help="windows on the device at a time (default 1)")
    boxes.add_argument("--volume-pattern", metavar="REGEX", help="tells the volume from a file's name")
    boxes.set_defaults(run=_next_boxes)


def _next_boxes(options: argparse.Namespace) -> int:
    from lsmfm_jax.predict.in_memory import Settings
    from lsmfm_jax.predict.next_boxes import propose_boxes
    from lsmfm_jax.train.compilation import start_devices

    print_line = start_devices()
    propose_boxes(
        options.checkpoint,
        options.inputs,
        options.out,
        count=options.count,
        size=options.size,
        settings=Settings(overlap_frac=options.overlap, batch_size=options.batch),
        window=options.window,
        flips=options.tta,
        volume_pattern=options.volume_pattern,
        print_line=print_line,
    )
    return 0

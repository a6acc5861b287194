"""Blinded ranking by experts: `lsmfm ranking make`, `lsmfm ranking score`."""

import argparse
import pathlib

from lsmfm_jax.cli.arguments import from_zero


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    ranking = commands.add_parser("ranking", help="experts rank masks without knowing whose they are").add_subparsers(
        required=True, metavar="COMMAND"
    )
    make = ranking.add_parser("make", help="a folder for experts: a page that opens from disk, and a key beside it")
    make.add_argument("--images", required=True, type=pathlib.Path, help="folder of images: NIfTI, TIFF or .npy")
    make.add_argument(
        "--method",
        required=True,
        action="append",
        metavar="NAME=FOLDER",
        help="a method and the folder of its masks, named as for `lsmfm evaluate`; give it once for each method",
    )
    make.add_argument("--out", required=True, type=pathlib.Path, metavar="KIT", help="folder to write")
    make.add_argument("--cases", type=int, default=60, help="images to draw, equally over volumes (default 60)")
    make.add_argument("--seed", type=from_zero, default=0, help="of the draws and of the letters (default 0)")
    make.add_argument("--threshold", type=float, default=0.5, help="value from which on a voxel is foreground")
    make.add_argument("--pattern", help="regular expression whose group in a mask's file name is the image's name")
    make.add_argument("--volume-pattern", help="regular expression whose first group is the volume's name")
    make.set_defaults(run=_make)
    score = ranking.add_parser("score", help="points, intervals and agreement from the files that experts saved")
    score.add_argument("results", nargs="+", type=pathlib.Path, metavar="RESULTS.json", help="a file of each expert")
    score.add_argument("--key", required=True, type=pathlib.Path, metavar="KIT.key.json", help="the key of the kit")
    score.add_argument("--out", required=True, type=pathlib.Path, help="folder for tables and page")
    score.add_argument("--seed", type=from_zero, default=0, help="of the bootstrap")
    score.set_defaults(run=_score)


def _make(options: argparse.Namespace) -> int:
    from lsmfm_jax.ranking.cases import parse_methods
    from lsmfm_jax.ranking.kit import make_kit

    make_kit(
        options.images,
        parse_methods(options.method),
        options.out,
        cases=options.cases,
        seed=options.seed,
        threshold=options.threshold,
        pattern=options.pattern,
        volume_pattern=options.volume_pattern,
    )
    return 0


def _score(options: argparse.Namespace) -> int:
    from lsmfm_jax.files import refuse_foreign
    from lsmfm_jax.ranking import report
    from lsmfm_jax.ranking.results import read_key, read_results
    from lsmfm_jax.ranking.score import score

    refuse_foreign(options.out, made_by=report.MADE_BY, flag=False)
    key = read_key(options.key)
    scores = score(key, read_results(options.results, key), seed=options.seed)
    report.write_scores(scores, options.out)
    for line in report.lines(scores):
        print(line)
    print(f"{report.POINTS}, {report.SUMMARY} and {report.PAGE} in {options.out}")
    return 0

"""Hands runs on to others: `lsmfm card`, `lsmfm package`."""

import argparse
import pathlib


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    _add_card(commands)
    _add_package(commands)


def _add_card(commands: argparse._SubParsersAction) -> None:
    card = commands.add_parser("card", help="a model card of a run, in Markdown")
    card.add_argument("run_folder", type=pathlib.Path, metavar="RUN", help="folder of a run")
    card.add_argument("--out", type=pathlib.Path, metavar="FILE", help="file to write (default: print it)")
    _add_stated(card)
    card.set_defaults(run=_card)


def _add_package(commands: argparse._SubParsersAction) -> None:
    package = commands.add_parser("package", help="a run as a folder to hand on, without the paths of this machine")
    package.add_argument("run_folder", type=pathlib.Path, metavar="RUN", help="folder of a run")
    package.add_argument("--out", required=True, type=pathlib.Path, metavar="FOLDER", help="folder to make")
    package.add_argument(
        "--for",
        dest="target",
        choices=("hub", "bioimageio"),
        default="hub",
        help="the Hugging Face hub (default): read like a run; or bioimage.io: a segmentation network for PyTorch",
    )
    _add_stated(package)
    package.add_argument("--license-file", type=pathlib.Path, metavar="FILE", help="the licence's text, for LICENSE")
    package.set_defaults(run=_package)


def _add_stated(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--license", default="", metavar="SPDX", help="licence of the weights, such as CC-BY-4.0 (default: not stated)"
    )
    command.add_argument(
        "--author", action="append", default=[], metavar="NAME", help="who made the model; repeat it for each person"
    )


def _card(options: argparse.Namespace) -> int:
    from lsmfm_jax.publish.card import card, write_card
    from lsmfm_jax.publish.stated import Stated

    stated = Stated(options.license, tuple(options.author))
    run, out = options.run_folder, options.out
    print(card(run, stated=stated) if out is None else write_card(run, out, stated=stated))
    return 0


def _package(options: argparse.Namespace) -> int:
    from lsmfm_jax.publish.bioimageio import package_for_bioimageio
    from lsmfm_jax.publish.hub import package_for_hub
    from lsmfm_jax.publish.stated import Stated

    stated = Stated(options.license, tuple(options.author))
    package = package_for_hub if options.target == "hub" else package_for_bioimageio
    lines = package(options.run_folder, options.out, stated=stated, license_file=options.license_file)
    print("\n".join(lines))
    return 0

"""nnU-Net trained from random weights on a few patches of one volume, judged on other volumes like `few_shot.py`.

python benchmarks/vs_nnunet.py --python NNUNET/bin/python --folder PATCHES --learn a b c d e --test f g h --seeds 1 \
    --epochs 1 --iterations 300 --crop 40 --work WORK --json FILE

NNUNET is an environment with `pip install 'nnunetv2>=2.8,<3'`. It learns from all patches that are named, those that
validate elsewhere included. Plan, network, loss and augmentation are its own; crops, and the number of steps, are what
two cores can bear: without `--crop` and with `--epochs 1000 --iterations 250` it is nnU-Net as it comes, for a card.
"""

import pathlib
import subprocess
from typing import Any

import few_shot
import labelled_mixture
import outcome

from lsmfm_jax.experiment.cells import gather_patches
from lsmfm_jax.experiment.commands import CommandFailed, run_once
from lsmfm_jax.experiment.statistics import summary
from lsmfm_jax.files import replacing_folder

RUN = outcome.ROOT / "configs" / "experiments" / "tools" / "nnunet_run.py"


def learnt_from(options: Any) -> pathlib.Path:
    """A folder of the training patches; 1 is foreground, 255 counts nowhere."""
    folder = options.work / "learn"
    if not folder.exists():
        chosen = gather_patches(options.folder, options.learn, options.work / "chosen")
        values = ":".join(",".join(map(str, of)) for of in (options.foreground, options.ignore))
        with replacing_folder(folder) as made:
            labelled_mixture.write_part(made, f"patch={chosen}:{values}", leave_out=())
    return folder


def masks_of(options: Any, seed: int, tests: pathlib.Path) -> pathlib.Path:
    """Masks of the test patches by nnU-Net trained with one seed; what is there is not made again."""
    model = options.work / f"nnunet-{seed}"
    images, out, log = options.work / "images", model / "masks", model.with_suffix(".log")
    images.mkdir(exist_ok=True)
    for name in options.test:
        link = images / f"{name}.nii.gz"
        if not link.exists():
            link.symlink_to((tests / link.name).resolve())
    settings = {"--epochs": options.epochs, "--iterations": options.iterations, "--patch": options.crop, "--seed": seed}
    train = (options.python, RUN, "train", learnt_from(options), model, "--ignore", labelled_mixture.IGNORE_VALUE)
    given = [word for pair in settings.items() for word in pair]
    device = ("--device", options.device)
    run_once([*map(str, (*train, *given, *device))], model.with_suffix(".trained"), log=log)
    predict = (options.python, RUN, "predict", model, images, out, "--no-mirroring", *device)
    run_once([*map(str, predict)], model.with_suffix(".predicted"), log=log)
    for extra in out.glob("*.json"):
        extra.unlink()
    return out


def study(options: Any) -> dict[str, Any]:
    """Scores of all seeds on the test patches."""
    options.work.mkdir(parents=True, exist_ok=True)
    tests = gather_patches(options.folder, options.test, options.work / "test")
    found = []
    for seed in options.seeds:
        masks = masks_of(options, seed, tests)
        found.append(few_shot.judge(options, masks, options.work / f"nnunet-{seed}.csv")["prediction"])
        print(seed, "dice", round(summary(found[-1:])["dice"]["mean"], 3), flush=True)
    return summary(found)


def main() -> None:
    """Runs the study that the command line describes."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--python", type=pathlib.Path, required=True, help="interpreter of nnU-Net's environment")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--learn", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=250, help="of an epoch")
    parser.add_argument("--crop", type=int, default=0, help="largest side of its crops; 0: as it plans")
    parser.add_argument("--foreground", nargs="*", type=int, default=(), help="label values that are foreground")
    parser.add_argument("--ignore", nargs="*", type=int, default=(), help="label values that count nowhere")
    parser.add_argument("--device", default="cpu", help="for PyTorch (default cpu)")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of the runs")
    options = parser.parse_args()
    try:
        scores = study(options)
    except CommandFailed as error:
        raise SystemExit(f"{error}; the logs are in {options.work}") from error
    facts = outcome.facts("vs_nnunet", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    # Where folders lay on this machine does not matter to a reader.
    facts["command"] = "benchmarks/vs_nnunet.py"
    facts["versions"] |= versions_there(options.python)
    settings = {
        key: getattr(options, key)
        for key in ("learn", "test", "seeds", "epochs", "iterations", "crop", "foreground", "ignore", "device")
    }
    outcome.finish({**facts, "settings": settings, "mirrored": False, "test": scores}, options.json)


def versions_there(python: pathlib.Path) -> dict[str, str]:
    """Versions of nnU-Net and PyTorch in their environment."""
    names = ("nnunetv2", "torch")
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {names!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))


if __name__ == "__main__":
    main()

"""One folder of labelled patches from several, to train one network on the structures of all of them.

python benchmarks/labelled_mixture.py --out mixture --part cfos=PATCHES --part axons=OTHER_PATCHES:2:0,4 \
    --leave-out cfos_patchvolume_1147

A part is NAME=FOLDER, and behind colons the label values that are foreground (all above 0 where none is named) and
those that count nowhere. In the new folder 1 is foreground, 0 is not, 255 counts nowhere; its patches are called
NAME_PATCH, and the images are links. `lsmfm finetune --config.data.folder=mixture "--config.data.ignore_labels=(255,)"`
trains on it, and a finetuning of another structure starts from that run by `--config.init_from=RUN`.
"""

import argparse
import os
import pathlib

import nibabel
import numpy as np

from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of

LABEL = "_label.nii.gz"
IGNORE_VALUE = 255


def values_of(part: str) -> tuple[str, pathlib.Path, LabelValues]:
    """Name, folder and label values of a part, as the command line has it: `NAME=FOLDER[:FOREGROUND[:IGNORED]]`."""
    name, equals, rest = part.partition("=")
    if not equals:
        raise SystemExit(f"--part {part}: NAME=FOLDER is needed")
    folder, *values = rest.split(":")
    foreground, ignored = (tuple(int(value) for value in text.split(",") if value) for text in (*values, "", "")[:2])
    return name, pathlib.Path(folder), LabelValues(foreground, (), ignored)


def write_part(out: pathlib.Path, part: str, *, leave_out: tuple[str, ...]) -> int:
    """Links the images of a part and writes its labels; gives the number of patches."""
    name, folder, values = values_of(part)
    labels = sorted(folder.glob("*" + LABEL))
    if not labels:
        raise SystemExit(f"--part {part}: no *{LABEL} in {folder}")
    written = 0
    for label in labels:
        patch = label.name.removesuffix(LABEL)
        if f"{name}_{patch}".startswith(leave_out):
            continue
        stored = nibabel.load(label)
        target = target_of(np.asarray(stored.dataobj), values, source=str(label))
        target = np.where(target == IGNORED, IGNORE_VALUE, target).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(target, stored.affine), out / f"{name}_{patch}{LABEL}")
        os.symlink((folder / f"{patch}.nii.gz").resolve(), out / f"{name}_{patch}.nii.gz")
        written += 1
    return written


def main() -> None:
    """Writes the folder that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to make; must not be there")
    parser.add_argument("--part", action="append", required=True, metavar="NAME=FOLDER[:FOREGROUND[:IGNORED]]")
    parser.add_argument("--leave-out", nargs="*", default=(), metavar="BEGINNING", help="patches not to take")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    for part in options.part:
        print(part, write_part(options.out, part, leave_out=tuple(options.leave_out)), "patches")


if __name__ == "__main__":
    main()

"""nnU-Net on a folder of patches, trained from random weights or used; run by the Python that has it.

    python nnunet_run.py train FOLDER MODEL --epochs 1000 --iterations 250
    python nnunet_run.py predict MODEL IMAGES OUT

FOLDER holds `<patch>.nii.gz` and `<patch>_label.nii.gz` (1 is foreground; `--ignore` names what counts nowhere),
IMAGES `<patch>.nii.gz`, OUT gets masks under the same names. Fingerprint, plan, augmentation, loss and network are
nnU-Net's; `--patch` makes its crops, and with them its network, smaller than planned, for machines without a card.
"""

import argparse
import json
import os
import pathlib
import shutil

ENDING, LABEL = ".nii.gz", "_label.nii.gz"
NUMBER, DATASET = 1, "Dataset001_patches"
CONFIGURATION = "3d_fullres"
FOLD = "all"  # every annotated patch is learnt from
# Below this side of a feature map nnU-Net pools no further.
SMALLEST_MAP = 4
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}


def write_dataset(folder: pathlib.Path, raw: pathlib.Path, ignored: int | None) -> None:
    """The patches under the names that nnU-Net wants, with labels 0 and 1, and 2 where nothing counts."""
    import nibabel
    import numpy as np

    # Of a training that was interrupted.
    shutil.rmtree(raw, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    patches = [path.name.removesuffix(LABEL) for path in sorted(folder.glob("*" + LABEL))]
    if not patches:
        raise SystemExit(f"{folder}: no *{LABEL}; nnU-Net has nothing to learn from")
    labels = {"background": 0, "foreground": 1}
    for patch in patches:
        (raw / "imagesTr" / f"{patch}_0000{ENDING}").symlink_to((folder / f"{patch}{ENDING}").resolve())
        image = nibabel.load(folder / f"{patch}{LABEL}")
        values = np.asarray(image.dataobj)
        mask = (values > 0).astype(np.uint8)
        if ignored is not None and (values == ignored).any():
            mask[values == ignored] = labels["ignore"] = 2
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), raw / "labelsTr" / f"{patch}{ENDING}")
    facts = {"channel_names": {"0": "lightsheet"}, "labels": labels, "numTraining": len(patches), "file_ending": ENDING}
    (raw / "dataset.json").write_text(json.dumps(facts))


def make_smaller(plans: pathlib.Path, side: int) -> None:
    """Crops of at most `side` voxels, and no more poolings than they bear."""
    found = json.loads(plans.read_text())
    settings = found["configurations"][CONFIGURATION]
    sides = [min(side, planned) for planned in settings["patch_size"]]
    network = settings["architecture"]["arch_kwargs"]
    stages, factor = 0, [1, 1, 1]
    for stride in network["strides"]:
        factor = [a * b for a, b in zip(factor, stride, strict=True)]
        if any(one // by < SMALLEST_MAP for one, by in zip(sides, factor, strict=True) if by > 1):
            break
        stages, divisor = stages + 1, list(factor)
    settings["patch_size"] = [one // by * by for one, by in zip(sides, divisor, strict=True)]
    for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        network[name] = network[name][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    network["n_stages"] = stages
    plans.write_text(json.dumps(found))


def train(options: argparse.Namespace) -> None:
    """Fingerprint, plan, preprocessing and training."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.run.run_training import get_trainer_from_args

    write_dataset(options.folder, options.model / "raw" / DATASET, options.ignore)
    extract_fingerprints([NUMBER], num_processes=1)
    plan_experiments([NUMBER])
    if options.patch:
        make_smaller(options.model / "preprocessed" / DATASET / "nnUNetPlans.json", options.patch)
    preprocess([NUMBER], configurations=(CONFIGURATION,), num_processes=(1,))
    if options.device == "cpu":
        # Workers and network would wait for each other on few cores. Planning takes this number for its own threads.
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (its own name)
    torch.manual_seed(options.seed)
    trainer = get_trainer_from_args(str(NUMBER), CONFIGURATION, FOLD, device=torch.device(options.device))
    trainer.num_epochs, trainer.num_iterations_per_epoch = options.epochs, options.iterations
    # Fold "all" validates on what it learns from: of no use but for a curve.
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()


def predict(options: argparse.Namespace) -> None:
    """A mask for each image, by the weights at the end of training."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trained = options.model / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    device = torch.device(options.device)
    predictor = nnUNetPredictor(
        use_mirroring=not options.no_mirroring,
        perform_everything_on_device=device.type != "cpu",
        device=device,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(trained), (FOLD,), "checkpoint_final.pth")
    images = sorted(options.images.glob("*" + ENDING))
    options.out.mkdir(parents=True, exist_ok=True)
    names = [str(options.out / path.name.removesuffix(ENDING)) for path in images]
    predictor.predict_from_files_sequential([[str(path)] for path in images], names)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=pathlib.Path)
    training.add_argument("model", type=pathlib.Path)
    training.add_argument("--epochs", type=int, default=1000)
    training.add_argument("--iterations", type=int, default=250, help="of an epoch")
    training.add_argument("--patch", type=int, default=0, help="largest side of a crop in voxels; 0: as planned")
    training.add_argument("--ignore", type=int, help="label value that counts nowhere")
    training.add_argument("--seed", type=int, default=0)
    predicting = commands.add_parser("predict")
    predicting.add_argument("model", type=pathlib.Path)
    predicting.add_argument("images", type=pathlib.Path)
    predicting.add_argument("out", type=pathlib.Path)
    predicting.add_argument("--no-mirroring", action="store_true", help="an eighth of the time")
    for one in (training, predicting):
        one.add_argument("--device", default="cuda")
    return parser.parse_args()


def main() -> None:
    """Trains or predicts; nnU-Net reads where its folders are when it is imported, so they are set first."""
    options = parsed()
    options.model = options.model.resolve()
    for name, folder in FOLDERS.items():
        os.environ[name] = str(options.model / folder)
    (train if options.command == "train" else predict)(options)


if __name__ == "__main__":
    main()

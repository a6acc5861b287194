"""The tables of every key: default, meaning with its unit, and what is allowed. See `config` for their use."""

from lsmfm_jax.config.pretrain_keys import PRETRAIN_KEYS
from lsmfm_jax.keys import Key, Schema
from lsmfm_jax.models import BACKBONES

PERCENTILES = ("0.1", "1", "5", "50", "95", "99", "99.5", "99.9", "100")
SEGMENTATION_LOSSES = ("dice_focal", "dice_ce")
CLASS_WEIGHTS = ("none", "inverse_frequency", "effective_number")
SSIM_WINDOW = 11  # voxels along each axis, of the SSIM in the losses of deblurring and inpainting
# NumPy and grain take seeds of 32 bits.
LARGEST_SEED = 2**32 - 1


# Moments and class weights divide by one minus a power of the decay.
LARGEST_DECAY = 0.999999

# How raw counts become what the network sees; see `lsmfm_jax.scale`.
_SCALE: Schema = {
    "scale": Key(
        "percentile",
        "intensities: percentiles of the patch, log ratio to the tissue's level (log_ratio) or to the background "
        "around each voxel (local), or standard deviations (z_score)",
        choices=("percentile", "log_ratio", "local", "z_score"),
    ),
    "lower_percentile": Key("1", "percentile of the patch that becomes 0", choices=PERCENTILES),
    "upper_percentile": Key("99", "percentile of the patch that becomes 1", choices=PERCENTILES),
    "background_sigma_voxels": Key(
        12.0, "Gaussian over which a local background is a mean, voxels: about twice an object", low=1.0, high=1e4
    ),
    "background_sigma_um": Key(
        0.0, "the same in micrometres, where the voxel size is known; 0: in voxels", low=0.0, high=1e5
    ),
    "camera_offset": Key(
        0.0, "counts that the camera records in the dark, for the ratios; below 0 for signed files", low=-(2.0**31)
    ),
}

_DATA: Schema = {
    "stores": Key((), "patch stores to read, paths"),
    "split": Key("", "JSON file of a split made earlier; empty: make one"),
    "split_by": Key("volume", "what may not be on both sides of the split", choices=("volume", "file")),
    "validation_frac": Key(0.1, "share of the volumes (or files) kept for validation", low=0.0, high=0.9),
    "patch_size": Key((96, 96, 96), "voxels Z, Y, X read from a patch: larger ones are cropped", low=8, length=3),
    "input_size": Key((64, 64, 64), "voxels Z, Y, X the network sees, after trilinear resizing", low=8, length=3),
    **_SCALE,
    "workers": Key(0, "reader processes; 0: threads of the main process", low=0, high=256),
    "prefetch": Key(4, "batches read ahead", low=1, high=1000),
    "max_bad_frac": Key(0.01, "share of damaged patches at which the run stops", low=0.0, high=1.0),
}

_AUGMENT: Schema = {
    "probability": Key(0.2, "chance of each augmentation, per sample and step", low=0.0, high=1.0),
    "rotation_rad": Key(0.1, "largest affine rotation about each axis, radians", low=0.0, high=3.2),
    "scale_frac": Key(0.1, "largest affine scaling, fraction", low=0.0, high=0.9),
    "noise_std": Key(0.02, "standard deviation of Gaussian noise, in scaled intensity", low=0.0),
    "smooth_sigma": Key((0.25, 1.5), "range of Gaussian smoothing, voxels per axis", low=0.0, high=100.0, length=2),
    "intensity_scale_frac": Key(0.2, "largest intensity scaling, fraction", low=0.0),
    "intensity_shift": Key(0.2, "largest intensity shift, in scaled intensity", low=0.0),
    "independent_flips": Key(False, "flip each axis by itself rather than all three together"),
}

# How much a sample's looks vary beyond that; see `lsmfm_jax.appearance`. All in scaled intensity.
_APPEARANCE: Schema = {
    "contrast": Key(0.0, "signal times e to the power of up to plus or minus this", low=0.0, high=5.0),
    "gamma": Key(0.0, "signal bent by a power of e to up to plus or minus this", low=0.0, high=2.0),
    "level_shift": Key(0.0, "added, up to plus or minus", low=0.0, high=1.0),
    "bias_field": Key(0.0, "largest standard deviation of a smooth field that is added", low=0.0, high=1.0),
    "noise_std": Key(0.0, "largest standard deviation of noise", low=0.0, high=1.0),
    "z_blur_prob": Key(0.0, "chance of a blur in Z", low=0.0, high=1.0),
    "z_blur_sigma": Key(1.5, "its largest standard deviation, voxels", low=0.0, high=20.0),
    "stripe_prob": Key(0.0, "chance of stripes in X", low=0.0, high=1.0),
    "stripe_std": Key(0.02, "their standard deviation", low=0.0, high=1.0),
}

_OPTIM: Schema = {
    "learning_rate": Key(1e-4, "AdamW rate at its highest", low=0.0, high=100.0),
    "schedule": Key("constant", "rate over time after the warm-up", choices=("constant", "cosine")),
    "warmup_steps": Key(0, "optimiser steps of linear warm-up from 0", low=0),
    "final_frac": Key(0.0, "share of the rate at the end of the cosine", low=0.0, high=1.0),
    "weight_decay": Key(0.01, "decoupled weight decay", low=0.0, high=100.0),
    "b1": Key(0.9, "decay of the first moment", low=0.0, high=LARGEST_DECAY),
    "b2": Key(0.999, "decay of the second moment", low=0.0, high=LARGEST_DECAY),
    "eps": Key(1e-8, "added to the root of the second moment", low=1e-30, high=1.0),
    "clip_norm": Key(0.0, "largest global gradient norm; 0: no clipping", low=0.0),
}

_TRAIN: Schema = {
    "batch_size": Key(16, "samples in one optimiser step, over all devices", low=1),
    "accumulate_steps": Key(1, "micro-batches in one optimiser step", low=1),
    "epochs": Key(500, "most passes over the training patches", low=1),
    "patience_epochs": Key(200, "epochs without a better validation before stopping; 0: never", low=0),
    "log_every_steps": Key(10, "steps between two lines of metrics", low=1),
    "validate_every_epochs": Key(1, "epochs between two validations", low=1),
    "pictures_every_epochs": Key(10, "epochs between two sets of pictures; 0: only at the end", low=0),
    "pictures_count": Key(4, "patches drawn", low=1, high=16),
    "checkpoint_every_epochs": Key(5, "epochs between two checkpoints", low=1),
    "keep_checkpoints": Key(3, "latest checkpoints kept, beside the best", low=1),
    "keep_period_steps": Key(0, "also keep every checkpoint at a multiple of this; 0: none", low=0),
    "max_bad_steps": Key(10, "non-finite steps in a row at which the run stops", low=1),
    "spike_factor": Key(3.0, "a loss beyond this many running means is logged with its samples; 0: off", low=0.0),
    "on_disk_full": Key("continue", "when a checkpoint cannot be written", choices=("continue", "stop")),
    "profile_steps": Key(
        0, "steps from the fourth on whose profiler trace goes to profile/; 0: none", low=0, high=1000
    ),
    "xla": Key(
        "default",
        "flags of the compiler: fast (should help, measure it) or deterministic (the same bits again on a GPU, slower)",
        choices=("default", "fast", "deterministic"),
    ),
    "kernels": Key(
        "plain",
        "fused: hand-written kernels for NVIDIA cards, run on none yet (elsewhere the same as plain); plain: XLA's",
        choices=("plain", "fused"),
    ),
    "tensorboard": Key(True, "write TensorBoard files"),
    "wandb_project": Key("", "Weights & Biases project; empty: off"),
}

_MESH: Schema = {
    "data": Key(-1, "devices along the batch; -1: all that are left", low=-1),
    "fsdp": Key(1, "devices over which parameters and moments are split", low=-1),
    "depth": Key(1, "devices over which the Z axis of volumes is split", low=-1),
}

COMMON: Schema = {
    "seed": Key(100, "of every draw", low=0, high=LARGEST_SEED),
    "data": _DATA,
    "augment": {**_AUGMENT, "appearance": _APPEARANCE},
    "optim": _OPTIM,
    "train": _TRAIN,
    "mesh": _MESH,
    "init_from": Key("", "run folder or imported checkpoint to start from; empty: scratch"),
    "init_allow": Key((), "regular expressions of leaves that may be missing or of another shape there"),
}

_LABELLED_DATA: Schema = {
    "folder": Key(
        "",
        "labelled patches, a folder or (without masks) a store; train/ and val/ in it are the sides, else it is split",
    ),
    "validation_frac": Key(
        0.2, "share of the volumes for validation; 0: none, the last state counts", low=0.0, high=0.9
    ),
    "split_by": Key("volume", "what may not be on both sides of the split", choices=("volume", "file")),
    "volume_pattern": Key("", "regular expression whose first group in a patch's name is its volume; empty: by name"),
    "train_names": Key((), "names of the training patches, without ending; empty: by the split"),
    "validation_names": Key((), "names of the validation patches; empty: by the split"),
    "few_shot": Key(0, "training patches drawn from those there are, of each class; 0: all", low=0),
    "prefix": Key("", "only patches whose name starts with this"),
    "channels": Key((), "only patches whose name has _ch<n> with one of these numbers; empty: all", low=0, of=int),
    "patch_size": Key(
        (96, 96, 96), "voxels Z, Y, X of a crop: random in training, windows in validation", low=8, length=3
    ),
    "crops_per_patch": Key(1, "crops of each training patch in an epoch", low=1),
    **_SCALE,
    "prefetch": Key(4, "batches read ahead", low=1, high=1000),
}

_GEOMETRY = {name: _AUGMENT[name] for name in ("probability", "rotation_rad", "scale_frac", "independent_flips")}

# What every finetuning task has; a task of its own starts from these.
FINETUNE_KEYS: Schema = {
    "data": _LABELLED_DATA,
    "init_teacher": Key(False, "start from the averaged teacher of init_from, not from the student"),
    "encoder": {
        "rate_multiplier": Key(1.0, "times the learning rate; from scratch it is 1", low=0.0),
        "thaw_epochs": Key(0, "epochs in which the encoder is frozen; from scratch none", low=0),
        "frozen": Key(False, "the encoder is frozen to the end, from scratch too"),
        "bottleneck": Key(
            "decoder", "where the SwinUNETR's block on the deepest map belongs", choices=("encoder", "decoder")
        ),
        "lora_rank": Key(
            0, "rank of what is added to the frozen encoder's linear layers (LoRA); 0: off", low=0, high=64
        ),
        "lora_alpha": Key(0.0, "what is added is multiplied by this over the rank; 0: the rank", low=0.0, high=1e4),
    },
}

_SEGMENT: Schema = {
    **FINETUNE_KEYS,
    "data": {
        **_LABELLED_DATA,
        "foreground_frac": Key(
            0.0, "share of the training crops with a voxel of the mask in their middle", low=0.0, high=1.0
        ),
        "foreground_labels": Key((), "label values that are foreground; empty: all above 0 not named below", of=int),
        "background_labels": Key((), "label values that are background; empty: all not named beside it", of=int),
        "ignore_labels": Key((), "label values of voxels that count in no loss, no crop and no metric", of=int),
        "allow_dense_masks": Key(False, "take masks of more than 60 % foreground"),
    },
    "reinit_top": Key(False, "draw the backbone's last block anew, for comparison with the released code"),
    "fit_cut_off": Key(
        True, "cut the trained network's logit where the Dice of the training patches is best, not at 0"
    ),
    "voxel_classifier": {
        "enabled": Key(
            False, "add a logistic regression of single voxels and Gaussians around them, fitted on the same patches"
        ),
        "network_weight": Key(0.25, "weight of the network's logit beside that of the regression", low=0.0, high=100.0),
        "always_network": Key(False, "the network counts even where the validation patches are better without it"),
    },
    "loss": {
        "name": Key("dice_focal", "what is minimised", choices=SEGMENTATION_LOSSES),
        "dice": Key(0.5, "weight of the Dice term", low=0.0),
        "other": Key(0.5, "weight of the focal term or of the cross-entropy", low=0.0),
        "focal_alpha": Key(0.25, "weight of the foreground in the focal term", low=0.0, high=1.0),
        "focal_gamma": Key(2.0, "how far the focal term plays down what is certain", low=0.0),
        "cl_dice_frac": Key(0.0, "share of soft clDice in the loss, for vessels", low=0.0, high=1.0),
    },
}

_CLASSIFY: Schema = {
    **FINETUNE_KEYS,
    "data": {
        **_LABELLED_DATA,
        "class_from": Key(
            "name",
            "where a patch's class is: its name before _patch_, its folder (in a store: caption key), or a CSV",
            choices=("name", "folder", "csv"),
        ),
        "csv": Key("", "table with the columns name and class, for class_from csv"),
        "classes": Key((), "classes in their order; patches of others are left out; empty: all there are"),
    },
    "loss": {
        "class_weights": Key(
            "inverse_frequency",
            "weight of a class by its training patches",
            choices=CLASS_WEIGHTS,
        ),
        "effective_beta": Key(0.999, "of effective_number", low=0.0, high=LARGEST_DECAY),
    },
}

_DEBLUR: Schema = {
    **FINETUNE_KEYS,
    # Noise or brightness drawn on one side of a pair would change what is asked for.
    "augment": _GEOMETRY,
    "reinit_top": _SEGMENT["reinit_top"],
    "loss": {
        "ssim": Key(0.2, "weight of 1 - SSIM", low=0.0),
        "edge": Key(0.1, "weight of the difference in edge strength", low=0.0),
        "high_frequency": Key(0.1, "weight of the difference in high frequencies", low=0.0),
    },
    "blur": {
        "source": Key("files", "blurred inputs: files ending in _blurred, or made here", choices=("files", "made")),
        "sigma_voxels": Key((2.5, 2.5, 2.5), "standard deviation Z, Y, X of a made blur, voxels", low=0.0, length=3),
        "sigma_um": Key(
            (0.0, 0.0, 0.0), "the same in micrometres, by the file's voxel size; 0: in voxels", low=0.0, length=3
        ),
        "noise_counts": Key(2.5, "standard deviation of the noise on a made blur, raw counts", low=0.0),
    },
}

_INPAINT: Schema = {
    **FINETUNE_KEYS,
    "data": {
        **_LABELLED_DATA,
        # Restored voxels go back to counts, and the other scales are measured on voxels that are not known here.
        "scale": Key("percentile", "intensities: percentiles of the patch's visible voxels", choices=("percentile",)),
    },
    # Noise drawn on the input would be asked for in the boxes.
    "augment": _GEOMETRY,
    "reinit_top": _SEGMENT["reinit_top"],
    "mask": {
        "block_sizes": Key((8, 16), "edges of the hidden cubes, voxels; one is drawn for each sample", low=1),
        "ratio": Key(0.3, "share of the cubes that tile a crop that are hidden; one at least is", low=1e-6, high=0.9),
        "fill": Key(
            0.0,
            "what the network sees in hidden voxels, scaled: 0 as in pretraining; visible ones are 0 to 1",
            low=-10.0,
        ),
    },
    "loss": {
        "l1": Key(1.0, "weight of the absolute error of hidden voxels", low=0.0),
        "ssim": Key(0.2, "weight of 1 - SSIM, of the windows around hidden voxels", low=0.0),
    },
}

TASKS: dict[str, Schema] = {
    "pretrain": PRETRAIN_KEYS,
    "segment": _SEGMENT,
    "classify": _CLASSIFY,
    "deblur": _DEBLUR,
    "inpaint": _INPAINT,
}
# Tasks that read the deepest map alone, so that a backbone without a decoder will do.
ENCODER_TASKS = ("classify",)


def model_schema(task: str) -> Schema:
    """The keys of `model`: those of every backbone that a task can use, as the backbones declare them."""
    usable = {name: backbone for name, backbone in BACKBONES.items() if backbone.dense or task in ENCODER_TASKS}
    return {
        "name": Key("unet", "backbone", choices=tuple(usable)),
        "out_channels": Key(128, "width of the dense features and of the embeddings", low=1),
        "dtype": Key("bfloat16", "compute type; parameters stay float32", choices=("float32", "bfloat16")),
        **{name: backbone.schema for name, backbone in usable.items()},
    }

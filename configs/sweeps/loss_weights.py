"""The weights of the four losses of pretraining, and what else the paper leaves to a sweep.

    lsmfm sweep loss_weights --workdir DIR --set "data.stores=('stores/patches',)"

Runs are compared by the validation's `loss`, whose weights are fixed in the recipe (`report.*`), whatever the trained
weights are. A store with captions is needed.

Variants:
    (none)  `pretrain_unet`, 40 runs of 60 epochs; a graphics card
    tiny    `pretrain_unet:tiny`, 6 runs of 4 epochs
"""

from lsmfm_jax.config.declared import unknown_variant
from lsmfm_jax.sweep.declaration import Choice, Range, Sweep, SweepError

VARIANTS = ("", "tiny")


def get_sweep(variant: str = "") -> Sweep:
    """The sweep of one variant."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS, SweepError)
    tiny = variant == "tiny"
    return Sweep(
        name="loss_weights" + (":tiny" if tiny else ""),
        command="pretrain",
        recipe="pretrain_unet:tiny" if tiny else "pretrain_unet",
        space={
            "loss.distill": Range(0.1, 10.0, log=True),
            "loss.align": Range(0.01, 1.0, log=True),
            "loss.contrast": Range(0.01, 1.0, log=True),
            "optim.learning_rate": Range(1e-4, 3e-3, log=True),
            "mask.ratio": Choice((0.3, 0.6, 0.75)),
        },
        metric="loss",
        higher_is_better=False,
        overrides={"train.epochs": 4 if tiny else 60, "train.patience_epochs": 0},
        trials=6 if tiny else 40,
        first_trials=3 if tiny else 8,
    )

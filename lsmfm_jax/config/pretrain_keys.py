"""The keys that pretraining has beside those of every task; see `config.schema`."""

from lsmfm_jax.keys import Key, Schema
from lsmfm_jax.models.declaration import POOLINGS

MASK_ROUNDINGS = ("nearest", "down")

PRETRAIN_KEYS: Schema = {
    "mask": {
        "block_sizes": Key((4, 8), "edges of the masked cubes, voxels; one is drawn for each sample", low=1),
        "ratio": Key(0.3, "share of the blocks masked; one block at least is", low=1e-6, high=1.0),
        "warmup_ratio": Key(0.05, "the same during the warm-up", low=0.0, high=1.0),
        "rounding": Key("nearest", "of the number of blocks masked", choices=MASK_ROUNDINGS),
    },
    "warmup_epochs": Key(20, "epochs of the low mask ratio, with the text tower frozen", low=0),
    "teacher": {
        "decay": Key(0.996, "of the exponential moving average", low=0.0, high=1.0),
        "updates_per_step": Key(1, "times the average is taken in one optimiser step", low=1),
        "average_statistics": Key(True, "average the batch-norm statistics too"),
    },
    "text": {
        "enabled": Key(True, "train with captions; off: image only, no text tower is built"),
        "source": Key("tiny", "Hugging Face BERT directory or name; tiny: a small random one"),
        "top_k_layers": Key(4, "transformer layers, from the top, that train after the warm-up", low=0),
        "train": Key(True, "train the top layers, embeddings, layer norms and pooler after the warm-up"),
        "project_in_warmup": Key(True, "train the text projection during the warm-up too"),
        "pooling": Key(
            "real",
            "tokens in the mean: real ones; those and padding up to the longest caption of the batch (of "
            "loss.contrast_group samples where that is set); those and padding up to the longest one of the stores",
            choices=POOLINGS,
        ),
        "max_tokens": Key(128, "longest caption, tokens", low=8, high=512),
    },
    "loss": {
        "distill": Key(0.29, "weight of the distillation", low=0.0),
        "reconstruct": Key(0.20, "weight of the masked reconstruction", low=0.0),
        "align": Key(0.06, "weight of the image-text alignment", low=0.0),
        "contrast": Key(0.36, "weight of the image-text contrast", low=0.0),
        "student_temperature": Key(0.1, "softmax temperature of the student's features", low=1e-3),
        "teacher_temperature": Key(0.1, "softmax temperature of the teacher's features", low=1e-3),
        "contrast_temperature": Key(0.1, "initial temperature of the contrast", low=1e-3),
        "positives": Key("caption", "pairs that count as matching", choices=("caption", "sample")),
        "contrast_group": Key(0, "samples contrasted with each other; 0: the global batch", low=0),
    },
    "report": {
        "distill": Key(0.30, "weight in the validation loss", low=0.0),
        "reconstruct": Key(0.30, "weight in the validation loss", low=0.0),
        "align": Key(0.10, "weight in the validation loss", low=0.0),
        "contrast": Key(0.30, "weight in the validation loss", low=0.0),
    },
}

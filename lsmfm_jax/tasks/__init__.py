"""What one step computes and one evaluation reports, a file for each task."""

from collections.abc import Callable

from lsmfm_jax.tasks.finetune_setup import finetuning_setup
from lsmfm_jax.tasks.finetune_tasks import FINETUNING
from lsmfm_jax.tasks.pretrain_setup import pretraining_setup
from lsmfm_jax.train.run import Setup

SETUPS: dict[str, Callable[..., Setup]] = {
    "pretrain": pretraining_setup,
    **dict.fromkeys(FINETUNING, finetuning_setup),
}

"""The finetuning tasks there are, each declared in its own file."""

from lsmfm_jax.config import ConfigError
from lsmfm_jax.tasks.classify import CLASSIFY
from lsmfm_jax.tasks.deblur import DEBLUR
from lsmfm_jax.tasks.declaration import FinetuneTask
from lsmfm_jax.tasks.inpaint import INPAINT
from lsmfm_jax.tasks.segment import SEGMENT

FINETUNING: dict[str, FinetuneTask] = {"segment": SEGMENT, "classify": CLASSIFY, "deblur": DEBLUR, "inpaint": INPAINT}


def finetune_task(name: str) -> FinetuneTask:
    """What a task declares.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in FINETUNING:
        raise ConfigError(f"task: {name!r} is no finetuning task; allowed: {', '.join(FINETUNING)}")
    return FINETUNING[name]

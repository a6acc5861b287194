"""A task small enough to test the training machinery on: two linear maps whose outputs are contrasted."""

import jax
import jax.numpy as jnp
import numpy as np

from lsmfm_jax.train.task import Local, Task


def toy_task(width: int = 4) -> Task:
    """Matches `x @ a` with `y @ b` over the batch (joint), and shrinks both (local); random noise in `prepare`."""

    def init(key):
        first, second = jax.random.split(key)
        params = {"a": jax.random.normal(first, (width, 3)), "b": jax.random.normal(second, (width, 3))}
        return params, {"mean": jnp.zeros(width)}

    def prepare(batch, key, step):
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch["x"].shape[0]))
        noise = jax.vmap(lambda one: jax.random.normal(one, (width,)))(keys)
        return {"x": batch["x"] + 0.1 * noise, "y": batch["y"], "share": jnp.full(len(noise), 1 / len(noise))}

    def local(params, batch_stats, teacher, rows, step):
        outputs = rows["x"] @ params["a"], rows["y"] @ params["b"]
        size = sum(jnp.sum(out**2, axis=-1) for out in outputs)
        far = jnp.sum((outputs[0] - rows["x"] @ teacher["a"]) ** 2, axis=-1)
        loss = jnp.sum(rows["share"] * (0.1 * size + 0.05 * far))
        stats = {"mean": 0.9 * batch_stats["mean"] + 0.1 * jnp.mean(rows["x"], axis=0)}
        return Local(loss, stats, {"size": jnp.sum(rows["share"] * size)}, outputs)

    def joint(params, joint, rows, step):
        logits = joint[0] @ joint[1].T
        loss = -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))
        return loss, {"contrast": loss}

    def evaluate(params, batch_stats, teacher, batch):
        return jnp.sum((batch["x"] @ params["a"] - batch["y"] @ params["b"]) ** 2, axis=-1)

    return Task(
        init=init,
        prepare=prepare,
        local=local,
        joint=joint,
        finish=lambda sums: sums,
        teacher_of=lambda params, batch_stats: {"a": params["a"]},
        evaluate=evaluate,
        summarise=lambda outputs: {"loss": float(np.mean(np.concatenate(outputs)))},
    )


def toy_batch(step: int, *, size: int = 8, width: int = 4) -> dict[str, np.ndarray]:
    """The batch of one step: the same for the same step."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(size, width)).astype(np.float32)
    return {"x": x, "y": x[:, ::-1].copy(), "sample": np.arange(size, dtype=np.int32) + 100 * step}


def toy_batches(start_step: int):
    """Batches without end from a step on."""
    while True:
        yield toy_batch(start_step)
        start_step += 1

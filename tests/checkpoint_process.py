"""One process of a run that saves the latest and the best state at the same time, again and again."""

import pathlib
import sys

import jax
import jax.numpy as jnp

from lsmfm_jax.train.checkpoint import Checkpoints


def main(coordinator: str, processes: int, process: int, folder: pathlib.Path, rounds: int) -> None:
    jax.distributed.initialize(coordinator, processes, process)
    latest, best = (Checkpoints(folder / name, keep=2) for name in ("checkpoints", "best"))
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for step in range(1, rounds + 1):
        state = jax.jit(lambda step: {"a": jnp.ones(1000) * step}, out_shardings=everywhere)(step)
        best.save(step, state, {})
        latest.save(step, state, {})
        best.seal()
        latest.seal()
    latest.close()
    best.close()
    print("saved", rounds)


if __name__ == "__main__":
    coordinator, processes, process, folder, rounds = sys.argv[1:]
    main(coordinator, int(processes), int(process), pathlib.Path(folder), int(rounds))

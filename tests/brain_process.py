"""One process that predicts a part of a volume with a function in place of a network; killed by tests.

python tests/brain_process.py VOLUME.npy RESULT.ome.zarr I N SECONDS_A_BATCH
"""

import pathlib
import sys
import time

import numpy as np
from brain_runs import copying

from lsmfm_jax.predict.brain import predict_brain
from lsmfm_jax.predict.brain_settings import BrainSettings
from lsmfm_jax.volumes.open import open_volume


def main(volume: str, out: str, number: str, count: str, pause_s: str) -> None:
    def network(windows: np.ndarray) -> np.ndarray:
        time.sleep(float(pause_s))
        # Depends on the place in the window, so that windows in the wrong place would be seen.
        return 0.7 * windows + np.linspace(0, 0.3, windows.shape[1], dtype=np.float32)[:, None, None]

    settings = BrainSettings(shard=(32, 32, 32), batch_size=2, threshold=0.75, part=(int(number), int(count)))
    predict_brain(copying(network=network), open_volume(volume), pathlib.Path(out), settings=settings)


if __name__ == "__main__":
    main(*sys.argv[1:])

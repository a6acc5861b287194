"""Hours that the paper's pretraining would take, from a measured step.

    lsmfm bench project_paper_run STEP.json

`STEP.json` is written by step_real_data (preferred), step_dummy_data or scaling. The paper's run is at most 500
epochs over 921 training patches; validation on the other 102 after each epoch costs a forward pass of student and
teacher, a third of a training step. Checkpoints are written beside the training and are not counted.
"""

import json
import pathlib
from typing import Any

import outcome

EPOCHS = 500
TRAINING_PATCHES = 921
VALIDATION_PATCHES = 102
# Student, light decoder and teacher forward, of 3 x (student + light decoder) + teacher.
VALIDATION_COST_FRAC = 1 / 3
GOAL_HOURS = 1.0


def main() -> None:
    parser = outcome.parser(__doc__)
    parser.add_argument("step", type=pathlib.Path, help="JSON of a measured step")
    parser.add_argument("--devices", type=int, help="devices that share the work (default: those of the step)")
    options = parser.parse_args()
    outcome.finish(project(json.loads(options.step.read_text()), devices=options.devices), options.json)


def project(step: dict[str, Any], *, devices: int | None = None) -> dict[str, Any]:
    """Hours of the whole run; more devices than measured are assumed to scale perfectly, which the output states.

    Raises:
        ValueError: the file has no throughput in it.
    """
    if "patches_per_s_per_device" not in step:
        raise ValueError(f"no patches_per_s_per_device in a result of {step.get('benchmark')}: give one of a step")
    rate = step["patches_per_s_per_device"]
    count = devices or step["devices"]
    work = EPOCHS * (TRAINING_PATCHES + VALIDATION_COST_FRAC * VALIDATION_PATCHES)
    hours = {name: work / (rate[key] * count) / 3600 for name, key in HOURS_FROM.items()}
    return {
        "benchmark": "project_paper_run",
        "measured": {name: step.get(name) for name in MEASURED},
        "epochs": EPOCHS,
        "training_patches": TRAINING_PATCHES,
        "validation_patches": VALIDATION_PATCHES,
        "devices": count,
        "assumes_perfect_scaling": count != step["devices"],
        "hours": hours,
        "device_hours": hours["median"] * count,
        "within_an_hour": hours["median"] <= GOAL_HOURS,
    }


# The slowest measurement gives the longest run.
HOURS_FROM = {"median": "median", "shortest": "max", "longest": "min"}
MEASURED = ("benchmark", "model", "text", "batch_size", "input_size", "dtype", "device", "versions", "commit", "time")


if __name__ == "__main__":
    main()

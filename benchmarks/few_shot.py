"""Few-shot segmentation across volumes: from scratch, from pretrained runs, and by thresholds, on the same patches.

python benchmarks/few_shot.py --folder PATCHES --train a b c d --validate e --test f g h --seeds 1 2 3 \
    --start scratch --start image=runs/image_only --start text=runs/image_text --work WORK --json FILE \
    -- --config.train.epochs=10 --config.data.upper_percentile=99.9

Each start and seed is one `lsmfm finetune`, `lsmfm predict` and `lsmfm evaluate`; what comes after `--` goes to every
finetune alike, so that runs differ in their first weights alone. A run whose scores are in WORK is not run again.
"""

import collections
import csv
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import outcome

from lsmfm_jax.baselines import best_threshold
from lsmfm_jax.data.mask_folders import volume_of
from lsmfm_jax.data.volumes import read_single
from lsmfm_jax.metrics.intervals import bootstrap_mean

ENDINGS = (".nii.gz", "_label.nii.gz")
Scores = dict[str, dict[str, float]]  # of each patch, by metric


def _lsmfm(*arguments: object, log: pathlib.Path) -> None:
    """Runs the command line in a process of its own; its output goes to `log`."""
    command = [sys.executable, "-c", "from lsmfm_jax.cli import main; raise SystemExit(main())", *map(str, arguments)]
    with log.open("a") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"lsmfm {arguments[0]} ended with {code}; see {log}")


def gather_tests(folder: pathlib.Path, names: Sequence[str], work: pathlib.Path) -> pathlib.Path:
    """A folder with links to the test patches and their labels, and nothing else."""
    tests = work / "test"
    tests.mkdir(parents=True, exist_ok=True)
    for name in names:
        for ending in ENDINGS:
            source, link = (folder / (name + ending)).resolve(), tests / (name + ending)
            if not source.is_file():
                raise SystemExit(f"{source} is not there; --folder and --test name NAME.nii.gz and NAME_label.nii.gz")
            if not link.exists():
                os.symlink(source, link)
    return tests


def finetune(options: Any, run: pathlib.Path, *, start: str, seed: int) -> None:
    """One finetuning run from `start` (a pretrained run, or '')."""
    names = {"train_names": tuple(options.train), "validation_names": tuple(options.validate)}
    chosen = [f"--config.data.{key}={value!r}" for key, value in names.items()]
    initial = [f"--config.init_from={start}"] if start else []
    _lsmfm(
        *("finetune", "--config", options.config, "--workdir", run, f"--config.data.folder={options.folder}"),
        *(*chosen, *initial, f"--config.seed={seed}", *options.overrides),
        log=run.with_suffix(".log"),
    )


def judge(predictions: pathlib.Path, tests: pathlib.Path, table: pathlib.Path) -> dict[str, Scores]:
    """Scores of every patch, by method, from the table of `lsmfm evaluate`."""
    if not table.exists():
        _lsmfm(
            *("evaluate", "--pred", predictions, "--label", tests, "--out", table),
            log=table.with_suffix(".log"),
        )
    scores: dict[str, Scores] = collections.defaultdict(dict)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["row"] == "patch":
                start = list(row).index("volume") + 1
                metrics = list(row)[start : list(row).index("predictions")]
                scores[row["method"]][row["patch"]] = {name: float(row[name] or "nan") for name in metrics}
    return scores


def summary(runs: Sequence[Scores]) -> dict[str, Any]:
    """Means over seeds and patches; intervals resample patches or volumes, with their mean over seeds.

    A distance to an empty mask is infinite, and so is its mean: null here.
    """
    patches = list(runs[0])
    volumes = [volume_of(patch) for patch in patches]
    found: dict[str, Any] = {}
    for metric in runs[0][patches[0]]:
        table = np.array([[scores[patch][metric] for patch in patches] for scores in runs])
        per_patch = table.mean(axis=0)
        found[metric] = {
            "mean": _finite(per_patch.mean()),
            "patches_95": _limits(per_patch, None),
            "volumes_95": _limits(per_patch, volumes),
            "of_seeds": [_finite(value) for value in table.mean(axis=1)],
        }
    return found


def _limits(values: np.ndarray, groups: Sequence[str] | None) -> list[float | None]:
    interval = bootstrap_mean(values, groups=groups)
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _validation(run: pathlib.Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "validation"), key=lambda line: line["dice"])
    return {"step": best["step"], "dice": best["dice"]}


def scored(options: Any, run: pathlib.Path, *, start: str, seed: int, tests: pathlib.Path) -> dict[str, Scores]:
    """Scores of a run's predictions and of what stands beside them for scale; what is there is not made again."""
    if not (run / "summary.json").exists():
        finetune(options, run, start=start, seed=seed)
    predictions = run.with_name(run.name + "-predictions")
    if not predictions.exists():
        _lsmfm("predict", "--checkpoint", run, tests, "--out", predictions, "--batch", 2, log=run.with_suffix(".log"))
    return judge(predictions, tests, run.with_suffix(".csv"))


def thresholds(run: pathlib.Path, tests: pathlib.Path) -> dict[str, Scores]:
    """Thresholds fitted on a run's training patches, and the best on each test patch, chosen with its truth."""
    out = run.parent / "baselines"
    if not out.exists():
        _lsmfm("baseline", "--run", run, tests, "--out", out, log=run.parent / "baselines.log")
    found = {
        folder.name: judge(folder, tests, out / f"{folder.name}.csv")["prediction"]
        for folder in sorted(path for path in out.iterdir() if path.is_dir())
    }
    known: Scores = {}
    for label in sorted(tests.glob("*" + ENDINGS[1])):
        patch = label.name.removesuffix(ENDINGS[1])
        image, truth = (read_single(tests / (patch + ending), allow_constant=True)[0] for ending in ENDINGS)
        known[patch] = {"dice": best_threshold([image], [truth > 0])[1]}
    return {**found, "threshold of each test patch, chosen with its truth": known}


def study(options: Any) -> dict[str, Any]:
    """All starts and seeds, and the thresholds on the patches of the first run."""
    options.work.mkdir(parents=True, exist_ok=True)
    tests = gather_tests(options.folder, options.test, options.work)
    methods: dict[str, Any] = {}
    others: dict[str, Scores] = {}
    for start in options.start:
        name, _, weights = start.partition("=")
        runs = {seed: options.work / f"{name}-{seed}" for seed in options.seeds}
        scores = []
        for seed, run in runs.items():
            found = scored(options, run, start=weights, seed=seed, tests=tests)
            scores.append(found.pop("prediction"))
            others = others or {**found, **thresholds(run, tests)}
            print(name, seed, {key: value["mean"] for key, value in summary(scores[-1:]).items()}, flush=True)
        validation = [_validation(run) for run in runs.values()]
        methods[name] = {"test": summary(scores), "best_validation_of_seeds": validation}
    return {**methods, **{name: {"test": summary([found])} for name, found in others.items()}}


def main() -> None:
    """Runs the study that the command line describes."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--validate", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument(
        "--start", action="append", required=True, metavar="METHOD[=RUN]", help="without a run: scratch"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--config", default="configs/segment_unet.py:tiny")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="for every finetune, after --")
    options = parser.parse_args()
    methods = study(options)
    facts = outcome.facts("few_shot", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    # Where folders lay on this machine does not matter to a reader.
    facts["command"] = "benchmarks/few_shot.py"
    settings = {key: getattr(options, key) for key in ("train", "validate", "test", "seeds", "config", "overrides")}
    outcome.finish({**facts, "settings": settings, "methods": methods}, options.json)


if __name__ == "__main__":
    main()

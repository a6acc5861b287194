"""Few-shot segmentation across volumes: from scratch, from pretrained runs, and by thresholds, on the same patches.

python benchmarks/few_shot.py --folder PATCHES --train a b c d --validate e --test f g h --seeds 1 2 3 \
    --start scratch --start image=runs/image_only --start "percentiles;data.scale=percentile" --work WORK --json FILE \
    -- --config.train.epochs=10

Each start and seed is one `lsmfm finetune`, `lsmfm predict` and `lsmfm evaluate`; what comes after `--` goes to every
finetune alike. A start is a name, `=RUN` where it has first weights, and `;key=value` for each key that is another for
it. A run whose scores are in WORK is not run again, so a study that was interrupted goes on.

Which patches were annotated is chance, too. With several `--train`, each a draw of training patches, the seeds take
them in turn (the first seed the first draw, and so on); thresholds are then fitted on each draw, and all is compared
draw by draw, so that the intervals hold the chance of the draw as well.
"""

import json
import pathlib
from typing import Any

import outcome

from lsmfm_jax.baselines import best_threshold
from lsmfm_jax.data.labels import IGNORED, LabelValues, target_of
from lsmfm_jax.experiment.cells import gather_patches
from lsmfm_jax.experiment.commands import CommandFailed, finetune_command, lsmfm, run_command
from lsmfm_jax.experiment.scores import Scores, evaluated
from lsmfm_jax.experiment.statistics import gains as gains
from lsmfm_jax.experiment.statistics import summary as summary
from lsmfm_jax.files import replacing_folder
from lsmfm_jax.train.weights import read_weights, write_weights
from lsmfm_jax.volumes.read import read_single

ENDINGS = (".nii.gz", "_label.nii.gz")


def draw_of(options: Any, seed: int) -> list[str]:
    """The training patches of a seed: the draws are taken in turn."""
    return options.train[options.seeds.index(seed) % len(options.train)]


def finetune(options: Any, run: pathlib.Path, *, start: str, seed: int) -> None:
    """One finetuning run from `start` (a pretrained run, or '')."""
    weights, *keys = start.split(";")
    labels = {"data.foreground_labels": options.foreground, "data.ignore_labels": options.ignore}
    command = finetune_command(
        options.config,
        run,
        folder=options.folder,
        train=draw_of(options, seed),
        validation=options.validate,
        seed=seed,
        init_from=weights,
        overrides={key: tuple(values) for key, values in labels.items() if values},
        arguments=[*options.overrides, *(f"--config.{key}" for key in keys)],
    )
    run_command(command, log=run.with_suffix(".log"))


def _named(start: str) -> tuple[str, str]:
    """The name of a start, and its weights and keys as `finetune` takes them: `RUN;key=value;...`."""
    first, *keys = start.split(";")
    name, _, weights = first.partition("=")
    return name, ";".join([weights, *keys])


def _without_place(start: str) -> str:
    """A start as the command line gives it, but for the folder in which its run lies: NAME=RUN;KEY=VALUE."""
    first, *keys = start.split(";")
    name, equals, weights = first.partition("=")
    return ";".join([name + equals + pathlib.PurePath(weights).name, *keys])


def judge(options: Any, predictions: pathlib.Path, table: pathlib.Path) -> dict[str, Scores]:
    """Scores of every patch, by method, from the table of `lsmfm evaluate`."""
    if not table.exists():
        values = {"--foreground": options.foreground, "--ignore": options.ignore}
        given = [text for name, of in values.items() if of for text in (name, ",".join(map(str, of)))]
        command = lsmfm("evaluate", "--pred", predictions, "--label", options.work / "test", "--out", table, *given)
        run_command(command, log=table.with_suffix(".log"))
    return evaluated(table)


def _validation(run: pathlib.Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["kind"] == "validation"), key=lambda line: line["dice"])
    return {"step": best["step"], "dice": best["dice"]}


def scored(options: Any, run: pathlib.Path, *, start: str, seed: int, tests: pathlib.Path) -> dict[str, Scores]:
    """Scores of a run's predictions and of what stands beside them for scale; what is there is not made again."""
    if not (run / "summary.json").exists():
        finetune(options, run, start=start, seed=seed)
    return predicted(options, run, tests)


def predicted(options: Any, run: pathlib.Path, tests: pathlib.Path) -> dict[str, Scores]:
    """Scores of what a run predicts on the test patches."""
    predictions = run.with_name(run.name + "-predictions")
    if not predictions.exists():
        command = lsmfm("predict", "--checkpoint", run, tests, "--out", predictions, "--batch", 2)
        run_command(command, log=run.with_suffix(".log"))
    return judge(options, predictions, run.with_suffix(".csv"))


def without_regression(run: pathlib.Path) -> pathlib.Path:
    """A copy of a run that predicts with its network alone, without the regression of voxels beside it."""
    out = run.with_name(run.name + "-network-alone")
    if not out.exists():
        weights = read_weights(run)
        record = {key: value for key, value in weights.record.items() if key != "voxel_classifier"}
        with replacing_folder(out) as folder:
            write_weights(folder, record=record, params=weights.params, batch_stats=weights.batch_stats)
    return out


def thresholds(options: Any, run: pathlib.Path, tests: pathlib.Path) -> dict[str, Scores]:
    """Thresholds fitted on a run's training patches, and the best on each test patch, chosen with its truth."""
    several = len(options.train) > 1
    out = run.with_name(run.name + "-baselines") if several else run.parent / "baselines"
    if not out.exists():
        run_command(lsmfm("baseline", "--run", run, tests, "--out", out), log=out.with_suffix(".log"))
    found = {
        folder.name: judge(options, folder, out / f"{folder.name}.csv")["prediction"]
        for folder in sorted(path for path in out.iterdir() if path.is_dir())
    }
    known: Scores = {}
    values = LabelValues(tuple(options.foreground), (), tuple(options.ignore))
    for label in sorted(tests.glob("*" + ENDINGS[1])):
        patch = label.name.removesuffix(ENDINGS[1])
        image, truth = (read_single(tests / (patch + ending), allow_constant=True)[0] for ending in ENDINGS)
        target = target_of(truth, values, source=patch)
        counted = target != IGNORED
        known[patch] = {"dice": best_threshold([image[counted][None, None]], [(target == 1)[counted][None, None]])[1]}
    return {**found, "threshold of each test patch, chosen with its truth": known}


def study(options: Any) -> dict[str, Any]:
    """All starts and seeds, and the thresholds on the patches of the first run, or of each draw."""
    options.work.mkdir(parents=True, exist_ok=True)
    tests = gather_patches(options.folder, options.test, options.work / "test")
    several = len(options.train) > 1
    methods: dict[str, Any] = {}
    references: dict[str, tuple[str, list[Scores]]] = {}
    others: dict[str, list[Scores]] = {}
    for start in options.start:
        name, weights = _named(start)
        runs = {seed: options.work / f"{name}-{seed}" for seed in options.seeds}
        forms: dict[str, list[Scores]] = {"": []}
        for seed, run in runs.items():
            found = scored(options, run, start=weights, seed=seed, tests=tests)
            forms[""].append(found.pop("prediction"))
            # Those of one draw are the same for all seeds and starts.
            if start == options.start[0] and (several or not others):
                for method, scores in {**found, **thresholds(options, run, tests)}.items():
                    others.setdefault(method, []).append(scores)
            if options.network_alone:
                alone = predicted(options, without_regression(run), tests)["prediction"]
                forms.setdefault("_network_alone", []).append(alone)
            means = {form: round(summary(scores[-1:])["dice"]["mean"], 3) for form, scores in forms.items()}
            print(name, seed, "dice", means, flush=True)
        validation = [_validation(run) for run in runs.values()]
        for form, scores in forms.items():
            row = methods[name + form] = {"test": summary(scores), "best_validation_of_seeds": validation}
            row["gain_over_baselines"] = {
                other: gains(scores, found, metrics=("dice",), paired=several)["dice"]
                for other, found in others.items()
            }
            # Each start against the first one in the same form, with the regression or without.
            first, reference = references.setdefault(form, (name + form, scores))
            if first != name + form:
                row[f"gain_over_{first}"] = gains(scores, reference, paired=several)
    return {**methods, **{name: {"test": summary(found)} for name, found in others.items()}}


def main() -> None:
    """Runs the study that the command line describes."""
    parser = outcome.parser(__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="NAME.nii.gz and NAME_label.nii.gz")
    parser.add_argument(
        "--train", nargs="+", action="append", required=True, metavar="NAME", help="again: another draw of patches"
    )
    parser.add_argument("--validate", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument(
        "--start", action="append", required=True, metavar="METHOD[=RUN][;KEY=VALUE]", help="without a run: scratch"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--config", default="segment_unet:cpu")
    parser.add_argument("--network-alone", action="store_true", help="judge it without the regression of voxels, too")
    parser.add_argument("--foreground", nargs="*", type=int, default=(), help="label values that are foreground")
    parser.add_argument("--ignore", nargs="*", type=int, default=(), help="label values that count nowhere")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="for every finetune, after --")
    options = parser.parse_args()
    if len(options.train) > len(options.seeds):
        parser.error(f"--seeds: {len(options.seeds)} of them for {len(options.train)} draws; each needs one at least")
    try:
        methods = study(options)
    except CommandFailed as error:
        raise SystemExit(f"{error}; the logs are in {options.work}") from error
    facts = outcome.facts("few_shot", device=f"{outcome.cpu_name()}, {outcome.usable_cores()} cores")
    # Where folders lay on this machine does not matter to a reader.
    facts["command"] = "benchmarks/few_shot.py"
    settings = {
        key: getattr(options, key)
        for key in ("validate", "test", "seeds", "config", "foreground", "ignore", "overrides")
    }
    settings["train"] = options.train if len(options.train) > 1 else options.train[0]
    settings["start"] = [_without_place(start) for start in options.start]
    outcome.finish({**facts, "settings": settings, "methods": methods}, options.json)


if __name__ == "__main__":
    main()

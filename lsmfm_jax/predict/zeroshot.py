"""Zero-shot classification: a pretrained run names the class of a patch by texts alone, without training for it."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lsmfm_jax.data.labelled import LabelledFile, find_labelled, rows_of, with_classes
from lsmfm_jax.data.labelled_patches import read_image
from lsmfm_jax.data.labelled_store import find_stored, is_store
from lsmfm_jax.files import mark_folder, read_sealed, refuse_foreign, replace_json
from lsmfm_jax.metrics.classification import confusion_matrix, write_confusion_csv
from lsmfm_jax.metrics.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_statistic
from lsmfm_jax.metrics.retrieval import retrieval_accuracy, wrong_ahead
from lsmfm_jax.metrics.zero_shot import chance, class_vectors, macro_f1, nearest_class, table_lines
from lsmfm_jax.predict.embedding import ImageEncoder, TextEncoder, image_encoder, random_network, text_encoder
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.table import CONFUSION, interval_text, write_table
from lsmfm_jax.store.captions import load_captions
from lsmfm_jax.train.weights import read_weights

TABLE, SUMMARY = "zeroshot.csv", "summary.json"
COMMAND = "zeroshot"


@dataclasses.dataclass(frozen=True)
class PatchChoice:
    """Where the class of a patch is told, as `data.*` of finetuning has it.

    Attributes:
        class_from: `name` (before `_patch_`), `folder` (in a store both: the caption key), or `csv`.
        csv: for `csv`: a file with the columns `name` and `class`.
        volume_pattern: regular expression whose first group in a name is the volume; empty: the usual names.
    """

    class_from: str = "name"
    csv: str = ""
    volume_pattern: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """What a network makes of the patches and the prompts: a vector of length 1 each."""

    images: Float[np.ndarray, "n d"]
    prompts: Float[np.ndarray, "p d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """The patches and prompts in numbers.

    Attributes:
        names: of the classes.
        truth: class of each patch.
        volumes: of each patch.
        prompt_classes: class of each prompt.
        paired: the prompt that stands for each patch in retrieval: those of its class in turn.
    """

    names: tuple[str, ...]
    truth: Int[np.ndarray, " n"]
    volumes: tuple[str, ...]
    prompt_classes: Int[np.ndarray, " p"]
    paired: Int[np.ndarray, " n"]


def zero_shot(
    run: pathlib.Path,
    patches: pathlib.Path,
    classes: pathlib.Path,
    *,
    out: pathlib.Path | None = None,
    choice: PatchChoice | None = None,
    random_draws: int = 3,
    print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Names the class of each patch by the text that lies nearest, and judges it.

    A class is the mean of the unit vectors of its prompts, at length 1 again. Beside the run stand chance and
    networks of the same sizes with random weights, which show what the patches' brightness alone gives away.

    Args:
        run: folder of a pretraining run with captions.
        patches: folder or store of patches.
        classes: JSON file: a text, or a list of texts, for each class.
        out: folder for `zeroshot.csv` (a row for each patch), `confusion.csv` and `summary.json`; None: none is made.
        choice: where a patch's class is told; None for the defaults.
        random_draws: networks with random weights to compare with; 0: none.
        print_line: prints a line.

    Returns:
        What `summary.json` holds.

    Raises:
        PredictionError: a run without a text tower, fewer than two classes, or no patch of any of them.
        CaptionError: `classes` cannot be read.
        LabelledDataError: a patch whose class cannot be told.
        ForeignOutput: `out` holds what this command did not write.
    """
    if out is not None:
        refuse_foreign(out, made_by=COMMAND, flag=False)
    if not 0 <= random_draws <= 100:
        raise PredictionError(f"--random-draws {random_draws}: between 0 and 100 is needed")
    prompts = _prompts(classes)
    found, left_out = _patches(patches, tuple(prompts), choice or PatchChoice())
    weights = read_weights(run)
    texts = text_encoder(weights, run)
    images = image_encoder(weights, run)
    question = _question(found, prompts)
    trained = _trained_on(run, found)
    for line in _heading(question, weights.origin, left_out=left_out, trained=trained):
        print_line(line)
    networks = [(images, texts)]
    draw = random_network(weights, run)
    for params, batch_stats in map(draw, range(random_draws)):
        networks.append((images.with_weights(params, batch_stats), texts.with_weights(params)))
    own, *drawn = _vectors(found, [text for own in prompts.values() for text in own], networks)
    summary = {
        "run": str(run),
        "weights": weights.origin,
        "patches": {"source": str(patches), "judged": len(found), "left_out": left_out, "trained_on": trained},
        "volumes": len(set(question.volumes)),
        "classes": {
            name: {"prompts": own, "patches": int(np.sum(question.truth == k))}
            for k, (name, own) in enumerate(prompts.items())
        },
        **_judged(own, drawn, question),
    }
    predicted, cosines = _answers(own, question)
    matrix = confusion_matrix(question.truth, predicted, classes=len(prompts))
    for line in (*_lines(summary), *table_lines(matrix, question.names)):
        print_line(line)
    if out is not None:
        mark_folder(out, made_by=COMMAND)
        write_table(out / TABLE, _rows(found, question, predicted, cosines))
        write_confusion_csv(matrix, question.names, out / f"{CONFUSION}.csv")
        replace_json(out / SUMMARY, summary)
        print_line(f"{TABLE}, {CONFUSION}.csv and {SUMMARY} in {out}")
    return summary


def _prompts(file: pathlib.Path) -> dict[str, list[str]]:
    prompts = load_captions([file]).texts
    if len(prompts) < 2:
        raise PredictionError(
            f"--classes {file}: {len(prompts)} class with a text; two or more are needed, as in "
            '{"nuclei": "Round cell nuclei.", "vessels": ["Blood vessels.", "A net of vessels."]}'
        )
    return dict(sorted(prompts.items()))


def _patches(folder: pathlib.Path, classes: Sequence[str], choice: PatchChoice) -> tuple[list[LabelledFile], int]:
    """The patches of these classes, and how many there are of others."""
    find = find_stored if is_store(folder) else find_labelled
    everything = find(folder, volume_pattern=choice.volume_pattern)
    told = with_classes(everything, source=choice.class_from, table=choice.csv)
    found = [file for file in told if file.class_name in classes]
    if not found:
        there = ", ".join(sorted({file.class_name for file in told}))
        raise PredictionError(
            f"{folder}: no patch is of one of the classes {', '.join(classes)}; its {len(told)} patches are of "
            f"{there}. Name the classes alike, or say where they are told with --class-from"
        )
    return found, len(told) - len(found)


def _question(files: Sequence[LabelledFile], prompts: Mapping[str, Sequence[str]]) -> Question:
    names = tuple(prompts)
    truth = np.array([names.index(file.class_name) for file in files])
    prompt_classes = np.repeat(np.arange(len(names)), [len(own) for own in prompts.values()])
    paired = np.zeros(len(files), np.int64)
    for k in range(len(names)):
        mine, own = np.flatnonzero(truth == k), np.flatnonzero(prompt_classes == k)
        paired[mine] = own[np.arange(len(mine)) % len(own)]
    return Question(names, truth, tuple(file.volume for file in files), prompt_classes, paired)


def _heading(question: Question, origin: str, *, left_out: int, trained: int | None) -> Iterator[str]:
    """What is judged, and what a reader of the scores must know."""
    yield (
        f"zero-shot by text with {origin}: {len(question.truth)} patches of {len(set(question.volumes))} volumes, "
        f"{len(question.names)} classes, {len(question.prompt_classes)} prompts"
        f"{f'; {left_out} patches of other classes left out' if left_out else ''}"
    )
    absent = [name for k, name in enumerate(question.names) if k not in question.truth]
    if absent:
        yield f"classes without a patch, which can only be wrong answers: {', '.join(absent)}"
    if trained is None:
        yield "the run does not record which patches it trained on: these may be among them"
    elif trained:
        yield f"{trained} of these patches are among those that the run trained on: its score on others may be lower"


def _trained_on(run: pathlib.Path, files: Sequence[LabelledFile]) -> int | None:
    """How many of the patches the run trained on, by the hashes that its split recorded; None where it has none."""
    split = run / "split.json"
    if not split.is_file():
        return None
    known = {record.get(name, "") for record in read_sealed(split)["train"] for name in ("sha256", "pixels_sha256")}
    return sum(bool({row.sha256, row.pixels_sha256} & (known - {""})) for row in rows_of(files))


def _vectors(
    files: Sequence[LabelledFile], texts: Sequence[str], networks: Sequence[tuple[ImageEncoder, TextEncoder]]
) -> list[Vectors]:
    """Vectors of each network; a patch is read once."""
    images: list[list[np.ndarray]] = [[] for _ in networks]
    for file in files:
        image, voxel_size_um = read_image(file)
        for mine, (encoder, _) in zip(images, networks, strict=True):
            mine.append(encoder.embed(image, voxel_size_um, source=file.path))
    return [Vectors(np.stack(mine), text.embed(texts)) for mine, (_, text) in zip(images, networks, strict=True)]


def _answers(vectors: Vectors, question: Question) -> tuple[np.ndarray, np.ndarray]:
    return nearest_class(vectors.images, class_vectors(vectors.prompts, question.prompt_classes))


def _retrieval(vectors: Vectors, question: Question) -> dict[str, float]:
    return retrieval_accuracy(vectors.images, vectors.prompts[question.paired], question.truth)


def _judged(own: Vectors, drawn: Sequence[Vectors], question: Question) -> dict[str, Any]:
    """The figures of the run with their intervals over volumes, of chance, and of random weights."""
    truth, volumes, count = question.truth, question.volumes, len(question.names)
    predicted, _ = _answers(own, question)
    right = (predicted == truth).astype(np.float64)
    intervals = {
        "top1": bootstrap_mean(right, groups=volumes),
        "macro_f1": bootstrap_statistic(
            lambda places: macro_f1(truth[places], predicted[places], classes=count), len(truth), groups=volumes
        ),
    }
    ahead = wrong_ahead(own.images, own.prompts[question.paired], truth)
    for name, wrong in ahead._asdict().items():
        for k in (1, 5):
            intervals[f"{name}_top{k}"] = bootstrap_mean((wrong < k).astype(np.float64), groups=volumes)
    guessed = chance(truth, classes=count)
    for name, value in _retrieval(own, question).items():
        if name.startswith("chance_"):
            for way in ahead._fields:
                guessed[f"{way}_{name.removeprefix('chance_')}"] = value
    facts: dict[str, Any] = {"scores": {name: _facts(one) for name, one in intervals.items()}, "chance": guessed}
    if drawn:
        answers = [_answers(vectors, question)[0] for vectors in drawn]
        others = [
            {
                "top1": float(np.mean(answer == truth)),
                "macro_f1": macro_f1(truth, answer, classes=count),
                **{name: value for name, value in _retrieval(vectors, question).items() if name in intervals},
            }
            for vectors, answer in zip(drawn, answers, strict=True)
        ]
        table = np.array([answer == truth for answer in answers], np.float64)
        facts["random_weights"] = {name: [one[name] for one in others] for name in others[0]}
        facts["top1_ahead_of_random_weights"] = _facts(bootstrap_difference(right[None], table, volumes=volumes))
    return facts


def _facts(interval: Interval) -> dict[str, Any]:
    """An interval for JSON, which has no NaN: without limits where there are too few volumes."""
    limits = [interval.low, interval.high] if np.isfinite([interval.low, interval.high]).all() else None
    return {"value": interval.value, "interval_95_over_volumes": limits, "volumes": interval.units}


def _lines(summary: Mapping[str, Any]) -> list[str]:
    drawn = summary.get("random_weights")
    last = f"random weights ({len(drawn['top1'])} draws)" if drawn else ""
    lines = [f"{'':20}{'run [95 % over volumes]':28}{'chance':10}{last}".rstrip()]
    for name, facts in summary["scores"].items():
        values = interval_text(facts["value"], facts["interval_95_over_volumes"])
        mean = f"{np.mean(drawn[name]):.3f}" if drawn else ""
        lines.append(f"{name:20}{values:28}{summary['chance'][name]:<10.3f}{mean}".rstrip())
    lines.append(f"always the most common class: top1 {summary['chance']['top1_most_common']:.3f}")
    if drawn:
        ahead = summary["top1_ahead_of_random_weights"]
        difference = interval_text(ahead["value"], ahead["interval_95_over_volumes"])
        lines.append(f"top1 ahead of random weights by {difference}")
    return lines


def _rows(
    files: Sequence[LabelledFile], question: Question, predicted: np.ndarray, cosines: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "file": str(file.path),
            "patch": file.name,
            "volume": file.volume,
            "class": file.class_name,
            "predicted": question.names[answer],
            "correct": int(question.names[answer] == file.class_name),
            **{f"cosine_{name}": float(value) for name, value in zip(question.names, row, strict=True)},
        }
        for file, answer, row in zip(files, predicted, cosines, strict=True)
    ]

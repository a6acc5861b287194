"""Splits of an experiment: by volume, shared, stable, and never changed behind the back of what was run."""

import dataclasses
import json
import os

import pytest
from labelled_toy import write_patch

from lsmfm_jax.experiment.declaration import Arm, DataType, Experiment, ExperimentError, Study
from lsmfm_jax.experiment.prepare import prepare
from lsmfm_jax.experiment.splits import draw_splits, read_sides, split_path
from lsmfm_jax.files import DamagedFile, read_sealed

ARMS = (Arm("scratch", "segment_unet:tiny"),)
CLASSIFYING = (Arm("scratch", "classify_unet:tiny"),)
TYPES = (DataType("blob", "blob"), DataType("tube_ch1", "tube", channels=(1,)))
STUDY = Study("segment", TYPES, ARMS, sizes=(4, 8))
EXPERIMENT = Experiment("toy", (STUDY,), seeds=(1,))


def _name(kind: str, number: int, *, per_volume: int = 3, channel: int = 0) -> str:
    return f"{kind}_patch_{number:03d}_vol{number // per_volume:03d}_ch{channel}"


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """18 patches of 6 volumes of a blob, and 12 of 4 volumes of a tube in two channels."""
    folder = tmp_path_factory.mktemp("patches")
    for number in range(18):
        write_patch(folder, _name("blob", number), size=8, seed=number, balls=1)
    for number in range(12):
        for channel in (0, 1):
            write_patch(folder, _name("tube", number, channel=channel), size=8, seed=50 * channel + number)
    return folder


@pytest.fixture
def experiment(patches):
    return dataclasses.replace(EXPERIMENT, folder=str(patches))


def _volumes(body, names):
    return {body["patches"][name]["volume"] for name in names}


def test_no_volume_is_on_two_sides_and_sizes_are_nested(experiment, tmp_path):
    place = prepare(experiment, tmp_path / "w")
    tested = {}
    for group in ("blob", "tube_ch1"):
        for fold in (1, 2, 3):
            path = split_path(place.workdir, "segment", group, fold)
            body = read_sealed(path)
            small, large = read_sides(path, 4), read_sides(path, 8)
            for sides, count in ((small, 4), (large, 8)):
                assert len(sides.train) + len(sides.validation) == count and len(sides.test) == 2
                assert len(sides.validation) == max(1, round(0.2 * count))
                each = [_volumes(body, names) for names in sides]
                assert not each[0] & each[1] and not each[0] & each[2] and not each[1] & each[2], (group, fold)
                assert len({*sides.train, *sides.validation, *sides.test}) == count + 2
            assert small.test == large.test
            assert set(small.train) <= set(large.train) and set(small.validation) <= set(large.validation)
            tested.setdefault(group, []).append(_volumes(body, small.test))
            assert all(name.endswith("_ch1") for name in body["patches"]) == (group == "tube_ch1")
    for group, volumes in tested.items():
        assert sum(map(len, volumes)) == len(set.union(*volumes)), f"{group}: a volume tests in one fold alone"
    # Six volumes can spare two in each fold; with four, two that test leave six patches, and eight are needed.
    assert [len(volumes) for volumes in tested["blob"]] == [2, 2, 2]
    assert [len(volumes) for volumes in tested["tube_ch1"]] == [1, 1, 1]


def test_the_hash_is_that_of_each_file(experiment, tmp_path, patches):
    import hashlib

    place = prepare(experiment, tmp_path / "w")
    body = read_sealed(split_path(place.workdir, "segment", "blob", 1))
    name = body["test"][0]
    assert body["patches"][name]["sha256"].keys() == {"", "_label", "_blurred"}
    for ending, digest in body["patches"][name]["sha256"].items():
        assert hashlib.sha256((patches / f"{name}{ending}.nii.gz").read_bytes()).hexdigest() == digest


def test_they_are_the_same_for_all_arms_sizes_and_calls(experiment, patches, tmp_path):
    drawn = draw_splits(experiment, patches)
    more = dataclasses.replace(STUDY, arms=(*ARMS, Arm("another", "segment_unet:dice_ce")))
    assert draw_splits(dataclasses.replace(experiment, studies=(more,), seeds=(1, 2, 5)), patches) == drawn
    assert draw_splits(dataclasses.replace(experiment, split_seed=2), patches) != drawn
    # Another folder with the same patches, listed in another order.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in sorted(patches.iterdir(), reverse=True):
        os.link(path, moved / path.name)
    assert draw_splits(experiment, moved) == drawn
    prepare(experiment, tmp_path / "w")
    before = {path: path.read_bytes() for path in (tmp_path / "w" / "splits").rglob("*.json")}
    prepare(experiment, tmp_path / "w")
    assert len(before) == 6 and before == {path: path.read_bytes() for path in before}


def test_a_changed_split_patch_or_declaration_is_refused_in_one_line(experiment, patches, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for path in patches.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    experiment, workdir = dataclasses.replace(experiment, folder=str(own)), tmp_path / "w"
    prepare(experiment, workdir)
    split = split_path(workdir, "segment", "blob", 2)

    def refused(words, error=ExperimentError, of=experiment):
        with pytest.raises(error, match=words) as caught:
            prepare(of, workdir)
        assert "\n" not in str(caught.value)

    whole = split.read_bytes()
    body = json.loads(whole)
    body["test"] = body["test"][::-1]
    split.write_text(json.dumps(body))
    refused("checksum does not match", DamagedFile)
    split.write_bytes(whole)
    prepare(experiment, workdir)

    name = read_sealed(split)["test"][0]
    label = own / f"{name}_label.nii.gz"
    there = label.read_bytes()
    label.write_bytes(there + b"\0")
    refused(r"splits/segment/blob/fold\d\.json: the split was written with other patches: .* has other contents \(1 in")
    label.write_bytes(there)
    write_patch(own, "blob_patch_090_vol030_ch0", size=8, seed=90)
    refused("split was written with other patches: .* is (new|gone)")
    for ending in ("", "_label", "_blurred"):
        (own / f"blob_patch_090_vol030_ch0{ending}.nii.gz").unlink()
    prepare(experiment, workdir)

    other = dataclasses.replace(experiment, split_seed=9)
    refused(r"another experiment was begun there: split_seed: 1 -> 9; name another --workdir", of=other)
    refused("begun there: folder: '", of=dataclasses.replace(experiment, folder=str(patches)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ExperimentError, match="a folder with other files in it"):
        prepare(experiment, tmp_path / "full")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sizes": (40,)},
            r"segment/blob: 18 patches of 6 volumes in .*; size 40 needs 40 of them beside 2 for testing",
        ),
        ({"types": (DataType("none", "nothing"),)}, "of the 42 there none fits"),
        (
            {"task": "classify", "arms": CLASSIFYING, "sizes": (3,)},
            "classify/tube_ch1: size 3 leaves 1 patches; each class needs 2",
        ),
    ],
)
def test_too_little_data_is_told_before_anything_is_written(changes, words, experiment, tmp_path):
    wrong = dataclasses.replace(experiment, studies=(dataclasses.replace(STUDY, **changes),))
    with pytest.raises(ValueError, match=words):
        prepare(wrong, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_more_folds_than_volumes_are_refused(experiment, tmp_path):
    with pytest.raises(ExperimentError, match="7 folds need at least 7 volumes"):
        prepare(dataclasses.replace(experiment, folds=7), tmp_path / "w")


def test_classes_share_a_size_out_and_test_on_each(patches, tmp_path):
    classes = tuple(DataType(name, name) for name in ("blob", "tube"))
    study = Study("classify", classes, CLASSIFYING, sizes=(9,))
    place = prepare(Experiment("c", (study,), folder=str(patches), seeds=(1,)), tmp_path / "w")
    for fold in (1, 2, 3):
        sides = read_sides(split_path(place.workdir, "classify", "classes", fold), 9)
        learnt = [*sides.train, *sides.validation]
        assert sum(name.startswith("blob") for name in learnt) == 5 and len(learnt) == 9
        for side in (sides.test, sides.validation, sides.train):
            assert {name.split("_")[0] for name in side} == {"blob", "tube"}
        assert [name.split("_")[0] for name in sides.test] == ["blob", "blob", "tube", "tube"]

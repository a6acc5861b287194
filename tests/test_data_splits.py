"""Splits keep volumes whole, come out the same whatever the order, and refuse what does not fit."""

import dataclasses
import json
import pathlib
import random
from collections.abc import Sequence

import pytest
from data_files import make_row

from lsmfm_jax.data.splits import Split, SplitError, choose_few, folds, load_split, split_by_volume
from lsmfm_jax.files import DamagedFile, seal
from lsmfm_jax.store.manifest import PatchRow


def _rows(sizes: Sequence[int]) -> list[PatchRow]:
    return [
        make_row(f"p{volume}-{number}", volume=f"v{volume}")
        for volume, size in enumerate(sizes)
        for number in range(size)
    ]


def _volumes(rows: Sequence[PatchRow], places: Sequence[int]) -> set[str]:
    return {rows[i].volume for i in places}


def _ids(rows: Sequence[PatchRow], places: Sequence[int]) -> set[str]:
    return {rows[i].id for i in places}


def _check(split: Split, rows: Sequence[PatchRow]) -> None:
    assert sorted(split.train + split.validation) == list(range(len(rows)))
    assert split.train and split.validation
    train, validation = _volumes(rows, split.train), _volumes(rows, split.validation)
    assert not train & validation
    assert (set(split.train_volumes), set(split.validation_volumes)) == (train, validation)


@pytest.mark.parametrize("seed", range(25))
def test_volumes_stay_whole_whatever_the_order(seed: int) -> None:
    random_state = random.Random(seed)
    rows = _rows([random_state.randint(1, 9) for _ in range(random_state.randint(2, 30))])
    split = split_by_volume(rows, seed=seed)
    _check(split, rows)
    shuffled = random_state.sample(rows, len(rows))
    again = split_by_volume(shuffled, seed=seed)
    assert _ids(shuffled, again.validation) == _ids(rows, split.validation)


def test_the_share_and_the_seed() -> None:
    rows = _rows([5] * 40)
    drawn = [split_by_volume(rows, seed=seed, validation_frac=0.1) for seed in range(20)]
    assert all(len(split.validation) == 20 for split in drawn)
    assert len({split.validation for split in drawn}) > 10
    counts = {volume: sum(volume in split.validation_volumes for split in drawn) for volume in ("v0", "v39")}
    assert all(count < 12 for count in counts.values())
    one_huge = split_by_volume(_rows([1, 500]), seed=0)
    assert one_huge.validation_volumes == ("v0",)
    assert len(split_by_volume(rows, seed=0, validation_frac=0.999).train) == 5


def test_one_volume_needs_a_split_by_file() -> None:
    rows = [make_row(f"p{i}#{c}", file=f"f{i}") for i in range(10) for c in range(2)]
    with pytest.raises(SplitError, match=r"1 volume.*by_file"):
        split_by_volume(rows, seed=0)
    split = split_by_volume(rows, seed=0, by_file=True, validation_frac=0.3)
    files = [{rows[i].file for i in side} for side in (split.train, split.validation)]
    assert not files[0] & files[1] and len(split.validation) == 6 and split.by_file
    with pytest.raises(SplitError, match="validation_frac is 1"):
        split_by_volume(rows, seed=0, validation_frac=1.0)


def test_one_data_set_in_two_stores_is_refused() -> None:
    rows = [make_row("a", volume="1", pixels="x"), make_row("b", volume="2", pixels="x")]
    with pytest.raises(SplitError, match="'a' and 'b' have the same pixels"):
        split_by_volume(rows, seed=0)
    with pytest.raises(SplitError, match="two patches are called 'a'"):
        split_by_volume([rows[0], dataclasses.replace(rows[1], id="a")], seed=0)


def test_a_recorded_split_finds_its_patches_again(tmp_path: pathlib.Path) -> None:
    rows = _rows([3, 2, 4, 1])
    split = split_by_volume(rows, seed=3, validation_frac=0.3)
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", rows) == split
    later = [make_row("new", volume="v9"), *reversed(rows)]
    loaded = load_split(tmp_path / "split.json", later)
    assert _ids(later, loaded.train) == _ids(rows, split.train)
    assert _ids(later, loaded.validation) == _ids(rows, split.validation)
    assert loaded.unassigned == (0,)
    with pytest.raises(SplitError, match="not in the data"):
        load_split(tmp_path / "split.json", rows[1:])
    changed = [dataclasses.replace(rows[0], pixels_sha256="other"), *rows[1:]]
    with pytest.raises(SplitError, match="'p0-0' has other pixels"):
        load_split(tmp_path / "split.json", changed)
    text = (tmp_path / "split.json").read_text()
    (tmp_path / "split.json").write_text(text.replace("p0-0", "p0-1", 1))
    with pytest.raises(DamagedFile, match="checksum"):
        load_split(tmp_path / "split.json", rows)


def test_a_volume_on_both_sides_is_refused_unless_asked_for(tmp_path: pathlib.Path) -> None:
    rows = _rows([6, 6])
    split_by_volume(rows, seed=0, by_file=True, validation_frac=0.5).save(tmp_path / "split.json")
    with pytest.raises(SplitError, match=r"both .*v0, v1"):
        load_split(tmp_path / "split.json", rows)
    assert load_split(tmp_path / "split.json", rows, by_file=True).by_file
    # A patch on both sides is refused even so.
    body = json.loads((tmp_path / "split.json").read_text())
    del body["sha256"]
    body["train"].append(body["validation"][0])
    (tmp_path / "split.json").write_bytes(seal(body))
    with pytest.raises(SplitError, match="both the training and the validation"):
        load_split(tmp_path / "split.json", rows, by_file=True)


def test_folds_cover_every_patch_once() -> None:
    rows = _rows([3, 1, 4, 1, 5, 9, 2, 6])
    splits = folds(rows, count=3, seed=1)
    for split in splits:
        _check(split, rows)
    assert sorted(i for split in splits for i in split.validation) == list(range(len(rows)))
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= 3
    with pytest.raises(SplitError, match="from 2 to 8"):
        folds(rows, count=9, seed=1)


def test_few_shot_draws_are_nested_and_seeded() -> None:
    rows = _rows([4, 4, 4])
    few, more = choose_few(rows, count=3, seed=5), choose_few(rows, count=7, seed=5)
    assert len(few) == 3 and set(few) < set(more)
    assert _ids(rows[::-1], choose_few(rows[::-1], count=3, seed=5)) == _ids(rows, few)
    assert len({choose_few(rows, count=3, seed=seed) for seed in range(10)}) > 5
    with pytest.raises(SplitError, match="13 patches asked for"):
        choose_few(rows, count=13, seed=0)

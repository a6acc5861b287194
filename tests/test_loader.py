"""The stream of batches: order, draws, sharding, resuming, damaged and odd patches, captions."""

import itertools
import logging

import numpy as np
import pytest

from lsmfm_jax.data.loader import DamagedDataError, make_loader, validation_batches
from lsmfm_jax.data.tokens import TokenTable, build_token_table
from lsmfm_jax.scale import Scale
from lsmfm_jax.store.manifest import PatchRow
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.store.writer import StoreWriter

SIZE = (6, 6, 6)


def write_store(path, *, count=11, shape=(8, 9, 10), dtype="uint16", first=0):
    """A real store whose patch i holds 1000 * (first + i) + position along X."""
    with StoreWriter(path) as writer:
        writer.add_captions({key: [f"{key} in tissue"] for key in ("nuclei", "vessels", "glia")})
        for number in range(first, first + count):
            ramp = 1000 * number + np.arange(shape[2])
            pixels = np.broadcast_to(ramp, shape).astype(dtype)
            writer.add(
                pixels,
                PatchRow(
                    id=f"patch{number}",
                    part="",
                    index=0,
                    source="test",
                    layout="flat",
                    volume=f"vol{number // 3}",
                    channel=0,
                    caption_key=("nuclei", "vessels", "glia")[number % 3],
                    percentiles={"1": number + 0.25, "99": number + 0.75},
                    minimum=float(pixels.min()),
                    maximum=float(pixels.max()),
                    mean=float(pixels.mean()),
                    voxel_size_um=None,
                    voxel_size_source="none",
                    shape=shape,
                    dtype=dtype,
                    sha256="",
                    file=f"{number}.nii.gz",
                ),
            )
    return PatchStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "store")


TABLE = TokenTable(
    tokens=np.arange(9 * 8, dtype=np.int32).reshape(9, 8),
    mask=np.ones((9, 8), bool),
    rows={"nuclei": [0, 1, 2, 3], "vessels": [4, 5], "glia": [6, 7, 8]},
)


def take(stores, count, *, indices=None, seed=3, batch_size=4, **options):
    indices = range(sum(len(s.rows) for s in stores)) if indices is None else indices
    options = {"patch_size": SIZE, "token_table": TABLE, **options}
    stream = make_loader(stores, list(indices), batch_size=batch_size, seed=seed, **options)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        assert first[name].dtype == second[name].dtype


def test_batch_holds_what_the_store_and_table_say(store):
    for batch in take([store], 3):
        assert batch["image"].shape == (4, *SIZE) and batch["image"].dtype == np.uint16
        assert {name: batch[name].dtype.name for name in ("low", "high", "caption_key", "sample", "tokens")} == {
            "low": "float32",
            "high": "float32",
            "caption_key": "int32",
            "sample": "int32",
            "tokens": "int32",
        }
        for row, place in enumerate(batch["sample"]):
            facts = store.rows[place]
            number = int(facts.id.removeprefix("patch"))
            assert set(np.unique(batch["image"][row] // 1000)) == {number}
            assert (batch["low"][row], batch["high"][row]) == (number + 0.25, number + 0.75)
            assert ("glia", "nuclei", "vessels")[batch["caption_key"][row]] == facts.caption_key
            wording = batch["tokens"][row, 0] // 8
            assert wording in TABLE.rows[facts.caption_key]


def test_every_epoch_has_each_patch_once_in_another_order(store):
    order = np.concatenate([b["sample"] for b in take([store], 11, batch_size=4)])
    epochs = order.reshape(4, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_draws_vary_between_epochs_and_with_the_seed_only(store):
    corners = {0: set(), 1: set()}
    wordings = {0: set(), 1: set()}
    for seed in (0, 1):
        for batch in take([store], 33, seed=seed):
            corners[seed] |= set((batch["image"][:, 0, 0, 0] % 1000).tolist())
            wordings[seed] |= set((batch["tokens"][:, 0] // 8).tolist())
    assert corners[0] == corners[1] == {0, 1, 2, 3, 4}
    assert wordings[0] == wordings[1] == set(range(9))
    for first, second in zip(take([store], 3), take([store], 3), strict=True):
        same(first, second)
    assert take([store], 1, seed=0)[0]["sample"].tolist() != take([store], 1, seed=1)[0]["sample"].tolist()


@pytest.mark.parametrize("processes", [2, 4])
def test_blocks_of_all_processes_are_the_global_batch(store, processes):
    whole = take([store], 5, batch_size=8)
    shards = [
        take([store], 5, batch_size=8, process_index=index, process_count=processes) for index in range(processes)
    ]
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([shard[step][name] for shard in shards]) for name in batch}
        same(joined, batch)


def test_stream_resumes_at_any_step(store):
    whole = take([store], 9)
    for start in (1, 3, 7):
        for resumed, batch in zip(take([store], 9 - start, start_step=start), whole[start:], strict=True):
            same(resumed, batch)


@pytest.mark.slow
def test_worker_processes_give_the_same_stream(store):
    whole = take([store], 7)
    for worked, batch in zip(take([store], 4, workers=2, start_step=3), whole[3:], strict=True):
        same(worked, batch)


def test_several_stores_by_place_or_by_store_and_row(tmp_path, store):
    second = write_store(tmp_path / "second", count=4, first=20)
    by_place = take([store, second], 4, indices=[2, 11, 14])
    by_pair = take([store, second], 4, indices=[(0, 2), (1, 0), (1, 3)])
    for first, other in zip(by_place, by_pair, strict=True):
        same(first, other)
    samples = np.concatenate([b["sample"] for b in by_place])
    images = np.concatenate([b["image"] for b in by_place])
    assert set(samples.tolist()) == {2, 11, 14}
    named = {place: int(row.id[5:]) for place, row in enumerate([*store.rows, *second.rows])}
    assert [named[place] for place in samples.tolist()] == (images[:, 0, 0, 0] // 1000).tolist()


@pytest.mark.parametrize(("other", "expected"), [("uint16", "uint16"), ("float32", "float32"), ("uint8", "float32")])
def test_images_keep_the_integer_type_that_all_share(tmp_path, store, other, expected):
    second = write_store(tmp_path / other, count=2, dtype=other)
    batch = take([store, second], 1)[0]
    assert batch["image"].dtype == expected


def test_small_patches_are_mirrored_and_counted(tmp_path, store, caplog):
    second = write_store(tmp_path / "small", count=2, shape=(8, 5, 4), first=30)
    stream = make_loader([store, second], [0, 11, 12], batch_size=3, patch_size=(8, 8, 8), seed=0, token_table=None)
    batch = next(stream)
    assert stream.padded == [11, 12]
    assert "2 of 3 patches are smaller than (8, 8, 8) voxels" in caplog.text
    assert "tokens" not in batch
    row = batch["sample"].tolist().index(11)
    line = 1000 * (int(second.rows[0].id[5:])) + np.array([2, 1, 0, 1, 2, 3, 2, 1])
    np.testing.assert_array_equal(batch["image"][row], np.broadcast_to(line, (8, 8, 8)))
    stream.close()


class WithHoles(PatchStore):
    """A store of which some rows cannot be read."""

    @classmethod
    def of(cls, store, holes):
        made = cls(store.path, parts=store.parts, rows=store.rows, captions=store.captions)
        made.holes = holes
        return made

    def read(self, i):
        from lsmfm_jax.store.reader import DamagedPatch

        if i in self.holes:
            raise DamagedPatch(str(self.path), self.rows[i].part, self.rows[i].index, "its bits fell out")
        return super().read(i)


def test_damaged_patches_are_replaced_the_same_way_everywhere_and_named_once(store, caplog):
    holed = WithHoles.of(store, {4, 5})
    stream = make_loader(
        [holed], list(range(11)), batch_size=11, patch_size=SIZE, seed=3, token_table=TABLE, max_bad_frac=0.2
    )
    with caplog.at_level(logging.WARNING):
        batches = list(itertools.islice(stream, 3))
    stream.close()
    whole = take([store], 3, batch_size=11)
    for got, want in zip(batches, whole, strict=True):
        stood_in = np.where(np.isin(want["sample"], (4, 5)), 6, want["sample"])
        np.testing.assert_array_equal(got["sample"], stood_in)
        assert set((got["image"][:, 0, 0, 0] // 1000).tolist()) == {int(store.rows[p].id[5:]) for p in set(stood_in)}
    assert stream.damaged == {4, 5}
    messages = [record.getMessage() for record in caplog.records]
    assert sum(store.rows[4].id + " " in message and "fell out" in message for message in messages) == 1
    assert len(messages) == 2 and all("damaged patch, replaced by another: " in message for message in messages)


def test_too_many_damaged_patches_stop_the_stream(store):
    stream = make_loader(
        [WithHoles.of(store, {4, 5})], range(11), batch_size=11, patch_size=SIZE, seed=3, max_bad_frac=0.1
    )
    with pytest.raises(DamagedDataError, match=r"2 of 11 patches are damaged, more than data\.max_bad_frac=0\.1"):
        next(stream)
    stream.close()


def test_validation_is_fixed_and_its_weights_count_each_patch_once(store):
    options = {"patch_size": SIZE, "token_table": TABLE, "batch_size": 4}
    batches = validation_batches([WithHoles.of(store, {9})], [7, 1, 9, 3, 10, 0], **options)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 2
    for one, other in zip(first, second, strict=True):
        same(one, other)
    joined = {name: np.concatenate([b[name] for b in first]) for name in first[0]}
    assert joined["sample"].tolist() == [7, 1, 3, 3, 10, 0, 0, 0]
    assert joined["weight"].tolist() == [1, 1, 0, 1, 1, 1, 0, 0]
    assert set((joined["image"][:, 0, 0, 0] % 1000).tolist()) == {2}
    keys = [store.rows[place].caption_key for place in joined["sample"]]
    assert (joined["tokens"][:, 0] // 8).tolist() == [TABLE.rows[key][0] for key in keys]
    for index in range(2):
        shard = validation_batches(
            [WithHoles.of(store, {9})], [7, 1, 9, 3, 10, 0], process_index=index, process_count=2, **options
        )
        for whole, part in zip(first, shard, strict=True):
            same({name: value[2 * index : 2 * index + 2] for name, value in whole.items()}, part)


def test_wrong_requests_are_refused_with_a_reason(store):
    common = {"batch_size": 4, "patch_size": SIZE, "seed": 0}
    with pytest.raises(ValueError, match="batch_size=4 cannot be shared by 3 processes"):
        make_loader([store], range(11), process_count=3, **common)
    with pytest.raises(ValueError, match=r"places \[11\] are not among the 11"):
        make_loader([store], [0, 11], **common)
    with pytest.raises(ValueError, match="empty"):
        make_loader([store], [], **common)
    with pytest.raises(ValueError, match=r"'99\.5' is not recorded for patch0; recorded: 1, 99"):
        make_loader([store], range(11), scale=Scale(percentiles=(1.0, 99.5)), **common)
    lacking = TokenTable(TABLE.tokens, TABLE.mask, {"nuclei": [0]})
    with pytest.raises(ValueError, match="no caption for the keys glia, vessels; known keys: nuclei"):
        make_loader([store], range(11), token_table=lacking, **common)


def test_batches_of_one_sample_come(store):
    """Grain's endless repeat overflowed there."""
    samples = [int(batch["sample"][0]) for batch in take([store], 22, batch_size=1)]
    assert sorted(samples[:11]) == sorted(samples[11:]) == list(range(11))


def test_a_store_without_captions_trains_beside_one_that_has_them(store):
    bare = type(store)(store.path, parts=store.parts, rows=store.rows, captions={})
    batches = make_loader([store, bare], range(22), batch_size=8, patch_size=SIZE, seed=0, token_table=TABLE)
    seen = set()
    for _ in range(4):
        batch = next(batches)
        for row in range(8):
            captioned = batch["sample"][row] < 11
            seen.add(bool(captioned))
            assert (batch["caption_key"][row] >= 0) == captioned
            assert batch["token_mask"][row].any() == captioned
    batches.close()
    assert seen == {True, False}


def test_token_table_pads_cuts_and_keeps_every_wording(tmp_path):
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "nuclei", "glow", "in", "tissue"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    captions = {"b": ["nuclei glow in tissue", "nuclei"], "a": ["tissue " * 30]}
    table = build_token_table(captions, tokenizer, 20)
    assert table.rows == {"a": [0], "b": [1, 2]}
    assert table.tokens.shape == table.mask.shape == (3, 20)
    assert table.tokens[1].tolist() == [2, 5, 6, 7, 8, 3] + [0] * 14
    assert table.mask.sum(axis=1).tolist() == [20, 6, 3]
    assert table.tokens[0, [0, -1]].tolist() == [2, 3]
    assert build_token_table({"b": captions["b"]}, tokenizer, 20).tokens.shape == (2, 8)
    with pytest.raises(ValueError, match="without a wording: c"):
        build_token_table({"c": []}, tokenizer, 20)

"""Checkpoints: what is damaged is named and passed over, and any sharding restores any other."""

import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lsmfm_jax.train import fingerprints as fingerprints_module
from lsmfm_jax.train.checkpoint import CheckpointError, Checkpoints, SaveError, read_part
from lsmfm_jax.train.checkpoint_checks import committed_steps, damaged_files
from lsmfm_jax.train.fingerprints import fingerprints
from lsmfm_jax.train.sharding import make_mesh
from lsmfm_jax.verify import _verify_checkpoint


def _state(step: int):
    key = jax.random.key(step)
    return {
        "params": {"kernel": jax.random.normal(key, (16, 8)), "bias": jnp.zeros(3)},
        "batch_stats": {},
        "step": jnp.asarray(step, jnp.int32),
    }


def _abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def _written(folder, steps=(1, 2)):
    checkpoints = Checkpoints(folder, keep=3)
    for step in steps:
        checkpoints.save(step, _state(step), {"epoch": step})
    checkpoints.seal()
    return checkpoints


def _files(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def test_the_newest_is_restored_bitwise_with_its_record(tmp_path):
    checkpoints = _written(tmp_path / "c")
    restored = checkpoints.restore(_abstract(_state(0)))
    assert (restored.step, restored.meta["epoch"]) == (2, 2)
    jax.tree.map(np.testing.assert_array_equal, restored.state, _state(2))


def test_only_the_latest_are_kept(tmp_path):
    _written(tmp_path / "c", steps=(1, 2, 3, 4, 5))
    assert committed_steps(tmp_path / "c") == [3, 4, 5]
    assert {path.stem for path in (tmp_path / "c" / "seals").glob("*.json")} == {"3", "4", "5"}


def test_an_earlier_step_is_not_lost_without_a_word_and_later_ones_can_be_set_aside(tmp_path):
    folder = tmp_path / "c"
    checkpoints = _written(folder, steps=(2, 5))
    with pytest.raises(SaveError, match=r"checkpoint at step 3 could not be written to \S+: it has one of step 5;"):
        checkpoints.save(3, _state(3), {"epoch": 3})
    assert checkpoints.set_aside_after(5) == []
    assert checkpoints.set_aside_after(2) == [5]
    checkpoints.save(3, _state(3), {"epoch": 3})
    checkpoints.seal()
    assert committed_steps(folder) == [2, 3] and (folder / "later-5").is_dir()
    assert {path.stem for path in (folder / "seals").glob("*.json")} == {"2", "3"}
    assert checkpoints.set_aside_after(0) == [2, 3]
    assert sorted(path.name for path in folder.glob("later-*")) == ["later-2", "later-3"]


def test_any_single_bit_flip_is_found_and_passed_over(tmp_path, caplog):
    folder = tmp_path / "c"
    checkpoints = _written(folder)
    files = [path for path in _files(folder, 2) if path.stat().st_size]
    rng = np.random.default_rng(0)
    for _ in range(40):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert damaged_files(folder, 2) == [f"{path}: contents differ from what was written"]
        path.write_bytes(whole)
    path = files[rng.integers(len(files))]
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.restore(_abstract(_state(0))).step == 1
    assert f"damaged checkpoint passed over: {path}" in caplog.text


def test_a_missing_file_and_a_damaged_seal_are_named(tmp_path):
    folder = tmp_path / "c"
    _written(folder)
    path = _files(folder, 2)[3]
    path.unlink()
    assert damaged_files(folder, 2) == [f"{path}: missing"]
    seal = folder / "seals" / "1.json"
    record = json.loads(seal.read_text())
    name = next(name for name in record if name != "_seal")
    record[name] = record[name][:-1] + ("0" if record[name][-1] != "0" else "1")
    seal.write_text(json.dumps(record))
    assert damaged_files(folder, 1) == [f"{seal}: damaged: its own checksum differs"]


def test_leaves_are_checked_even_without_the_hashes_of_files(tmp_path):
    """A run killed before its last checkpoint was sealed has only the fingerprints."""
    folder = tmp_path / "c"
    checkpoints = _written(folder)
    (folder / "seals" / "2.json").unlink()
    meta = folder / "2" / "meta" / "metadata"
    record = json.loads(meta.read_text())
    record["fingerprints"]["params/kernel"] = "0" * 16
    meta.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="leaf params/kernel is damaged"):
        read_part(folder, 2, ("params",))
    assert checkpoints.restore(_abstract(_state(0))).step == 1


def test_the_record_is_checked_even_without_the_hashes_of_files(tmp_path):
    folder = tmp_path / "c"
    checkpoints = _written(folder)
    (folder / "seals" / "2.json").unlink()
    meta = folder / "2" / "meta" / "metadata"
    record = json.loads(meta.read_text())
    record["epoch"] += 1
    meta.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="its record is damaged"):
        read_part(folder, 2, ("params",))
    assert checkpoints.restore(_abstract(_state(0))).step == 1


def test_a_damaged_checkpoint_is_set_aside_and_made_again(tmp_path):
    """As long as it counted as the latest, none of an earlier step would be written."""
    folder = tmp_path / "c"
    checkpoints = _written(folder, steps=(1, 3))
    _files(folder, 3)[0].write_bytes(b"")
    assert checkpoints.restore(_abstract(_state(0))).step == 1
    assert (folder / "damaged-3").is_dir()
    for step in (2, 3):
        checkpoints.save(step, _state(step), {})
    checkpoints.seal()
    assert committed_steps(folder) == [1, 2, 3]
    assert not any(damaged_files(folder, step) for step in (1, 2, 3))
    assert Checkpoints(folder, keep=3).restore(_abstract(_state(0))).step == 3


def test_what_was_not_read_is_not_sealed(tmp_path):
    folder = tmp_path / "c"
    _written(folder, steps=(1, 2))
    for step in (1, 2):
        (folder / "seals" / f"{step}.json").unlink()
    again = Checkpoints(folder, keep=3)
    assert again.restore(_abstract(_state(0))).step == 2
    again.close()
    assert [path.name for path in (folder / "seals").iterdir()] == ["2.json"]


def test_a_save_that_fails_says_so_and_leaves_the_ones_before(tmp_path):
    """No file may grow beyond a few bytes, as on a full disk: the error comes from the writer's own threads."""
    folder = tmp_path / "c"
    checkpoints = _written(folder, steps=(1,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(SaveError, match=f"checkpoint at step 2 could not be written to {folder}"):
            checkpoints.save(2, _state(2), {})
            checkpoints.seal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert committed_steps(folder) == [1] and not list(folder.glob("*tmp*"))
    checkpoints.save(3, _state(3), {})
    checkpoints.close()
    assert committed_steps(folder) == [1, 3]
    assert Checkpoints(folder, keep=3).restore(_abstract(_state(0))).step == 3


def test_an_uncommitted_checkpoint_is_passed_over(tmp_path):
    folder = tmp_path / "c"
    checkpoints = _written(folder)
    (folder / "seals" / "2.json").unlink()
    for path in _files(folder, 2):
        if path.name in ("_CHECKPOINT_METADATA", "commit_success.txt", "_METADATA"):
            path.unlink()
    assert checkpoints.restore(_abstract(_state(0))).step == 1


def test_nothing_whole_left_is_an_error_that_names_the_folder(tmp_path):
    folder = tmp_path / "c"
    checkpoints = _written(folder)
    for step in (1, 2):
        _files(folder, step)[0].write_bytes(b"")
        (folder / str(step) / "new_file").write_text("x")
    with pytest.raises(CheckpointError, match=f"{folder}: none of the checkpoints"):
        checkpoints.restore(_abstract(_state(0)))


def test_a_checkpoint_that_a_kill_left_unsealed_is_sealed_by_the_next_start(tmp_path):
    """The best checkpoint is never restored by a resume, so it stayed without its seal."""
    folder = tmp_path / "c"
    _written(folder)
    (folder / "seals" / "2.json").unlink()
    (line,) = _verify_checkpoint(folder, 2)
    assert (
        "2.json: missing: lost, or the run was killed before it was written; the next start of the run checks" in line
    )
    again = Checkpoints(folder, keep=3)
    again.adopt_unsealed(_abstract(_state(0)))
    again.seal()
    assert damaged_files(folder, 2) == []
    assert (folder / "seals" / "2.json").exists()


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert Checkpoints(tmp_path / "c", keep=1).restore(_abstract(_state(0))) is None


def test_saved_on_eight_devices_restores_on_two(tmp_path):
    state = _state(5)
    mesh = make_mesh(data=1, fsdp=8)
    spread = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    eight = NamedSharding(mesh, PartitionSpec("fsdp"))
    spread["params"]["kernel"] = jax.device_put(state["params"]["kernel"], eight)
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(5, spread, {})
    checkpoints.seal()
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    two = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    wanted = _abstract(jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
    wanted["params"]["kernel"] = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=two)
    restored = checkpoints.restore(wanted)
    assert restored.state["params"]["kernel"].sharding == two
    np.testing.assert_array_equal(restored.state["params"]["kernel"], state["params"]["kernel"])


def test_fingerprints_see_every_bit_and_no_sharding():
    leaf = jax.random.normal(jax.random.key(0), (64, 4))
    plain = fingerprints({"x": leaf})
    spread = jax.device_put(leaf, NamedSharding(make_mesh(data=8), PartitionSpec("data")))
    assert fingerprints({"x": spread}) == plain
    bits = np.asarray(leaf).view(np.uint32)
    rng = np.random.default_rng(1)
    for _ in range(50):
        changed = bits.copy()
        changed.flat[rng.integers(changed.size)] ^= np.uint32(1 << int(rng.integers(32)))
        assert fingerprints({"x": jnp.asarray(changed.view(np.float32))}) != plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_host_and_device_give_the_same_fingerprint(dtype):
    leaf = (100 * jax.random.normal(jax.random.key(2), (7, 5))).astype(dtype)
    on_device = fingerprints_module._device_fingerprint(leaf)
    assert tuple(int(value) for value in on_device) == fingerprints_module._host_fingerprint(np.asarray(leaf))


def test_parts_are_read_without_the_rest(tmp_path):
    _written(tmp_path / "c")
    state, meta = read_part(tmp_path / "c", 2, ("params",))
    assert set(state) == {"params"} and meta["epoch"] == 2
    np.testing.assert_array_equal(state["params"]["kernel"], _state(2)["params"]["kernel"])

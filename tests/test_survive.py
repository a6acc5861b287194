"""Runs that are killed, damaged or out of disk: they go on, end where the undisturbed run ends, or say what is wrong.

The kills and flips are few here; `make soak` makes as many as the promise asks for.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import time

import numpy as np
import pytest
from tiny_runs import final_state, finish, make_store, metrics, pretraining, start
from toy import toy_batches

from lsmfm_jax.data.splits import load_split
from lsmfm_jax.files import DamagedFile
from lsmfm_jax.store.reader import DamagedPatch, PatchStore
from lsmfm_jax.train.checkpoint import CheckpointError, SaveError, read_part
from lsmfm_jax.train.checkpoint_checks import committed_steps
from lsmfm_jax.train.fingerprints import combined_fingerprint
from lsmfm_jax.train.loop import Ending
from lsmfm_jax.train.records import REWRITTEN, SEAL, damaged_records
from lsmfm_jax.train.resume import ResumeError, check_run_folder
from lsmfm_jax.train.run import execute
from lsmfm_jax.train.weights import read_weights
from lsmfm_jax.verify import verify

KILLS = int(os.environ.get("LSMFM_SOAK_KILLS", "3"))
FLIPS = int(os.environ.get("LSMFM_SOAK_FLIPS", "30"))
SEED = int(os.environ.get("LSMFM_SOAK_SEED", "0"))
EPOCHS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A store, a finished run on it, what it printed, and the cache of its programs."""
    folder = tmp_path_factory.mktemp("survive")
    store = make_store(folder)
    said = finish(start(*pretraining(store, folder / "run", epochs=EPOCHS), XDG_CACHE_HOME=folder / "cache"))
    return store, folder / "run", said, folder / "cache"


# How long after its sign has been seen the kill may come, as a share of the time that a whole run takes.
MOMENTS = {"mid-save": 0.005, "between": 0.4, "compile": 0.3, "start-up": 0.5}


def _newer(paths, began):
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > began:
                return True
    return False


def _kill(process, moment, folder, *, length_s, chance):
    """Kills a run at a moment of a kind; False where it has ended before."""
    began = time.time()
    signs = {
        "start-up": lambda: True,
        # The last of the records, before the step is compiled.
        "compile": lambda: _newer([folder / "seal.json"], began),
        # After a checkpoint of its own, so that the next goes on from there.
        "between": lambda: _newer(folder.glob("checkpoints/*[0-9]"), began),
        "mid-save": lambda: _newer(folder.glob("*/*tmp*"), began),
    }
    while not signs[moment]() and process.poll() is None:
        time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0.0, MOMENTS[moment] * length_s))
    alive = process.poll() is None
    process.kill()
    return alive


@pytest.mark.slow
@pytest.mark.kill
def test_killed_at_random_moments_the_run_ends_in_the_state_of_the_undisturbed_one(undisturbed, tmp_path):
    store, whole, said, cache = undisturbed
    chance = random.Random(SEED)
    began = time.monotonic()
    # Once undisturbed with the programs in the cache: the time over which the kills are spread, and determinism.
    again = finish(start(*pretraining(store, tmp_path / "again", epochs=EPOCHS), XDG_CACHE_HOME=cache))
    length_s = time.monotonic() - began
    assert final_state(again) == final_state(said)
    kills, runs = [], [tmp_path / "run0"]
    while len(kills) < KILLS:
        moment = list(MOMENTS)[len(kills) % len(MOMENTS)]
        # Compiling is seen with an empty cache only.
        place = tmp_path / f"cache{len(kills)}" if moment == "compile" else cache
        process = start(*pretraining(store, runs[-1], epochs=EPOCHS), XDG_CACHE_HOME=place)
        killed = _kill(process, moment, runs[-1], length_s=length_s, chance=chance)
        out = finish(process, expect=None if killed else 0)
        assert "Traceback" not in out
        if killed:
            kills.append((moment, runs[-1].name, sorted(committed_steps(runs[-1] / "checkpoints"))))
        else:
            assert final_state(out) == final_state(said)
            runs.append(tmp_path / f"run{len(runs)}")
    print(*kills, sep="\n")
    end = finish(start(*pretraining(store, runs[-1], epochs=EPOCHS), XDG_CACHE_HOME=cache))
    assert final_state(end) == final_state(said)
    for run in runs:
        for kind in ("train", "validation"):
            expected = {step: line["loss"] for step, line in metrics(whole, kind).items()}
            assert {step: line["loss"] for step, line in metrics(run, kind).items()} == expected
        assert verify(run) == []


def _flip(path, chance):
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _found(folder, files, flips, loaded):
    """Flips one bit in one file at a time, in larger files more often; each must be named, then it is put right.

    `loaded(victim)` reads what is in the file as a program would, and checks that this notices too.
    """
    chance = random.Random(SEED)
    for _ in range(flips):
        victim = chance.choices(files, [50 + file.stat().st_size for file in files])[0]
        before = victim.read_bytes()
        _flip(victim, chance)
        damages = verify(folder)
        assert any(str(victim) in line for line in damages), f"{victim}: {damages}"
        loaded(victim)
        victim.write_bytes(before)
    assert verify(folder) == []


@pytest.mark.slow
def test_any_bit_flipped_in_a_run_is_found_and_named(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[1], folder)
    assert verify(folder) == []
    # One of each kind: every verification below reads all of them.
    for step in committed_steps(folder / "checkpoints")[:-1]:
        shutil.rmtree(folder / "checkpoints" / str(step))
        (folder / "checkpoints" / "seals" / f"{step}.json").unlink()
    outputs = ("metrics.jsonl", "report.html", "summary.json")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    files = [f for f in files if f.name not in outputs and "pictures" not in f.parts and "tensorboard" not in f.parts]
    names = {str(file.relative_to(folder)) for file in files}
    assert {"config.json", "run.json", "split.json", "groups.txt", SEAL, "text/vocab.txt"} <= names

    def loaded(victim):
        name = victim.relative_to(folder)
        if name.parts[0] in ("checkpoints", "best"):
            with pytest.raises(CheckpointError, match=re.escape(str(victim))):
                read_part(folder / name.parts[0], committed_steps(folder / name.parts[0])[0], ("params",))
        elif str(name) in ("run.json", SEAL):
            with pytest.raises(CheckpointError, match=re.escape(str(victim))):
                read_weights(folder)
        elif str(name) == "split.json":
            with pytest.raises(ValueError, match=re.escape(str(victim))):
                load_split(victim, PatchStore.open(undisturbed[0]).rows)
        elif str(name) not in REWRITTEN:
            assert any(str(victim) in line for line in damaged_records(folder, kept_only=True))

    _found(folder, files, FLIPS, loaded)
    for name in ("config.json", "split.json", "text/config.json", SEAL):
        (folder / name).rename(tmp_path / "away")
        assert any(str(folder / name) in line for line in verify(folder)), name
        (tmp_path / "away").rename(folder / name)
    step = committed_steps(folder / "best")[0]
    shutil.rmtree(folder / "best" / str(step))
    assert verify(folder) == [f"{folder / 'best' / str(step)}: missing"]


@pytest.mark.slow
def test_any_bit_flipped_in_a_store_is_found_and_named(undisturbed, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(undisturbed[0], folder)
    store = PatchStore.open(folder)
    expected = {row.id: store.read(i) for i, row in enumerate(store.rows)}

    def loaded(victim):
        """A changed patch is never handed out; some bytes, as blanks in a header, change none."""
        try:
            damaged = PatchStore.open(folder)
        except DamagedFile as error:
            assert error.path == str(victim)
            return
        for i, row in enumerate(damaged.rows):
            with contextlib.suppress(DamagedPatch):
                np.testing.assert_array_equal(damaged.read(i), expected[row.id])

    _found(folder, [file for file in sorted(folder.rglob("*")) if file.is_file()], FLIPS, loaded)


def test_a_damaged_record_is_not_resumed_over(tmp_path):
    from test_loop import _config, _quiet, _setup

    folder = tmp_path / "run"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "vocab.txt").write_text("cell\n")
    execute(_config(epochs=1), _setup(), folder, print_line=_quiet)
    assert verify(folder) == []
    (folder / "text" / "vocab.txt").write_text("call\n")
    with pytest.raises(ResumeError, match=r"text/vocab.txt: contents differ .*Resume refused"):
        check_run_folder(_config(epochs=1), folder)
    (folder / "text" / "vocab.txt").write_text("cell\n")
    (folder / "config.json").write_text((folder / "config.json").read_text()[:-5])
    with pytest.raises(ResumeError, match=r"config.json: damaged: .*Resume refused"):
        check_run_folder(_config(epochs=1), folder)


@contextlib.contextmanager
def _no_room():
    """No file may grow beyond a few bytes: writing fails in orbax's own threads, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _full_from(folder, first, last):
    """Batches during which, from one step to another, the disk is full; the saves before have ended by then."""

    def batches(start_step):
        with contextlib.ExitStack() as full:
            for step, batch in enumerate(toy_batches(start_step), start_step):
                if step == first:
                    while not all(committed_steps(folder / group) for group in ("checkpoints", "best")):
                        time.sleep(0.01)
                    full.enter_context(_no_room())
                if step == last:
                    full.close()
                yield batch

    return batches


def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path, capsys):
    from test_loop import _config, _quiet, _setup

    whole, _ = execute(_config(), _setup(), tmp_path / "whole", print_line=_quiet)
    folder = tmp_path / "run"
    state, ending = execute(_config(), _setup(batches=_full_from(folder, 4, 7)), folder, print_line=_quiet)
    said = capsys.readouterr().out
    assert f"checkpoint at step 6 could not be written to {folder / 'checkpoints'}" in said
    assert "the earlier ones are kept; train.on_disk_full is continue" in said
    assert ending is Ending.FINISHED and combined_fingerprint(state) == combined_fingerprint(whole)
    assert committed_steps(folder / "checkpoints") == [3, 9, 12]
    assert verify(folder) == []


def test_a_full_disk_stops_the_run_where_that_is_configured_and_it_goes_on_later(tmp_path, capsys):
    from test_loop import _config, _quiet, _setup

    whole, _ = execute(_config(), _setup(), tmp_path / "whole", print_line=_quiet)
    folder = tmp_path / "run"
    config = _config(on_disk_full="stop")
    with pytest.raises(SaveError, match="could not be written"):
        execute(config, _setup(batches=_full_from(folder, 4, 100)), folder, print_line=_quiet)
    assert committed_steps(folder / "checkpoints") == [3]
    state, _ = execute(config, _setup(), folder, print_line=_quiet)
    assert combined_fingerprint(state) == combined_fingerprint(whole)


def test_damaged_patches_are_counted_in_the_log(tmp_path, capsys):
    from test_loop import _config, _quiet, _setup

    class Stream:
        """As `data.loader.BatchStream`: batches, and the places of patches found damaged."""

        def __init__(self, start_step):
            self.batches, self.damaged, self.step = toy_batches(start_step), set(), start_step

        def __next__(self):
            self.step += 1
            if self.step in (5, 8):
                self.damaged.add(self.step)
            return next(self.batches)

        def close(self):
            pass

    execute(_config(), _setup(batches=Stream), tmp_path / "run", print_line=_quiet)
    said = capsys.readouterr().out
    assert "1 damaged patches so far" in said and "2 damaged patches so far" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [line["damaged_patches"] for line in lines if line["kind"] == "train"]
    assert counts[0] == 0 and counts[-1] == 2 and np.all(np.diff(counts) >= 0)

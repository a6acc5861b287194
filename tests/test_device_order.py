"""Devices fill a mesh process by process, and on TPUs so that those that exchange are neighbours."""

import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from lsmfm_jax.train.device_order import device_grid, hops, hops_in
from lsmfm_jax.train.sharding import make_mesh

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


class Chip(NamedTuple):
    id: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"


def _slice(extent, host=(2, 2, 1), *, by_process=True):
    """Chips of a slice, with processes for blocks of `host`; by process as libtpu lists them, or row by row."""
    hosts = [size // part for size, part in zip(extent, host, strict=True)]
    places = [tuple(reversed(place)) for place in itertools.product(*map(range, reversed(extent)))]
    chips = []
    for number, at in enumerate(places):
        x, y, z = (place // part for place, part in zip(at, host, strict=True))
        chips.append(Chip(number, x + hosts[0] * (y + hosts[1] * z), at))
    return sorted(chips, key=lambda chip: chip.process_index) if by_process else chips


def _neighbours(grid, axis):
    return [hops(*pair) for pair in zip(grid.flat, np.roll(grid, -1, axis).flat, strict=True)]


V5E_8, V5E_64, V5P_4, V5P_8 = (2, 4, 1), (8, 8, 1), (2, 2, 1), (2, 2, 2)


@pytest.mark.parametrize(
    ("extent", "sizes"),
    [
        (V5E_8, (2, 4, 1)),
        (V5E_8, (2, 1, 4)),
        (V5E_8, (1, 8, 1)),
        (V5E_64, (16, 4, 1)),
        (V5E_64, (16, 1, 4)),
        (V5E_64, (8, 8, 1)),
        (V5E_64, (16, 2, 2)),
        (V5P_4, (1, 4, 1)),
        (V5P_8, (1, 8, 1)),
    ],
)
@pytest.mark.parametrize("by_process", [True, False], ids=["by process", "row by row"])
def test_chips_that_exchange_are_neighbours(extent, sizes, by_process):
    chips = _slice(extent, by_process=by_process)
    grid = device_grid(chips, sizes)
    assert sorted(grid.flat) == sorted(chips)
    for axis in (1, 2):
        if sizes[axis] > 1:
            # The first is a neighbour of the last, too.
            assert set(_neighbours(grid, axis)) == {1}
    processes = [chip.process_index for chip in grid.flat]
    assert processes == sorted(processes), "the rows of a process lie together, in the order of the processes"


def test_the_order_of_the_list_is_further_round():
    """What the test above could not tell if every order passed it."""
    listed = np.empty(8, dtype=object)
    listed[:] = _slice(V5E_8)
    assert max(_neighbours(listed.reshape(1, 8, 1), 1)) == 4
    assert hops_in(listed.reshape(1, 8, 1)) == 14 and hops_in(device_grid(_slice(V5E_8), (1, 8, 1))) == 8


def test_one_process_with_all_chips_of_a_slice_has_a_ring_as_well():
    chips = _slice(V5E_8, host=V5E_8)
    assert set(_neighbours(device_grid(chips, (1, 8, 1)), 1)) == {1}


def test_nothing_moves_where_it_makes_no_difference():
    chips = _slice(V5E_64)
    assert list(device_grid(chips, (64, 1, 1)).flat) == chips, "all of a batch is summed over all chips"
    cards = [chip._replace(platform="gpu") for chip in chips]
    assert list(device_grid(cards, (16, 4, 1)).flat) == cards
    assert list(make_mesh(data=2, fsdp=4).devices.flat) == jax.devices()


def test_the_rows_of_a_process_lie_together_on_other_devices_too():
    cards = [chip._replace(platform="gpu", process_index=chip.id % 2) for chip in _slice(V5E_8)]
    grid = device_grid(cards, (8, 1, 1))
    assert [card.process_index for card in grid.flat] == [0] * 4 + [1] * 4
    for process in (0, 1):
        assert list(grid.flat[4 * process :][:4]) == [card for card in cards if card.process_index == process]


def test_two_cores_of_a_chip_stay_together():
    cores = [chip._replace(id=2 * chip.id + core, core_on_chip=core) for chip in _slice(V5P_4) for core in (1, 0)]
    grid = device_grid(cores, (2, 4, 1))
    assert [core.coords for core in grid.flat[::2]] == [core.coords for core in grid.flat[1::2]]
    # On a chip, to the next one, and on that one; then back.
    assert _neighbours(grid, 1) == [0, 1, 0, 1] * 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: `make bench-tpu-env`")
@pytest.mark.slow
def test_on_a_real_slice_each_process_has_its_rows(tmp_path):
    script = (
        "import json, tpu_target, jax\n"
        "from lsmfm_jax.train.sharding import make_mesh, batch_shardings\n"
        "found = []\n"
        "for name in ('v5e:2x4', 'v5e:8x8', 'v5p:2x2x1', 'v6e:2x4'):\n"
        "    devices = tpu_target.slice_devices(name)\n"
        "    for fsdp, depth in ((1, 1), (4, 1), (1, 4), (2, 2)):\n"
        "        mesh = make_mesh(fsdp=fsdp, depth=depth, devices=devices)\n"
        "        rows = 2 * mesh.size // depth\n"
        "        batch = jax.ShapeDtypeStruct((rows, 8), 'float32')\n"
        "        places = batch_shardings(batch, mesh).devices_indices_map((rows, 8))\n"
        "        found.append([rows, sorted([d.process_index, p[0].start or 0] for d, p in places.items())])\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=FOLDER, capture_output=True, text=True, check=True)
    for rows, placed in json.loads(done.stdout.splitlines()[-1]):
        processes = 1 + max(process for process, _ in placed)
        assert {process for process, _ in placed} == set(range(processes))
        assert all(process == start // (rows // processes) for process, start in placed), (rows, placed)

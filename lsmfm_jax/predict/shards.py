"""What is finished of a result: its settings, and a mark for each shard that was written and read back.

`prediction/plan.json` in a result has the settings, the plan and the statistics of its input; it appears in one
step when the result is made, and never changes. `prediction/done/z.y.x.json` appears when a shard is complete, with
the checksums of its files. Nothing else is shared between the processes that write a result.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lsmfm_jax.files import DamagedFile, read_sealed, replace_file, seal, sha256, sync_folder
from lsmfm_jax.predict.alike import write_alike
from lsmfm_jax.predict.inputs import PredictionError
from lsmfm_jax.predict.output import Image, shard_file
from lsmfm_jax.predict.plan import Plan, Size
from lsmfm_jax.predict.statistics import Readable, VolumeStatistics, narrowed
from lsmfm_jax.scale import levels_of

FOLDER = "prediction"
RECORD = "plan.json"
MAPS = "maps.npz"
FORMAT = 1
# Boxes of the input whose checksum says whether it is still the same, and their side in voxels.
SAMPLES, SAMPLE_SIDE = 12, 24
# The order in which tasks are dealt to parts: fixed, so that all parts agree.
DEAL_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What a result was made with.

    Attributes:
        settings: all that its voxels depend on; another process must have the same to add to it.
        source: where the input was, and how it was opened.
        plan: shards and tasks.
        statistics: of the input.
        merging: how objects are to be made of it.
    """

    settings: dict[str, Any]
    source: dict[str, Any]
    plan: Plan
    statistics: VolumeStatistics
    merging: dict[str, Any]


def has_record(root: pathlib.Path) -> bool:
    """Whether a folder is a result, finished or not."""
    return (root / FOLDER / RECORD).is_file()


def write_record(root: pathlib.Path, record: Record) -> None:
    """Makes a folder a result; where another process has done it meanwhile, that one's record stays."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    maps = io.BytesIO()
    facts = record.statistics
    arrays = {"cell_maxima": facts.cell_maxima, "projection": facts.projection}
    if facts.levels.background is not None:
        arrays["background"] = facts.levels.background
    np.savez(maps, **arrays)
    write_alike(folder / MAPS, maps.getvalue())
    body = {
        "format": FORMAT,
        "settings": record.settings,
        "source": record.source,
        "plan": dataclasses.asdict(record.plan),
        "statistics": {"levels": facts.levels.facts(), "minimum": facts.minimum, "maximum": facts.maximum},
        "maps_sha256": sha256(maps.getvalue()),
        "merging": record.merging,
    }
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=RECORD)
    with os.fdopen(handle, "wb") as file:
        file.write(seal(body))
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link and not a rename: it fails where there is a record already.
        os.link(temporary, folder / RECORD)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
    sync_folder(folder)


def read_record(root: pathlib.Path) -> Record:
    """What a result was made with.

    Raises:
        PredictionError: the folder is no result, or its record is damaged.
    """
    if not has_record(root):
        raise PredictionError(
            f"{root}: no {FOLDER}/{RECORD} there; name a result of lsmfm predict --checkpoint RUN BRAIN --out "
            "RESULT.ome.zarr"
        )
    try:
        body = read_sealed(root / FOLDER / RECORD)
        data = (root / FOLDER / MAPS).read_bytes()
    except (DamagedFile, OSError) as error:
        raise PredictionError(f"{error}; predict again with --overwrite") from None
    if sha256(data) != body["maps_sha256"]:
        raise PredictionError(f"{root / FOLDER / MAPS}: damaged; predict again with --overwrite")
    if body["format"] != FORMAT:
        raise PredictionError(f"{root}: made by another version of lsmfm ({body['format']}); predict again")
    plan = Plan(**{key: tuple(v) if isinstance(v, list) else v for key, v in body["plan"].items()})
    with np.load(io.BytesIO(data), allow_pickle=False) as maps:
        levels = levels_of(body["statistics"].pop("levels"), maps.get("background"))
        shown = {name: maps[name] for name in ("cell_maxima", "projection")}
        statistics = VolumeStatistics(levels, **body["statistics"], **shown)
    return Record(body["settings"], body["source"], plan, statistics, body["merging"])


def check_settings(root: pathlib.Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to add to a result that was made with other settings.

    Raises:
        PredictionError: the message names each difference.
    """
    there, now = json.loads(json.dumps(there)), json.loads(json.dumps(now))
    different = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
    if different:
        shown = "; ".join(f"{key} {there.get(key)} there, {now.get(key)} now" for key in different)
        raise PredictionError(
            f"{root}: holds a prediction with other settings: {shown}. Start again with the settings that it has, name "
            "another --out, or pass --overwrite"
        )


def known_statistics(root: pathlib.Path, wanted: dict[str, Any]) -> VolumeStatistics:
    """The statistics that an earlier result recorded of a volume.

    Args:
        root: the earlier result, finished or not, of the whole volume or of a box of it.
        wanted: settings of the new one.

    Raises:
        PredictionError: it is no result, or of another volume or scale; the message names the difference.
    """
    record = read_record(root)
    # As JSON has them: lists and not tuples.
    wanted = json.loads(json.dumps(wanted))
    keys = sorted(key for key in wanted if key == "scale" or key.startswith("input_"))
    other = [key for key in keys if record.settings.get(key) != wanted[key]]
    if other:
        shown = "; ".join(f"{key} {record.settings.get(key)} there, {wanted[key]} now" for key in other)
        raise PredictionError(
            f"--levels-from {root}: it was measured on another volume or for another scale: {shown}. Leave the option "
            "out, and the volume is measured"
        )
    return record.statistics


def sample_checksum(volume: Readable) -> str:
    """A checksum of a few boxes of a volume, the same wherever the volume lies."""
    chosen = np.random.default_rng(0)
    digest = hashlib.sha256()
    for _ in range(SAMPLES):
        starts = [int(chosen.integers(0, max(1, size - SAMPLE_SIDE))) for size in volume.shape]
        z, y, x = (slice(a, min(a + SAMPLE_SIDE, size)) for a, size in zip(starts, volume.shape, strict=True))
        digest.update(narrowed(volume.read((z, y, x)), (z, y, x)).tobytes())
    return digest.hexdigest()[:16]


def part_of(tasks: Sequence[Any], part: tuple[int, int]) -> list[Any]:
    """The tasks of part I of N: every Nth of a fixed shuffled order, so that parts meet all regions alike."""
    order = np.random.default_rng(DEAL_SEED).permutation(len(tasks))
    number, count = part
    return [tasks[index] for index in order[number - 1 :: count]]


def mark_done(root: pathlib.Path, images: Iterable[Image], shard: Size, facts: dict[str, Any]) -> None:
    """Marks a shard as complete, with the checksums of its files as they are read back."""
    files = {str(path.relative_to(root)): _checksum(path) for path in (shard_file(root, one, shard) for one in images)}
    folder = root / FOLDER / "done"
    folder.mkdir(exist_ok=True)
    replace_file(folder / _name(shard), seal({"files": files, **facts}))


def read_mark(root: pathlib.Path, shard: Size) -> dict[str, Any] | None:
    """The facts of a finished shard; None where there is no mark, or a damaged one."""
    path = root / FOLDER / "done" / _name(shard)
    if not path.exists():
        return None
    try:
        return read_sealed(path)
    except DamagedFile:
        return None


def damage(root: pathlib.Path, shard: Size, mark: dict[str, Any]) -> str | None:
    """Which file of a marked shard does not hold what was written into it; None: all do."""
    for name, checksum in mark["files"].items():
        if _checksum(root / name) != checksum:
            return f"{root / name} is {'missing' if checksum and not (root / name).exists() else 'damaged'}"
    return None


def clear(root: pathlib.Path, images: Iterable[Image], shard: Size, *, mark: bool = True) -> None:
    """Removes what is there of a shard, its mark first."""
    if mark:
        (root / FOLDER / "done" / _name(shard)).unlink(missing_ok=True)
    for image in images:
        file = shard_file(root, image, shard)
        file.unlink(missing_ok=True)
        # What a killed process was writing.
        for left in file.parent.glob(f"{file.name}.__lock*") if file.parent.is_dir() else ():
            left.unlink(missing_ok=True)


def _checksum(path: pathlib.Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _name(shard: Sequence[int]) -> str:
    return f"{'.'.join(map(str, shard))}.json"

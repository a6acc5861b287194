"""`lsmfm plan`: sizes of generated objects are found, each rule does what it says, and the written recipe trains."""

import ast
import pathlib

import numpy as np
import pytest
from data_files import save_nifti
from tiny_runs import finish, start

from lsmfm_jax.cli import main
from lsmfm_jax.config import load_config
from lsmfm_jax.config.recipes import read_recipe
from lsmfm_jax.data.labelled_patches import LabelledPatch
from lsmfm_jax.data.labels import IGNORED
from lsmfm_jax.planning import decisions
from lsmfm_jax.planning.fingerprint import by_volume, fingerprint, measure_patch
from lsmfm_jax.planning.objects import measure_objects, typical
from lsmfm_jax.planning.plan import crops_with_foreground, disagreement, make_plan

SIDE = 64


def balls(diameter, centres, *, shape=(SIDE,) * 3, voxel=(1.0, 1.0, 1.0)):
    """A mask of balls, their diameter in the unit of `voxel`, their centres in voxels."""
    mask = np.zeros(shape, bool)
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    for centre in centres:
        distance = sum(((axis - at) * size) ** 2 for axis, at, size in zip(grid, centre, voxel, strict=True))
        mask |= distance <= (diameter / 2) ** 2
    return mask


def tubes(width, places, *, shape=(SIDE,) * 3):
    """A mask of straight tubes through the volume along Z, their middles at places Y, X."""
    _, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.any([(y - at) ** 2 + (x - to) ** 2 <= (width / 2) ** 2 for at, to in places], axis=0)


CORNERS = [(16, 16, 16), (16, 48, 48), (48, 16, 48), (48, 48, 16)]


def image_of(mask, *, background=1000, octaves=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.03, mask.shape)
    return (background * 2.0 ** (octaves * (mask == 1) + noise)).astype(np.uint16)


def patch_of(mask, *, name="a_patch_000_vol000", volume="a", voxel_size_um=None, source="header (um)", image=None):
    target = mask.astype(np.uint8)
    counts = image_of(target) if image is None else image
    return LabelledPatch(
        name,
        counts,
        0.0,
        1.0,
        target,
        volume=volume,
        counts=counts,
        voxel_size_um=voxel_size_um,
        voxel_size_source=source,
    )


def found_in(*patches):
    return fingerprint([measure_patch(patch) for patch in patches])


@pytest.mark.parametrize("diameter", [5.0, 12.0, 20.0])
def test_balls_have_their_diameter_and_are_no_tubes(diameter):
    objects = measure_objects(balls(diameter, CORNERS).astype(np.uint8))
    assert len(objects.voxels) == 4 and not objects.tube.any()
    assert typical(objects.diameter, objects.voxels) == pytest.approx(diameter, abs=0.7)
    assert typical(objects.width, objects.voxels) == pytest.approx(diameter, abs=1.0)


@pytest.mark.parametrize("width", [3.0, 5.0])
def test_tubes_have_their_width_and_a_network_is_one_too(width):
    mask = tubes(width, [(16, 16), (40, 40)])
    objects = measure_objects(mask.astype(np.uint8))
    assert objects.tube.all() and len(objects.voxels) == 2
    assert typical(objects.width, objects.voxels) == pytest.approx(width, abs=1.0)
    # A grid of tubes that cross: its axes are equally long.
    mask = tubes(width, [(16, 16), (16, 48), (48, 16), (48, 48)])
    cross = mask | np.moveaxis(mask, 0, 1) | np.moveaxis(mask, 0, 2)
    crossed = measure_objects(cross.astype(np.uint8))
    assert len(crossed.voxels) == 1 and crossed.tube.all()


def test_specks_do_not_decide():
    mask = balls(12.0, CORNERS)
    rng = np.random.default_rng(0)
    mask[tuple(rng.integers(0, SIDE, (3, 300)))] = True
    found = found_in(patch_of(mask))
    assert found.objects > 200
    assert found.size == pytest.approx(12.0, abs=1.0)


def test_voxels_that_are_no_cubes_count_in_micrometres():
    voxel = (6.0, 2.0, 2.0)
    mask = balls(30.0, CORNERS, voxel=voxel)
    found = found_in(patch_of(mask, voxel_size_um=voxel))
    assert found.um(found.diameter) == pytest.approx(30.0, rel=0.05)
    assert found.um(found.width) == pytest.approx(30.0, rel=0.1)
    # A tube along Z of three times the voxels is a ball there.
    assert not found.tubes
    first, second = decisions.decide_background(found, sigma_voxels=12.0, sigma_um=0.0)
    assert first.key == "data.background_sigma_um" and first.changed
    assert first.value == pytest.approx(60.0, rel=0.1)
    assert second.key == "data.background_sigma_voxels"
    assert second.value == pytest.approx(first.value / found.mean_voxel_um, rel=0.02)
    # A file that holds only the default of 1, 1, 1 has no voxel size to speak of.
    default = patch_of(mask, voxel_size_um=(1.0, 1.0, 1.0), source="header (unverified: 1, 1, 1 is the default)")
    assert found_in(default).mean_voxel_um is None
    assert found_in(default, patch_of(mask, voxel_size_um=voxel)).voxel_sizes_um is None


def test_single_annotated_slices_are_measured_within_them():
    mask = balls(15.0, CORNERS).astype(np.uint8)
    target = np.full_like(mask, IGNORED)
    for z in (16, 48):
        target[z] = mask[z]
    found = found_in(patch_of(target))
    assert found.annotated_frac == pytest.approx(2 / SIDE)
    assert found.objects == 4
    assert found.foreground_frac == pytest.approx(mask[[16, 48]].mean())
    assert found.diameter == pytest.approx(15.0, abs=1.0) and found.width == pytest.approx(15.0, abs=1.5)
    # The same along another axis.
    turned = found_in(patch_of(np.moveaxis(target, 0, 2)))
    assert (turned.objects, turned.diameter) == (found.objects, found.diameter)


def test_intensities_and_volumes():
    mask = balls(12.0, CORNERS)
    image = image_of(mask, background=500, octaves=2.0)
    image[:, :, :8] = 0
    image[0, 0, -5:] = np.iinfo(np.uint16).max
    measured = [measure_patch(patch_of(mask, image=image)), measure_patch(patch_of(balls(6.0, CORNERS), volume="b"))]
    first = by_volume(measured)[0]
    assert [one.name for one in by_volume(measured)] == ["a", "b"]
    assert first.background_counts == pytest.approx(500, rel=0.02)
    assert first.contrast_octaves == pytest.approx(2.0, abs=0.25)
    assert first.zero_frac == pytest.approx(8 / SIDE)
    assert first.saturated_frac == pytest.approx(5 / SIDE**3)
    assert fingerprint(measured).patches == 2


def test_a_patch_without_foreground_takes_part_without_objects():
    empty = patch_of(np.zeros((SIDE,) * 3, np.uint8))
    alone, both = found_in(empty), found_in(empty, patch_of(balls(12.0, CORNERS)))
    assert alone.objects == 0 and alone.size == 0.0
    assert decisions.decide_background(alone, sigma_voxels=12.0, sigma_um=0.0) == []
    assert both.size == pytest.approx(12.0, abs=1.0)
    assert both.contrast_octaves > 1.5


def test_the_background_stays_within_a_factor_of_two_and_else_is_twice_an_object():
    found = found_in(patch_of(balls(12.0, CORNERS)))
    assert found.size == pytest.approx(12.0, abs=1.0)

    def sigma(now):
        (one,) = decisions.decide_background(found, sigma_voxels=now, sigma_um=0.0)
        return one

    assert [sigma(now).changed for now in (6.0, 14.0, 24.0, 44.0, 60.0)] == [True, False, False, False, True]
    assert sigma(14.0).value == 14.0
    assert sigma(6.0).value == sigma(60.0).value == pytest.approx(24.0, abs=2.0)
    # Tiny objects do not take it down to the noise.
    tiny = found_in(patch_of(balls(2.0, CORNERS)))
    assert tiny.size < 3.0
    kept, lowered = (decisions.decide_background(tiny, sigma_voxels=now, sigma_um=0.0)[0] for now in (12.0, 40.0))
    assert not kept.changed and lowered.value == 6.0
    # No wider than half of a patch.
    wide = found_in(patch_of(balls(30.0, [(32, 32, 32)])))
    (one,) = decisions.decide_background(wide, sigma_voxels=12.0, sigma_um=0.0)
    assert one.value == SIDE / 2


@pytest.mark.parametrize(
    ("side", "have", "across", "divisor", "planned"),
    [
        (40, 100, 9.0, 8, 40),  # fits
        (40, 100, 20.0, 8, 40),  # two objects
        (40, 100, 22.0, 8, 80),  # four objects would be 88: at most twice the side
        (40, 64, 22.0, 8, 64),
        (96, 64, 5.0, 8, 64),
        (96, 61, 5.0, 8, 56),
        (40, 6, 3.0, 8, 8),
        (32, 20, 3.0, 32, 32),
        (10, 100, 6.0, 3, 21),
    ],
)
def test_a_crop_is_a_few_objects_wide_and_no_larger_than_a_patch(side, have, across, divisor, planned):
    assert decisions.crop_side(side, have=have, across=across, divisor=divisor) == planned


def test_crops_of_flat_voxels_are_longer_where_they_are_finer():
    voxel = (6.0, 2.0, 2.0)
    found = found_in(patch_of(balls(50.0, [(32, 32, 32)], voxel=voxel), voxel_size_um=voxel))
    crop = decisions.decide_patch_size(found, patch_size=(40, 40, 40), divisor=8)
    assert crop.value[0] == 40 and crop.value[1] == crop.value[2] > 40


def test_rare_foreground_is_drawn_more_often():
    assert not decisions.decide_foreground(0.9, foreground_frac=0.33).changed
    assert decisions.decide_foreground(0.4, foreground_frac=0.33).value == 0.33
    assert decisions.decide_foreground(0.0, foreground_frac=0.33).value == 0.5
    assert decisions.decide_foreground(0.1, foreground_frac=0.33).value == pytest.approx(0.45)
    assert decisions.decide_foreground(0.0, foreground_frac=0.8).value == 0.8
    # Two corners of eight have a ball that a crop of half a side can show.
    mask = balls(4.0, [(8, 8, 8)])
    share = crops_with_foreground([patch_of(mask)], (32, 32, 32))
    assert share == pytest.approx((10 / 33) ** 3, abs=0.05)


def test_soft_cl_dice_for_thin_tubes_that_are_annotated_throughout():
    thin, thick = tubes(3.0, [(16, 16), (40, 40)]), tubes(9.0, [(16, 16), (40, 40)])
    assert decisions.decide_loss(found_in(patch_of(thin)), cl_dice_frac=0.0).value == 0.25
    assert decisions.decide_loss(found_in(patch_of(thin)), cl_dice_frac=0.5).value == 0.5
    slices = np.where(np.arange(SIDE)[None, :, None] % 30 == 10, thin, IGNORED)
    for mask in (thick, slices, balls(5.0, CORNERS)):
        assert not decisions.decide_loss(found_in(patch_of(mask)), cl_dice_frac=0.0).changed


def test_the_local_scale_is_for_counts():
    mask = balls(12.0, CORNERS)
    assert decisions.decide_scale(found_in(patch_of(mask)), scale="percentile").value == "local"
    assert not decisions.decide_scale(found_in(patch_of(mask)), scale="local").changed
    scaled = patch_of(mask, image=(0.1 + 0.6 * mask).astype(np.float32))
    assert decisions.decide_scale(found_in(scaled), scale="local").value == "z_score"


def test_crops_batch_and_sides():
    assert [decisions.decide_crops(n, crops_per_patch=30).value for n in (1, 3, 4, 50)] == [120, 40, 30, 30]
    assert decisions.decide_batch((48, 48, 48), patch_size=(40, 40, 40), batch_size=2).value == 2
    assert decisions.decide_batch((80, 80, 80), patch_size=(40, 40, 40), batch_size=2).value == 1
    assert decisions.decide_batch((80, 80, 80), patch_size=(40, 40, 40), batch_size=32).value == 4
    drawn = {"validation_frac": 0.2, "split_by": "volume"}
    assert decisions.decide_sides(1, 1, **drawn).key == "data.validation_frac"
    assert decisions.decide_sides(4, 1, **drawn).value == "file"
    assert decisions.decide_sides(4, 2, **drawn) is None
    assert decisions.decide_sides(1, 1, validation_frac=0.0, split_by="volume") is None


def test_known_good_settings_stay_and_given_keys_are_left():
    config = load_config("segment_unet:cpu")
    patches = [patch_of(balls(7.0, CORNERS), volume=str(number)) for number in range(5)]
    assert not any(one.changed for one in make_plan(config, patches).decisions)
    large = [patch_of(balls(30.0, [(32, 32, 32)]), volume=str(number)) for number in range(5)]
    changed = {one.key: one.value for one in make_plan(config, large).decisions if one.changed}
    assert changed == {"data.background_sigma_voxels": 32.0, "data.patch_size": (64,) * 3, "train.batch_size": 1}
    given = ["data.background_sigma_um", "data.patch_size"]
    left = make_plan(config, large, given=given).decisions
    assert not {"data.background_sigma_voxels", "data.patch_size"} & {one.key for one in left}
    assert not any(one.changed for one in left)


def test_a_run_tells_where_objects_and_settings_disagree():
    config = load_config("segment_unet:cpu")
    config.data.folder = "annotated"
    assert disagreement(config, [patch_of(balls(7.0, CORNERS))]) is None
    assert disagreement(config, [patch_of(np.zeros((SIDE,) * 3, np.uint8))]) is None
    line = disagreement(config, [patch_of(balls(30.0, [(32, 32, 32)]))])
    assert "data.background_sigma_voxels 32 and data.patch_size (64, 64, 64)" in line
    assert "`lsmfm plan annotated`" in line and "\n" not in line
    config.data.scale = "percentile"
    assert "sigma" not in disagreement(config, [patch_of(balls(30.0, [(32, 32, 32)]))])


# The command.

TINY = ("model.unet.channels=(4, 8)", "model.unet.strides=(2,)", "model.out_channels=6", "model.unet.num_res_units=1")


def write(folder: pathlib.Path, masks) -> pathlib.Path:
    """Patches of volumes of their own, each a mask and its image; 3 in a label is not annotated."""
    for number, mask in enumerate(masks):
        name = f"cell_patch_{number:03d}_vol{number:03d}"
        save_nifti(folder / f"{name}.nii.gz", image_of(mask, seed=number))
        save_nifti(folder / f"{name}_label.nii.gz", mask.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Three volumes of large balls, one of them with values to be ignored."""
    masks = [balls(26.0, [(28, 28, 28)], shape=(56,) * 3).astype(np.uint8) for _ in range(3)]
    masks[0][:, 52:] = 3
    return write(tmp_path_factory.mktemp("data") / "annotated", masks)


@pytest.fixture(scope="module")
def planned(annotated, tmp_path_factory):
    """The recipe of a plan from a tiny one, and what the command printed."""
    out = tmp_path_factory.mktemp("planned") / "plan.py"
    sets = [f"--config.{one}" for one in ("data.ignore_labels=(3,)", *TINY)]
    said = finish(start("plan", annotated, "--recipe", "segment_unet:tiny", "--out", out, *sets))
    return out, said


def test_the_written_recipe_loads_from_any_folder_with_its_reasons(planned, annotated, tmp_path, monkeypatch):
    out, said = planned
    monkeypatch.chdir(tmp_path)
    config, base = load_config(str(out)), load_config("segment_unet:tiny")
    assert config.data.folder == str(annotated)
    assert config.data.ignore_labels == (3,) and config.model.unet.channels == (4, 8)
    assert config.data.background_sigma_voxels == 28.0 != base.data.background_sigma_voxels
    assert config.train.epochs == base.train.epochs
    monkeypatch.chdir(out.parent)
    assert load_config("./plan.py") == config == load_config("./plan.py:tiny")
    assert load_config("./plan.py:cpu").train.epochs == load_config("segment_unet:cpu").train.epochs
    assert load_config("./plan.py:cpu").data.ignore_labels == (3,)
    assert set(read_recipe("plan.py").variants) == {"scratch", "dice_ce", "vessels", "cpu", "tiny"}
    text = out.read_text()
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if "background_sigma_voxels = 28.0" in line)
    assert lines[at - 1].strip().startswith("# Objects are 2") and "voxels across" in lines[at - 1]
    assert max(map(len, lines[1:])) <= 120
    ast.parse(text)
    assert "foreground" in said and f"--config {out}" in said
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64") == 3
    for words in ("data.background_sigma_voxels", "28.0", "saturated", "vol002"):
        assert words in page
    assert "http" not in page and "src=" not in page.replace('src="data:', "")


def test_a_run_starts_from_the_written_recipe(planned, tmp_path):
    out, _ = planned
    keys = ("train.epochs=1", "train.pictures_every_epochs=0", "train.tensorboard=False", "augment.probability=0.0")
    short = [f"--config.{one}" for one in (*keys, "data.crops_per_patch=2", "data.patch_size=(16, 16, 16)")]
    said = finish(start("finetune", "--config", out, "--workdir", tmp_path / "run", *short))
    # Crops of another size than planned are told, and the planned background is not.
    (line,) = [one for one in said.splitlines() if "would fit better" in one]
    assert "data.patch_size" in line and "background" not in line
    assert (tmp_path / "run" / "best").is_dir()


def test_another_plan_replaces_only_what_no_person_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "small", [balls(8.0, [(10, 10, 10)], shape=(20,) * 3).astype(np.uint8)])
    command = ["plan", "small", "--config.data.ignore_labels=(3,)"]
    assert main(command) == 0 and main(command) == 0
    plan = tmp_path / "plan.py"
    written = plan.read_text()
    plan.write_text(written.replace("    return config", "    config.seed = 3\n    return config"))
    capsys.readouterr()
    assert main(command) == 2
    assert "plan.py: it was changed since `lsmfm plan` wrote it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert plan.read_text() == written
    for name in ("own.py", "other.html"):
        (tmp_path / name).write_text("mine")
        assert main([*command, "--out", name.replace(".html", ".py")]) == 2
        assert f"{name}: a file that `lsmfm plan` did not write is there" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "other.py").exists()
    # A plan can start from a plan, whose folder of patches is not its own.
    assert main(["plan", "small", "--recipe", "./plan.py", "--out", "further/again.py"]) == 0
    assert load_config("further/again.py").data.ignore_labels == (3,)


def test_what_cannot_be_planned_is_one_line(annotated, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = write(tmp_path / "empty", [np.zeros((16, 16, 16), np.uint8)] * 2)
    bare = tmp_path / "bare"
    bare.mkdir()
    refused = {
        "nosuch is not a folder": [tmp_path / "nosuch"],
        "no patches in": [bare],
        "masks of all training patches are empty": [empty],
        "--recipe: classify_unet:tiny is of task 'classify'": [annotated, "--recipe", "classify_unet:tiny"],
        "segment_unit is neither a recipe nor a file": [annotated, "--recipe", "segment_unit"],
        "must end in .py": [annotated, "--out", "plan.txt"],
        "data.ignore_label: no such key": [annotated, "--config.data.ignore_label=(3,)"],
        "would call itself": [annotated, "--recipe", "./own.py", "--out", "own.py"],
    }
    (tmp_path / "own.py").write_text("from lsmfm_jax.config import defaults\ndef get_config(variant=''):\n")
    with (tmp_path / "own.py").open("a") as file:
        file.write("    return defaults('segment')\n")
    for words, arguments in refused.items():
        capsys.readouterr()
        assert main(["plan", *map(str, arguments)]) == 2, words
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lsmfm: ")]
        assert words in line
    assert not list(tmp_path.glob("plan.*"))


def test_one_patch_and_one_volume_get_sides_that_a_run_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mask = balls(8.0, [(12, 12, 12)], shape=(24,) * 3).astype(np.uint8)
    one = write(tmp_path / "one", [mask])
    assert main(["plan", str(one), "--out", "one.py"]) == 0
    config = load_config("one.py")
    assert config.data.validation_frac == 0.0 and config.data.crops_per_patch == 120
    assert config.data.patch_size == (24, 24, 24)
    for number in range(3):
        save_nifti(tmp_path / "same" / f"a_patch_{number}_vol1.nii.gz", image_of(mask, seed=number))
        save_nifti(tmp_path / "same" / f"a_patch_{number}_vol1_label.nii.gz", mask)
    assert main(["plan", str(tmp_path / "same"), "--out", "same.py"]) == 0
    assert load_config("same.py").data.split_by == "file"

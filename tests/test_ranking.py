"""Ranking kits and their scores: seeded, blinded, balanced; figures by hand; what is refused."""

import base64
import csv
import json
import math
import pathlib
import zlib

import nibabel
import numpy as np
import pytest
from data_files import noise, save_nifti
from scipy import stats

from lsmfm_jax.cli import main
from lsmfm_jax.files import seal
from lsmfm_jax.metrics.agreement import kendalls_w
from lsmfm_jax.ranking.cases import balanced_orders, draw_cases, find_samples, parse_methods
from lsmfm_jax.ranking.kit import PAGE_FILES, shown_bytes
from lsmfm_jax.ranking.report import scores_page
from lsmfm_jax.ranking.results import ExpertRanking, check_number, read_key, read_results
from lsmfm_jax.ranking.score import ALL, score

METHODS = ("grandmaster", "apprentice", "doorkeeper")
SHAPE = (3, 6, 5)


def write_study(
    root: pathlib.Path, *, volumes: int = 3, patches: int = 4, methods: tuple[str, ...] = METHODS
) -> list[str]:
    """Images and masks of each method; the arguments of `ranking make` that name them."""
    for volume in range(1, volumes + 1):
        for patch in range(patches):
            name = f"patchvolume_{volume}_{patch}"
            save_nifti(root / "images" / f"{name}.nii.gz", noise(10 * volume + patch, shape=SHAPE))
            for number, method in enumerate(methods):
                mask = (noise(1000 * number + 10 * volume + patch, shape=SHAPE) > 100).astype(np.uint8)
                save_nifti(root / f"of_{method}" / f"{name}_mask.nii.gz", mask)
    named = [word for method in methods for word in ("--method", f"{method}={root / f'of_{method}'}")]
    return ["--images", str(root / "images"), *named]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    arguments = write_study(root)
    assert main(["ranking", "make", *arguments, "--out", str(root / "kit"), "--cases", "9", "--seed", "3"]) == 0
    return root


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def voxels_of(kit: pathlib.Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and masks as the page gets them."""
    text = (kit / "data" / f"{case}.js").read_text()
    body = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return tuple(
        np.frombuffer(zlib.decompress(base64.b64decode(body[part])), np.uint8).reshape(body["shape"])
        for part in ("image", "masks")
    )


def save_results(
    path: pathlib.Path, key_path: pathlib.Path, expert: str, best_first: dict[str, list[str]], /, **changes
):
    """A file as the page saves it, of methods by case; `changes` replace what is in it afterwards."""
    key = read_key(key_path)
    rankings = {}
    for case in key.cases:
        letters = {method: letter for letter, method in case.methods.items()}
        if case.name in best_first:
            rankings[case.name] = [letters[method] for method in best_first[case.name]]
    body = {"what": "ranking results", "version": 1, "kit": key.kit, "expert": expert, "rankings": rankings}
    body["check"] = check_number(key, expert, rankings)
    path.write_text(json.dumps(body | changes))
    return str(path)


def test_the_same_seed_gives_the_same_kit_and_another_seed_another(study, tmp_path):
    arguments = ["ranking", "make", *write_study(tmp_path), "--cases", "9"]
    for name, seed in (("same", "3"), ("other", "4")):
        assert main([*arguments, "--seed", seed, "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "same") == contents(study / "kit")
    ours, other = (json.loads((root / "kit.key.json").read_text()) for root in (study, study))
    assert ours == other
    assert contents(tmp_path / "other").keys() == contents(study / "kit").keys()
    assert read_key(tmp_path / "other.key.json").kit != read_key(study / "kit.key.json").kit


def test_the_kit_names_no_method_no_image_and_no_folder(study):
    said = {path: data.lower() for path, data in contents(study / "kit").items()}
    assert {"index.html", "kit.js", "ranking.js", "ranking.css", "data/case_001.js"} <= said.keys()
    for word in (*METHODS, "patchvolume", "of_", str(study).lower()):
        found = [path for path, data in said.items() if word.encode() in data and not path.startswith("data/")]
        assert not found, word
        # In the base64 of voxels a word of three letters may stand by chance.
        assert not [path for path, data in said.items() if len(word) > 3 and word.encode() in data], word
    assert "kit.key.json" not in said and (study / "kit.key.json").is_file()


def test_the_page_asks_for_nothing_from_a_network(study):
    for name in (*PAGE_FILES, "kit.js"):
        text = (study / "kit" / name).read_text()
        assert "http:" not in text and "https:" not in text and "fetch(" not in text and "import(" not in text


def test_each_letter_shows_the_mask_that_the_key_says(study):
    key = read_key(study / "kit.key.json")
    assert len(key.cases) == 9 and key.methods == METHODS
    for case in key.cases:
        image, masks = voxels_of(study / "kit", case.name)
        counts = nibabel.load(study / "images" / f"{case.image}.nii.gz").get_fdata().T
        assert image.shape == SHAPE and np.corrcoef(image.ravel(), counts.ravel())[0, 1] > 0.9
        for bit, (letter, method) in enumerate(sorted(case.methods.items())):
            truth = nibabel.load(study / f"of_{method}" / f"{case.image}_mask.nii.gz").get_fdata().T
            assert np.array_equal((masks >> bit) & 1, truth), (case.name, letter)


def test_volumes_and_letters_are_balanced(study):
    key = read_key(study / "kit.key.json")
    assert sorted(case.volume for case in key.cases) == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert len({case.image for case in key.cases}) == 9
    for letter in "ABC":
        shown = [case.methods[letter] for case in key.cases]
        assert {method: shown.count(method) for method in METHODS} == dict.fromkeys(METHODS, 3)
    assert len({tuple(case.methods.values()) for case in key.cases}) > 3


def test_where_a_volume_is_used_up_others_give_more(tmp_path):
    write_study(tmp_path, volumes=2, patches=5)
    for path in sorted(tmp_path.rglob("patchvolume_1_[1-4]*")):
        path.unlink()
    samples, unused = find_samples(tmp_path / "images", {name: tmp_path / f"of_{name}" for name in METHODS})
    assert not unused
    drawn = draw_cases(samples, count=4, seed=0)
    assert sorted(case.sample.volume for case in drawn) == ["1", "2", "2", "2"]
    assert [case.name for case in drawn] == ["case_001", "case_002", "case_003", "case_004"]
    assert len(draw_cases(samples, count=60, seed=0)) == 6
    firsts = {draw_cases(samples, count=4, seed=seed)[0].sample.name for seed in range(30)}
    assert len(firsts) == 6


@pytest.mark.parametrize("methods", [2, 3, 5])
def test_orders_put_each_method_at_each_place_equally_often(methods):
    names = [f"m{k}" for k in range(methods)]
    orders = balanced_orders(names, 4 * methods + 1, np.random.default_rng(0))
    assert len(orders) == 4 * methods + 1
    for place in range(methods):
        counts = [[order[place] for order in orders].count(name) for name in names]
        assert max(counts) - min(counts) <= 1


def test_bytes_are_finer_where_it_is_dark():
    counts = np.arange(8000, dtype=np.uint16).reshape(20, 20, 20)
    shown = shown_bytes(counts)
    assert shown.dtype == np.uint8 and shown.min() == 0 and shown.max() == 255
    assert (np.diff(shown.ravel().astype(int)) >= 0).all()
    assert 60 <= shown.ravel()[500] <= 66  # a sixteenth of the range takes a quarter of the steps
    spot = np.zeros((10, 20, 20), np.uint16)
    spot[5, 5, 5] = 900
    assert shown_bytes(spot).max() == 255


def test_masks_may_be_labels_probabilities_or_of_another_format(tmp_path):
    save_nifti(tmp_path / "i" / "a.nii.gz", noise(0, shape=SHAPE))
    labels = noise(1, shape=SHAPE) % 3
    save_nifti(tmp_path / "l" / "a_label.nii.gz", labels)
    (tmp_path / "p").mkdir()
    np.save(tmp_path / "p" / "a.npy", noise(2, shape=SHAPE).astype(np.float32) / 200)
    command = ["ranking", "make", "--images", tmp_path / "i", "--method", f"x={tmp_path / 'l'}"]
    command += ["--method", f"y={tmp_path / 'p'}", "--out", tmp_path / "kit"]
    assert main([str(word) for word in command]) == 0
    (case,) = read_key(tmp_path / "kit.key.json").cases
    _, masks = voxels_of(tmp_path / "kit", case.name)
    bits = {method: (masks >> bit) & 1 for bit, (_, method) in enumerate(sorted(case.methods.items()))}
    assert np.array_equal(bits["x"], labels > 0)
    assert np.array_equal(bits["y"], noise(2, shape=SHAPE) >= 100)


# ---------------------------------------------------------------- scores


def orders_of(key, best: str, middle: str, worst: str) -> dict[str, list[str]]:
    return {case.name: [best, middle, worst] for case in key.cases}


def test_figures_are_those_computed_by_hand(study, tmp_path):
    key = read_key(study / "kit.key.json")
    a, b, c = METHODS
    first = orders_of(key, a, b, c)
    second = orders_of(key, a, b, c)
    for case in key.cases[:3]:
        second[case.name] = [b, a, c]
    second[key.cases[3].name] = [c, b, a]
    files = [
        save_results(tmp_path / "1.json", study / "kit.key.json", "AB", first),
        save_results(tmp_path / "2.json", study / "kit.key.json", "Ödön", second),
    ]
    command = ["ranking", "score", *files, "--key", str(study / "kit.key.json"), "--out", str(tmp_path / "scores")]
    assert main(command) == 0
    assert main(command) == 0  # its own folder may be written again
    with (tmp_path / "scores" / "summary.csv").open(encoding="utf-8") as file:
        rows = {(row["expert"], row["method"]): row for row in csv.DictReader(file)}
    # Ödön: a is best in 5 cases, middle in 3, worst in 1; b best in 3, middle in 6; c best in 1, worst in 8.
    expected = {
        ("AB", a): (9, 0, 0, 18),
        ("AB", c): (0, 0, 9, 0),
        ("Ödön", a): (5, 3, 1, 13),
        ("Ödön", b): (3, 6, 0, 12),
        ("Ödön", c): (1, 0, 8, 2),
        (ALL, a): (14, 3, 1, 31),
        (ALL, b): (3, 15, 0, 21),
        (ALL, c): (1, 0, 17, 2),
    }
    for who, numbers in expected.items():
        assert tuple(int(rows[who][name]) for name in ("best", "middle", "worst", "points")) == numbers, who
    assert float(rows[ALL, a]["mean_points"]) == pytest.approx(31 / 18, abs=1e-5)
    assert float(rows[ALL, a]["low_cases"]) < 31 / 18 < float(rows[ALL, a]["high_cases"])
    with (tmp_path / "scores" / "points.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 9 * 3 and sum(int(row["points"]) for row in table) == 2 * 9 * 3
    of = {case.name: case for case in key.cases}
    assert all(of[row["case"]].methods[row["letter"]] == row["method"] for row in table)
    page = (tmp_path / "scores" / "ranking.html").read_text()
    assert "Ödön" in page and "1.72 [" in page and "<img" in page


def test_agreement_by_case_is_that_of_hand(study):
    key = read_key(study / "kit.key.json")
    a, b, c = METHODS
    experts = [rankings(key, "x", (a, b, c)), rankings(key, "y", (a, b, c)), rankings(key, "z", (b, a, c))]
    found = score(key, experts)
    # Rank sums 4, 5, 9 of three experts: 12 · 14 / (9 · 24).
    assert found.agreement.mean == pytest.approx(168 / 216)
    assert found.agreement.chance == pytest.approx(1 / 3)
    assert score(key, experts[:2]).agreement.mean == pytest.approx(1.0)
    (difference,) = [one for one in found.differences if (one.first, one.second) == (a, c)]
    assert difference.over_cases.value == pytest.approx(5 / 3)


def rankings(key, expert: str, order: tuple[str, ...], *, finished: int | None = None) -> ExpertRanking:
    names = [case.name for case in key.cases]
    done = names[:finished]
    return ExpertRanking(expert, pathlib.Path(f"{expert}.json"), dict.fromkeys(done, order), tuple(names[len(done) :]))


def test_kendalls_w_is_that_of_friedmans_test():
    random = np.random.default_rng(0)
    for judges, things in ((3, 4), (6, 3), (10, 7)):
        ranks = random.random((judges, things))
        chi2 = stats.friedmanchisquare(*ranks.T).statistic
        assert kendalls_w(ranks) == pytest.approx(chi2 / (judges * (things - 1)))
    ties = random.integers(0, 3, (6, 5))
    chi2 = stats.friedmanchisquare(*ties.T).statistic
    assert kendalls_w(ties) == pytest.approx(chi2 / (6 * 4))
    assert kendalls_w(np.array([[1, 2, 3], [3, 2, 1]])) == 0.0
    assert kendalls_w(np.array([[1, 2, 3]] * 4)) == 1.0
    assert math.isnan(kendalls_w(np.array([[1, 2, 3]]))) and math.isnan(kendalls_w(np.ones((3, 3))))


def test_unfinished_cases_are_named_and_left_out(study, tmp_path, capsys):
    key = read_key(study / "kit.key.json")
    whole = orders_of(key, *METHODS)
    part = dict(whole)
    part[key.cases[1].name] = [METHODS[2]]  # begun
    del part[key.cases[4].name]
    files = [
        save_results(tmp_path / "whole.json", study / "kit.key.json", "AB", whole),
        save_results(tmp_path / "part.json", study / "kit.key.json", "CD", part),
    ]
    capsys.readouterr()
    out = tmp_path / "scores"
    assert main(["ranking", "score", *files, "--key", str(study / "kit.key.json"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "CD did not finish 2 of 9 cases; they are left out: case_002, case_005" in said
    with (out / "summary.csv").open() as file:
        cases = {row["expert"]: row["cases"] for row in csv.DictReader(file)}
    assert cases == {"AB": "9", "CD": "7", ALL: "7"}


def test_one_expert_and_few_cases_have_figures_without_limits(study):
    key = read_key(study / "kit.key.json")
    found = score(key, [rankings(key, "x", METHODS, finished=2)])
    assert math.isnan(found.agreement.mean) and math.isnan(found.methods[0].over_cases.low)
    assert [one.over_cases.value for one in found.methods if one.expert == ALL] == [2.0, 1.0, 0.0]
    assert any("one expert" in note for note in found.notes)
    assert "one expert" in scores_page(found)


def test_two_and_five_methods_can_be_ranked(tmp_path):
    for count in (2, 5):
        methods = tuple(f"method{k}" for k in range(count))
        root = tmp_path / str(count)
        assert main(["ranking", "make", *write_study(root, methods=methods), "--out", str(root / "kit")]) == 0
        key = read_key(root / "kit.key.json")
        assert len(key.cases) == 12
        (ranking,) = read_results(
            [save_results(root / "r.json", root / "kit.key.json", "x", {c.name: list(methods) for c in key.cases})], key
        )
        found = score(key, [ranking])
        assert [one.over_cases.value for one in found.methods if one.expert == ALL] == [*range(count)][::-1]
        assert "place 2" in scores_page(found) if count > 3 else "worst" in scores_page(found)


# ---------------------------------------------------------------- what is refused


def refused(arguments: list[object], capsys) -> str:
    capsys.readouterr()
    assert main(["ranking", *map(str, arguments)]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lsmfm: ")]
    return line


def test_what_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path, capsys):
    arguments = write_study(tmp_path, volumes=1, patches=2)
    images, methods, out = arguments[:2], arguments[2:], ["--out", tmp_path / "kit"]
    (tmp_path / "bare").mkdir()
    assert "no is not a folder" in refused(
        ["make", *images, *methods[:2], "--method", f"x={tmp_path / 'no'}", *out], capsys
    )
    assert "no is not a folder" not in refused(["make", "--images", tmp_path / "no", *methods, *out], capsys)
    assert "--images" in refused(["make", "--images", tmp_path / "bare", *methods, *out], capsys)
    assert "1 given; from two up to 8" in refused(["make", *images, *methods[:2], *out], capsys)
    assert "a name and a folder are needed" in refused(["make", *images, "--method", "x", *out], capsys)
    assert "two folders have this name" in refused(["make", *images, *methods, *methods[:2], *out], capsys)
    assert "--cases 0" in refused(["make", *arguments, *out, "--cases", "0"], capsys)
    assert "--threshold nan" in refused(["make", *arguments, *out, "--threshold", "nan"], capsys)
    lost = tmp_path / "of_apprentice" / "patchvolume_1_1_mask.nii.gz"
    kept = lost.read_bytes()
    lost.unlink()
    line = refused(["make", *arguments, *out], capsys)
    assert "of_apprentice has no mask of patchvolume_1_1.nii.gz" in line and "--pattern" in line
    save_nifti(lost, noise(0, shape=(3, 6, 6)))
    assert "has the shape (3, 6, 6), its image" in refused(["make", *arguments, *out], capsys)
    lost.write_bytes(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["bare", "images", *(f"of_{m}" for m in METHODS)])
    assert main(["ranking", "make", *map(str, [*arguments, *out])]) == 0
    before = contents(tmp_path)
    assert "is there already, and no kit is replaced" in refused(["make", *arguments, *out], capsys)
    (tmp_path / "else.key.json").write_text("{}")
    assert "is there already" in refused(["make", *arguments, "--out", tmp_path / "else"], capsys)
    (tmp_path / "else.key.json").unlink()
    assert contents(tmp_path) == before


def test_results_that_do_not_fit_are_one_line(study, tmp_path, capsys):
    key_path = study / "kit.key.json"
    key = read_key(key_path)
    whole = orders_of(key, *METHODS)
    good = save_results(tmp_path / "good.json", key_path, "AB", whole)
    letters = json.loads(pathlib.Path(good).read_text())["rankings"]
    swapped = {case: order[::-1] if case == "case_002" else order for case, order in letters.items()}

    def line(*files: object) -> str:
        return refused(["score", *files, "--key", key_path, "--out", tmp_path / "scores"], capsys)

    def changed(**changes) -> str:
        return line(save_results(tmp_path / "bad.json", key_path, "CD", whole, **changes))

    for words, said in {
        "results of another kit ('0123')": changed(kit="0123"),
        "it ranks the unknown case 'case_099'": changed(rankings=letters | {"case_099": ["A", "B", "C"]}),
        "case_001 ranks A 2 times": changed(rankings=letters | {"case_001": ["A", "A", "B"]}),
        "case_001 ranks the unknown picture 'D', and has A, B, C": changed(rankings=letters | {"case_001": ["D"]}),
        "case_001 has no list of letters but 'ABC'": changed(rankings=letters | {"case_001": "ABC"}),
        "it was changed after it was saved": changed(rankings=swapped),
        "it names no expert or has no rankings": changed(expert=" "),
        "it holds no results of a ranking": changed(what="a letter"),
    }.items():
        assert words in said and "bad.json" in said, said
        assert "again from the page" in said or "leave the file out" in said or "name a file" in said, said
    again = save_results(tmp_path / "again.json", key_path, "AB", whole)
    assert "the expert 'AB' is in" in line(good, again)
    (tmp_path / "torn.json").write_text(pathlib.Path(good).read_text()[:50])
    assert "torn.json" in line(tmp_path / "torn.json") and "it is missing" in line(tmp_path / "nowhere.json")
    nothing = save_results(tmp_path / "none.json", key_path, "CD", {})
    assert "no case was finished by all 2 experts" in line(good, nothing)
    assert "it holds results of an expert" in refused(["score", good, "--key", good, "--out", tmp_path / "s"], capsys)
    body = json.loads(key_path.read_text())
    body["cases"][0]["letters"] = dict(zip("ABC", METHODS[::-1], strict=True))
    (tmp_path / "edited.key.json").write_text(json.dumps(body))
    edited = refused(["score", good, "--key", tmp_path / "edited.key.json", "--out", tmp_path / "s"], capsys)
    assert "its checksum does not match" in edited
    body = {name: value for name, value in body.items() if name != "sha256"} | {"version": 2}
    (tmp_path / "newer.key.json").write_bytes(seal(body))
    newer = refused(["score", good, "--key", tmp_path / "newer.key.json", "--out", tmp_path / "s"], capsys)
    assert "it is of version 2" in newer
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    foreign = refused(["score", good, "--key", key_path, "--out", tmp_path / "mine"], capsys)
    assert "did not write is there already" in foreign
    assert not (tmp_path / "scores").exists() and not (tmp_path / "s").exists()


def test_methods_are_named_on_the_command_line():
    assert parse_methods(["a=x", "b c=y=z"]) == {"a": pathlib.Path("x"), "b c": pathlib.Path("y=z")}

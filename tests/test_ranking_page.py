"""The page that experts rank on, from end to end in a browser: from disk, by keyboard, and what comes of it."""

import csv
import json
import pathlib
import shutil
import time

import numpy as np
import pytest
from browser import Browser, need_browser
from data_files import save_nifti

from lsmfm_jax.cli import main
from lsmfm_jax.ranking.results import read_key

METHODS = ("grandmaster", "apprentice", "doorkeeper")
SHAPE = (9, 20, 30)
CASES = 4


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """Bright above, dark below; each method marks a square at a place of its own, in slices 3 to 5."""
    need_browser()
    root = tmp_path_factory.mktemp("page")
    for number in range(CASES):
        image = np.full(SHAPE, 100, np.uint16)
        image[:, :10] = 1000
        image[4, 0, 0] = 150 + number
        save_nifti(root / "images" / f"patchvolume_{number}_0.nii.gz", image)
        for place, method in enumerate(METHODS):
            mask = np.zeros(SHAPE, np.uint8)
            mask[3:6, 12:18, 2 + 10 * place : 8 + 10 * place] = 1
            save_nifti(root / method / f"patchvolume_{number}_0_mask.nii.gz", mask)
    methods = [word for method in METHODS for word in ("--method", f"{method}={root / method}")]
    assert main(["ranking", "make", "--images", str(root / "images"), *methods, "--out", str(root / "kit")]) == 0
    return root / "kit"


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile", tmp_path / "downloads") as one:
        yield one


def start(browser: Browser, kit: pathlib.Path, name: str, *, case: str = "case_001") -> None:
    browser.open((kit / "index.html").as_uri())
    browser.wait("!document.getElementById('start').hidden")
    browser.run("document.getElementById('name').value = ''")
    browser.press(*name, "Enter")
    shown(browser, case)


def shown(browser: Browser, case: str) -> None:
    browser.wait(f"document.body.dataset.shown === '{case}'")


def text(browser: Browser, selector: str) -> str:
    return browser.run("return document.querySelector(arguments[0]).textContent", selector)


def ranks(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.rank')].map((one) => one.textContent)")


def colour(browser: Browser, panel: int, y: float, x: float) -> list[int]:
    """Red, green and blue of a place of a picture, in voxels."""
    script = """const canvas = document.querySelectorAll('.panel canvas')[arguments[0]];
        const at = [arguments[2] / 30 * canvas.width, arguments[1] / 20 * canvas.height].map(Math.floor);
        return [...canvas.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3);"""
    return browser.run(script, panel, y, x)


def saved(browser: Browser, folder: pathlib.Path) -> pathlib.Path:
    browser.click("#save")
    browser.wait("document.getElementById('prompt').textContent.startsWith('Saved as')")
    for _ in range(200):
        found = [path for path in folder.glob("*.json") if path.stat().st_size]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"nothing was saved; {sorted(folder.iterdir())}")


@pytest.mark.slow
def test_an_expert_ranks_by_keyboard_and_the_results_are_scored(kit, browser, tmp_path):
    key = read_key(kit.with_name("kit.key.json"))
    best = {case.name: next(k for k in range(3) if case.methods["ABC"[k]] == "grandmaster") for case in key.cases}
    last = {case.name: next(k for k in range(3) if case.methods["ABC"[k]] == "doorkeeper") for case in key.cases}
    start(browser, kit, "M. Q.")
    for number, case in enumerate(key.cases):
        shown(browser, case.name)
        assert text(browser, "#title") == f"Case {number + 1} of {CASES}"
        middle = 3 - best[case.name] - last[case.name]
        browser.press(str(best[case.name] + 1), str(middle + 1))
        assert [ranks(browser)[k] for k in (best[case.name], middle, last[case.name])] == ["best", "middle", "worst"]
        browser.press("Enter")
    assert text(browser, "#count") == f"{CASES} of {CASES} ranked"
    assert "All cases are ranked" in text(browser, "#prompt")
    file = saved(browser, tmp_path / "downloads")
    assert file.name == f"ranking_M_Q_{key.kit}.json"
    assert browser.messages() == []
    out = tmp_path / "scores"
    assert main(["ranking", "score", str(file), "--key", str(kit.with_name("kit.key.json")), "--out", str(out)]) == 0
    with (out / "summary.csv").open() as table:
        places = {
            row["method"]: (row["best"], row["middle"], row["worst"])
            for row in csv.DictReader(table)
            if row["expert"] == "M. Q."
        }
    assert places == {"grandmaster": ("4", "0", "0"), "apprentice": ("0", "4", "0"), "doorkeeper": ("0", "0", "4")}


@pytest.mark.slow
def test_pictures_show_the_image_the_contrast_and_the_mask_of_their_letter(kit, browser):
    key = read_key(kit.with_name("kit.key.json"))
    start(browser, kit, "x")
    assert text(browser, "#place") == "5 of 9"
    for panel, letter in enumerate("ABC"):
        assert min(colour(browser, panel, 5.5, 15.5)) > 240 and max(colour(browser, panel, 11.2, 29.5)) < 15
        place = METHODS.index(key.cases[0].methods[letter])
        for other in range(3):
            red, _, blue = colour(browser, panel, 12, 4.5 + 10 * other)
            assert (red - blue > 60) == (other == place), (letter, other)
    browser.press("ArrowDown", "ArrowDown")
    assert text(browser, "#place") == "7 of 9"
    red, _, blue = colour(browser, 0, 12, 4.5 + 10 * METHODS.index(key.cases[0].methods["A"]))
    assert red == blue  # the masks end before this slice
    browser.press("ArrowUp", "ArrowUp", "o")
    red, _, blue = colour(browser, 0, 12, 4.5 + 10 * METHODS.index(key.cases[0].methods["A"]))
    assert red == blue and not browser.run("return document.getElementById('overlay').checked")
    browser.press("End")
    assert text(browser, "#place") == "9 of 9"
    browser.turn_wheel("#panels", -300)
    assert text(browser, "#place") == "6 of 9"
    browser.run("const one = document.getElementById('black'); one.value = 100; one.dispatchEvent(new Event('input'));")
    assert max(colour(browser, 0, 5.5, 15.5)) < 240
    browser.press("r")
    assert min(colour(browser, 0, 5.5, 15.5)) > 240
    browser.press("n")
    shown(browser, "case_002")
    assert browser.run("return document.getElementById('overlay').checked")


@pytest.mark.slow
def test_pictures_are_enlarged_and_moved_together(kit, browser):
    start(browser, kit, "x")
    bright, dark = (4, 15), (16, 15)
    assert min(colour(browser, 1, *bright)) > 240 and max(colour(browser, 1, *dark)) < 60
    browser.press(*"+++")
    assert min(colour(browser, 1, *bright)) > 240
    for _ in range(2):
        browser.drag(".panel:nth-child(1) .picture", -150, 0)  # what is below comes up
    assert ranks(browser) == ["", "", ""], "dragging is no choice"
    for panel in range(3):
        assert max(colour(browser, panel, 1, 1)) < 15
    browser.press("0")
    assert min(colour(browser, 1, *bright)) > 240 and max(colour(browser, 1, *dark)) < 60
    browser.click(".panel:nth-child(2) .picture")
    assert ranks(browser) == ["", "best", ""]


@pytest.mark.slow
def test_ties_are_refused_and_undo_takes_ranks_back(kit, browser):
    start(browser, kit, "x")
    browser.press("2", "2")
    assert ranks(browser) == ["", "best", ""]
    assert "B has its rank already, and two pictures cannot share one" in text(browser, "#prompt")
    browser.press("Enter")
    assert "This case is not ranked yet" in text(browser, "#prompt") and text(browser, "#title") == "Case 1 of 4"
    browser.press("1")
    assert ranks(browser) == ["middle", "best", "worst"]
    browser.press("3")
    assert "This case is ranked. Press Backspace" in text(browser, "#prompt")
    browser.press("Backspace")
    assert ranks(browser) == ["", "best", ""]
    browser.press("Backspace", "Backspace")
    assert ranks(browser) == ["", "", ""]
    browser.press("4", "9", "0")
    assert ranks(browser) == ["", "", ""]
    browser.click(".panel:nth-child(3) .picture")
    browser.click(".panel:nth-child(1) .choose")
    assert ranks(browser) == ["middle", "worst", "best"]
    browser.press("Enter")  # of the button that was clicked last nothing is left
    shown(browser, "case_002")
    browser.press("p")
    shown(browser, "case_001")
    assert ranks(browser) == ["middle", "worst", "best"]


@pytest.mark.slow
def test_closing_the_browser_loses_nothing(kit, tmp_path):
    profile, downloads = tmp_path / "profile", tmp_path / "downloads"
    with Browser(profile, downloads) as browser:
        start(browser, kit, "anna")
        browser.press("3", "1", "Enter")
        shown(browser, "case_002")
        browser.press("2")
        start(browser, kit, "ben")
        assert text(browser, "#count") == "0 of 4 ranked"
        browser.press("1")
    with Browser(profile, downloads) as browser:
        browser.open((kit / "index.html").as_uri())
        browser.wait("!document.getElementById('start').hidden")
        buttons = browser.run("return [...document.querySelectorAll('#known button')].map((one) => one.textContent)")
        assert buttons == ["Continue as anna (1 of 4)", "Continue as ben (0 of 4)"]
        browser.click("#known button")
        shown(browser, "case_002")
        assert ranks(browser) == ["", "best", ""] and text(browser, "#expert") == "anna"
        file = saved(browser, downloads)
        assert "3 cases are not ranked yet" in text(browser, "#prompt")
    body = json.loads(file.read_text())
    assert body["rankings"] == {"case_001": ["C", "A", "B"], "case_002": ["B"]} and body["finished"] == 1


@pytest.mark.slow
def test_two_tabs_of_one_expert_are_told_of(kit, browser):
    start(browser, kit, "x")
    (first,) = browser.tabs()
    browser.open_tab((kit / "index.html").as_uri())
    browser.press("Enter")  # the name of last time stands there
    shown(browser, "case_001")
    browser.press("2")
    browser.go_to_tab(first)
    browser.wait("!document.getElementById('fault').hidden")
    assert "x ranks this kit in another tab as well" in text(browser, "#fault")


@pytest.mark.slow
def test_a_kit_that_lost_a_file_says_so(kit, browser, tmp_path):
    shutil.copytree(kit, tmp_path / "copy")
    (tmp_path / "copy" / "data" / "case_001.js").unlink()
    browser.open((tmp_path / "copy" / "index.html").as_uri())
    browser.press("x", "Enter")
    browser.wait("!document.getElementById('fault').hidden")
    assert "Case 1 cannot be shown: data/case_001.js is missing" in text(browser, "#fault")
    (tmp_path / "copy" / "kit.js").unlink()
    browser.open((tmp_path / "copy" / "index.html").as_uri())
    browser.wait("!document.getElementById('fault').hidden")
    assert "kit.js is missing" in text(browser, "#fault")

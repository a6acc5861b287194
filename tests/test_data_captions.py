"""Caption files in their three forms, merged, and refused where they cannot be trusted."""

import json
import pathlib
import time

import pytest

from lsmfm_jax.store.captions import CaptionError, load_captions, normalise_key, require_captions


def _write(path: pathlib.Path, content: object) -> pathlib.Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_three_forms_merge_into_paraphrases(tmp_path: pathlib.Path) -> None:
    one = _write(tmp_path / "1.json", {"cFos": "Nuclei  of\nneurons.", "AB plaque": ["A", "B", "A"]})
    two = _write(
        tmp_path / "2.json",
        {
            "ab-plaque": {"orig": "A", "rewrites": ["C", ""], "rejection_reasons": ["too long"]},
            "glia": {"rewrites": ["G"]},
            "nothing": {"orig": "", "rewrites": []},
        },
    )
    texts, notes = load_captions([one, two])
    assert texts == {"cfos": ["Nuclei of neurons."], "ab_plaque": ["A", "B", "C"], "glia": ["G"]}
    assert any("ab_plaque" in note and "paraphrases" in note for note in notes)
    assert any("nothing" in note and "no text" in note for note in notes)
    assert normalise_key(" 10_AF3-BR6C A") == "10_af3_br6c_a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x",\n "b": }', "line 2, column 7"),
        ('["a"]', "expected a JSON object"),
        ("{}", "at least one key"),
        ('{"a": "x", "a": "y"}', "'a' stands twice"),
        ({"a": 3}, "key 'a': expected a text"),
        ({"a": ["x", None]}, "key 'a': expected texts only"),
        ({"a": {"orig": "x", "rewrites": "y"}}, "expected a list of texts"),
        ({"a": {"text": "x"}}, "key 'a': expected a text"),
    ],
)
def test_a_bad_file_is_named(tmp_path: pathlib.Path, content: object, message: str) -> None:
    path = _write(tmp_path / "bad.json", content)
    with pytest.raises(CaptionError, match=r"bad\.json") as caught:
        load_captions([path])
    assert message in str(caught.value)
    with pytest.raises(CaptionError, match=r"missing\.json"):
        load_captions([tmp_path / "missing.json"])


def test_keys_match_exactly_or_not_at_all() -> None:
    require_captions(["cfos"], ["cfos", "glia"])
    with pytest.raises(CaptionError) as caught:
        require_captions(["cfo", "glia", "vessel"], ["cfos", "glia", "vessel_wga"])
    text = str(caught.value)
    assert "2 caption key(s)" in text and "close: cfos" in text and "cfos, glia, vessel_wga" in text


def test_time_grows_with_the_number_of_keys_and_texts_and_not_with_its_square(tmp_path: pathlib.Path) -> None:
    count = 100_000
    many_keys = _write(tmp_path / "keys.json", {f"key {number}": f"text {number}" for number in range(count)})
    many_texts = _write(tmp_path / "texts.json", {"one": [f"text {number}" for number in range(count)]})
    start = time.process_time()
    texts, _ = load_captions([many_keys, many_texts, many_texts])
    assert len(texts) == count + 1 and len(texts["one"]) == count
    with pytest.raises(CaptionError) as caught:
        require_captions([f"other {number}" for number in range(3000)], texts)
    # Squares of these would take from minutes to hours.
    assert time.process_time() - start < 30
    assert "3000 caption key(s)" in str(caught.value) and len(str(caught.value)) < 5000


def test_a_byte_order_mark_and_deep_nesting(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": "x"}')
    assert load_captions([tmp_path / "bom.json"]).texts == {"a": ["x"]}
    deep = _write(tmp_path / "deep.json", "[" * 200_000)
    with pytest.raises(CaptionError, match=r"deep\.json"):
        load_captions([deep])


def test_real_caption_files(shared: pathlib.Path) -> None:
    folder = shared / "data" / "captions"
    texts, _ = load_captions([folder / "text_prompts_selma.json", folder / "text_prompts_expanded.json"])
    assert "10_af3_br6c_a" in texts and len(texts["cfos"]) >= 3 and "syto16" in texts

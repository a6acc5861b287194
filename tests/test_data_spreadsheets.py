"""Tables as spreadsheets write them, and what is refused with the number of its line."""

import codecs

import numpy as np
import pytest

from lsmfm_jax.data.labelled import LabelledDataError, LabelledFile, _read_classes, with_classes
from lsmfm_jax.data.spreadsheets import SpreadsheetError, points_in, read_points

PLAIN = "name,class\nHirn_ä,Kern\nb.nii.gz,Gefäß\n"
SAME = {
    "plain": PLAIN.encode(),
    "bom": codecs.BOM_UTF8 + PLAIN.encode(),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "latin1": PLAIN.encode("latin-1"),
    "latin1_semicolons_crlf": PLAIN.replace(",", ";").replace("\n", "\r\n").encode("cp1252"),
    "utf16": PLAIN.replace(",", "\t").encode("utf-16"),
    "crlf": codecs.BOM_UTF8 + PLAIN.replace("\n", "\r\n").encode(),
    "old_mac": PLAIN.replace("\n", "\r").encode(),
    "quoted": b'"name","class"\n' + '"Hirn_ä","Kern"\n"b.nii.gz","Gefäß"\n'.encode(),
    "trailing_blanks": PLAIN.encode() + b"\n,\n , \n\n",
    "leading_blanks": b"\n\n" + PLAIN.encode(),
    "trailing_cells": PLAIN.replace("\n", ",,\n").encode(),
    "sep": b"sep=;\r\n" + PLAIN.replace(",", ";").encode(),
    "case_and_spaces": PLAIN.replace("name,class", " Name , CLASS ").replace(",Kern", ", Kern ").encode(),
    "other_columns": "no;class;name\n1;Kern;Hirn_ä\n2;Gefäß;b.tif\n".encode(),
    "decomposed": PLAIN.replace("ä,", "a\u0308,").encode(),
    "no_last_newline": PLAIN.rstrip().encode(),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_table_however_it_was_saved(kind, tmp_path):
    (tmp_path / "t.csv").write_bytes(SAME[kind])
    assert _read_classes(tmp_path / "t.csv") == {"Hirn_ä": "Kern", "b": "Gefäß"}


def test_names_with_folders_of_either_slash(tmp_path):
    (tmp_path / "t.csv").write_text("name;class\none\\a.nii.gz;x\ntwo/a;y\n")
    files = [LabelledFile(name, tmp_path / name, {}, "v") for name in ("one/a", "two/a")]
    assert [f.class_name for f in with_classes(files, source="csv", table=tmp_path / "t.csv")] == ["x", "y"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name,class\na,x\nb\n", r"t\.csv, line 3: 1 cells where the header has 2"),
        (b"name,class\na,x\nb,y,z\n", r"t\.csv, line 3: 3 cells where the header has 2"),
        (b"name;class\na;x\nb,y\n", r"t\.csv, line 3: 1 cells .* that hold a semicolon in quotes"),
        (b"name,class\na,\n", r"t\.csv, line 2: without a name or a class"),
        (b"name,class\na,x\n\nb,y\na,z\n", r"t\.csv, line 5: a is of class z, and of x in line 2"),
        (b"name,kind\na,x\n", r"columns name and class.*it has name, kind and 1 rows"),
        (b"name,class\n", r"and rows below it.*0 rows"),
        (b"", r"no header"),
        (b"PK\x03\x04....", r"is a workbook and no CSV"),
        (b"name,class\na,\x00x\n", r"t\.csv, line 2: not text"),
        (b'name,class\n"a,x\n', r"t\.csv, line \d: not a table"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(data, message, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(LabelledDataError, match=message) as error:
        _read_classes(tmp_path / "t.csv")
    assert str(error.value).startswith("data.csv: ") and "\n" not in str(error.value)


def test_points(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(codecs.BOM_UTF8 + b"id;Z;Y;X\r\n1;1,5;2;3\r\n2;4;5;6\r\n\r\n")
    points = read_points(path)
    np.testing.assert_array_equal(points.places, [[1.5, 2, 3], [4, 5, 6]])
    assert not points.in_um and points_in(path) == "voxels"
    path.write_text("z_um,y_um,x_um\n")
    assert read_points(path).in_um and read_points(path).places.shape == (0, 3)
    path.write_text("z,y,x\n1,2,3\n1,two,3\n")
    with pytest.raises(SpreadsheetError, match=r"p\.csv, line 3: '1', 'two', '3' are not three numbers z, y, x"):
        read_points(path)
    path.write_text("z,y,x\n1,nan,3\n")
    with pytest.raises(SpreadsheetError, match="line 2"):
        read_points(path)
    path.write_text("file,task\na,b\n")
    assert points_in(path) == ""

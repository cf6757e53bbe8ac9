"""Arrays of objects are read piece by piece: where a piece ends must not matter."""

import json

import pytest

from maeclip_jax.prepare.formats import json_arrays

ROWS = [
    {"image": "0.jpg", "caption": "a ] and a } and [{"},
    {"image": "1.jpg", "caption": 'quotes "]" and a backslash \\', "n": [1, {"a": "]}"}, []]},
    {"image": "é.jpg", "caption": 'ends in "\\"'},
]
ODD = '"a, text ] of its own", 12, null, "\\"] more",'


def _rows(path, start=0, stop=None):
    return [row for *_, row in json_arrays.rows(path, json_arrays.ARRAY, start, stop)]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii", [True, False])
def test_a_piece_may_end_at_any_byte(indent, ascii, tmp_path, monkeypatch):
    text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii)
    path = tmp_path / "a.json"
    path.write_text("[" + ODD + text[1:])
    whole = _rows(path)
    assert [row for row in whole if isinstance(row, dict)] == ROWS
    assert [row for row in whole if isinstance(row, str)] == ["a JSON str, not an object", "a JSON int, not an object",
                                                              "a JSON NoneType, not an object",
                                                              "a JSON str, not an object"]  # fmt: skip
    places = [(begin, end) for _, begin, end, _ in json_arrays.rows(path, json_arrays.ARRAY, 0, None)]
    for size in range(1, path.stat().st_size + 1):
        monkeypatch.setattr(json_arrays, "_CHUNK", size)
        assert _rows(path) == whole, size
        assert _rows(path, places[4][0], places[5][1]) == ROWS[:2], size


def test_large_arrays_with_brackets_in_captions_keep_every_row(tmp_path):
    rows = [{"image": f"{i}.jpg", "caption": "a list ] of things } " * 25} for i in range(3000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert path.stat().st_size > 1 << 20 and _rows(path) == rows


def test_a_text_without_an_end_is_one_bad_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": "b"}, {"a": "no end]}')
    assert _rows(path) == [{"a": "b"}, "not JSON: the file ends, or the object is too long"]

import csv
import io

import pytest

from maeclip_jax.prepare.formats import table_rows


def _positions(path, delimiter):
    found = list(table_rows.rows(path, delimiter))
    return found, [(start, stop) for _, start, stop, _ in found]


CSV = 'image,caption\r\na.jpg,"two\r\nlines, and ""quotes"""\r\n\r\nb.jpg,ü\r\nc.jpg\r\nd.jpg,x,y\r\n'
JSONL = '{"image": "a"}\n\nnot json\n[1]\n{"image": "ü"}\n{"image": "last, no newline"}'


@pytest.mark.parametrize("text, delimiter", [(CSV, ","), (JSONL, ""), ("\ufeff" + CSV, ","), ("\ufeff" + JSONL, "")])
def test_any_range_of_rows_reads_as_in_the_whole(tmp_path, text, delimiter):
    path = tmp_path / "table"
    path.write_bytes(text.encode())
    whole, places = _positions(path, delimiter)
    for first in range(len(places)):
        for last in range(first, len(places)):
            part = list(table_rows.rows(path, delimiter, places[first][0], places[last][1]))
            assert [r[3] for r in part] == [r[3] for r in whole[first : last + 1]]
            assert [r[0] for r in part] == list(range(last - first + 1))


def test_csv_rows_are_what_the_csv_module_says(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(CSV.encode())
    ours = [row for *_, row in table_rows.rows(path, ",")]
    header, *rows = [r for r in csv.reader(io.StringIO(CSV, newline="")) if r]
    assert ours == [dict(zip(header, r)) for r in rows]
    assert ours[0]["caption"] == 'two\r\nlines, and "quotes"'


def test_bad_json_lines_are_rows_that_say_why(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(JSONL.encode())
    rows = [row for *_, row in table_rows.rows(path, "")]
    assert rows[1].startswith("not JSON") and rows[2] == "a JSON list, not an object"


@pytest.mark.parametrize(
    "header, delimiter",
    [("image,caption", ","), ("filepath\ttitle", "\t"), ("image_name| comment_number| comment", "|")],
)
def test_delimiter_of_usual_headers(tmp_path, header, delimiter):
    path = tmp_path / "x.csv"
    path.write_text(header + "\n")
    assert table_rows.delimiter(path) == delimiter
    assert all(n == n.strip() for n in table_rows.first_row(path, delimiter))

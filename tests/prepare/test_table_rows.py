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
    assert ours == [dict(zip(header, r)) for r in rows[:-1]] + [
        "not csv: 3 cells where the header has 2; valid: quotes around ','"
    ]
    assert ours[0]["caption"] == 'two\r\nlines, and "quotes"'


def _read(path, name, text):
    (path / name).write_bytes(text.encode())
    return [row for *_, row in table_rows.rows(path / name, table_rows.delimiter(path / name))]


def _captions(rows):
    return [row["caption"] if isinstance(row, dict) else "" for row in rows]


@pytest.mark.parametrize(
    "caption, others",
    [
        ('"a sign', "caption"),  # the next quote is 20 rows further down
        ('"a sign', 'the 5"'),  # the next row closes the cell as csv does
        ('"a sign', 'a 5" one'),
        ('"Stop" says a sign', "caption"),
        ('""', 'caption "'),
        ('"""three', '"'),
    ],
)
@pytest.mark.parametrize("order", [("image", "caption"), ("caption", "image")])
@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_a_quote_that_begins_a_caption_takes_no_other_rows(tmp_path, caption, others, order, delimiter):
    rows = [
        {"image": f"{i}.jpg", "caption": caption if i in (4, 24) else others if i in (5, 25) else f"c{i}"}
        for i in range(50)
    ]
    text = "".join(delimiter.join(row[name] for name in order) + "\n" for row in ({n: n for n in order}, *rows))
    found = _read(tmp_path, "x.csv", text)
    assert len(found) == 50 and all(isinstance(row, dict) for row in found)
    assert [row["image"] for row in found] == [row["image"] for row in rows]
    kept = [row["caption"] for row in rows]
    if caption == '""':  # an empty cell
        kept[4] = kept[24] = ""
    if caption == '"Stop" says a sign' and delimiter == ",":  # as the csv module has it
        kept[4] = kept[24] = "Stop says a sign"
    assert _captions(found) == kept


def test_no_quote_takes_what_follows_a_thousand_lines(tmp_path):
    """Nothing of what follows looks like a row, and the last line closes the cell."""
    text = 'image,caption\na.jpg,"x\n' + "y\n" * 2000 + 'z"\nb.jpg,c\n'
    found = _read(tmp_path, "x.csv", text)
    assert len(found) == 2003 and found[0]["caption"] == '"x' and found[-1] == {"image": "b.jpg", "caption": "c"}


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_quoted_cells_of_several_lines_are_text(tmp_path, delimiter):
    texts = ['two\nlines, and "quotes"', "a\n\nb, c\n", "one, a.jpg\ntwo", 'x\r\n"y"', "a, b\nc, d\ne, f"]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(
        [("image", "caption"), *((f"{i}.jpg", t) for i, t in enumerate(texts))]
    )
    assert _captions(_read(tmp_path, "x.csv", file.getvalue())) == texts


def test_empty_cells_behind_the_header_are_nothing(tmp_path):
    found = _read(tmp_path, "x.csv", "image,caption\na.jpg,a,,\nb.jpg,b, ,c\nc.jpg\n")
    assert found[::2] == [{"image": "a.jpg", "caption": "a"}, {"image": "c.jpg"}]
    assert found[1].startswith("not csv: 4 cells where the header has 2")


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

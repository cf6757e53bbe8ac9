import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from PIL import Image

from maeclip_jax import report
from maeclip_jax.errors import UserError
from maeclip_jax.evals.protocol import Metric, percent
from maeclip_jax.report import cost, figures, page
from maeclip_jax.report import run as runs
from maeclip_jax.report.command import main
from tests.report.written import written

EVIL = "<script>alert('1')</script> | `a` *b* [c](d) & \n# e"
TILE = 4


def evaluation(step, top1=60.0):
    grey = [{"tile": n, "key": EVIL, "score": 0.5 - n / 10, "right": n == 1} for n in range(3)]
    query = {"which": "best", "rank": 2, "key": EVIL, "tile": 1, "captions": [EVIL]}
    found = [{"text": EVIL, "score": 0.4, "right": False}, {"text": "a red cube", "score": 0.3, "right": True}]
    return written({
        "step": step,
        "metrics": {
            "zero_shot": [percent("top1", top1, chance=1.5625)],
            "retrieval": [percent("text_to_image_R@5", 12.5, chance=0.16)],
            "reconstruction": [Metric("masked_mse", 0.01, "MSE, pixels 0 to 1", "lower", reference=0.05)],
            "loss": [Metric("loss", 2.0, "nats", "lower"), Metric("contrast", 1.0, "nats", "lower")],
        },
        "details": {
            "retrieval/examples": {
                "kind": "tiles", "picture": "tiles", "tile": TILE, "columns": 2, "note": "3 pictures.",
                "image_to_text": [query | {"found": found}],
                "text_to_image": [query | {"text": EVIL, "found": grey}],
            },
            "reconstruction/sheet": {"kind": "sheet", "picture": "pictures", "columns": ["original", "masked"],
                                     "rows": 2, "gap": 2, "note": "Grey.",
                                     "rows_text": ["the upper row", "the lower one"],
                                     "legend": [["dog", "#00ff00"]]},
            "reconstruction/captions": {"kind": "captions", "note": "", "captions": [
                [{"true": "a"}, {"true": "red", "filled": "red"}, {"true": EVIL, "filled": "##s"}, {"true": "##es"}]]},
            "zero_shot/classes": {"kind": "table", "columns": ["class", "%"], "rows": [[EVIL, 61.25]], "note": ""},
            "zero_shot/from_the_future": {"kind": "hologram"},
        },
        "pictures": {"retrieval/tiles": f"{step}/retrieval-tiles.png", "reconstruction/pictures": f"{step}/sheet.png"},
        "not_applicable": {"probe": "it was not asked for"},
        "seconds": {"zero_shot": 1.0},
    })  # fmt: skip


def make_workdir(path, steps=(100, 200), top1=(20.0, 60.0)):
    """A workdir as a run leaves it. Tile n of the sheet of 4 has the grey level 60 n."""
    path.mkdir(parents=True)
    config = {"objective": "mae_clip", "argument": "pool=max,scale=demo", "note": EVIL, "batch_size": 8}
    config["model"] = {"image_tower": {"pool": "max", "width": 8}, "text_tower": {"pool": "cls"}, "loss": "softmax"}
    (path / "config.json").write_text(json.dumps(config))
    with (path / "metrics.jsonl").open("w") as f:
        for step in [1, *range(10, 201, 10)]:
            row = {"step": step, "train/loss": 5 - step / 100, "train/contrast": 4 - step / 100, "train/image": None}
            row |= {"progress/examples_seen": step * 8, "perf/step_seconds": 0.5 if step > 1 else 60, "perf/mfu": 0.25}
            f.write(json.dumps(row) + "\n")
    costs = {
        "step": 200,
        "seconds": {"train": 100.0, "input_wait": 5.0, "eval": 20.0},
        "devices": 4,
        "device_kind": "TPU v4",
    }
    costs |= {
        "batch_size": 8,
        "parameters": 1234,
        "flops_per_step": 2e9,
        "mfu_formula": "MFU = a / b",
        "command": f"run {EVIL}",
    }
    (path / "costs.json").write_text(json.dumps(costs | {"versions": {"jax": "0.10.2"}}))
    (path / "evals").mkdir()
    grey = np.array([[0, 60], [120, 180]], np.uint8)
    tiles = Image.fromarray(grey.repeat(TILE, 0).repeat(TILE, 1)).convert("RGB")
    sheet = Image.fromarray(np.full((10, 10, 3), 7, np.uint8))
    for step, accuracy in zip(steps, top1):
        (path / "evals" / f"{step}.json").write_text(json.dumps(evaluation(step, accuracy)))
        (path / "evals" / str(step)).mkdir()
        tiles.save(path / "evals" / str(step) / "retrieval-tiles.png")
        sheet.save(path / "evals" / str(step) / "sheet.png")
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = make_workdir(tmp_path_factory.mktemp("runs") / "demo")
    assert report.write(path) == epath.Path(path / "report" / "index.html")
    return path


@pytest.fixture(scope="module")
def html(workdir):
    return (workdir / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def markdown(workdir):
    return (workdir / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def view(workdir):
    return page.view(runs.read(workdir))


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time of a report; some tests do not look at figures."""
    monkeypatch.setattr(figures, "render", lambda *_: b"\x89PNG")


class Tags(HTMLParser):
    """Checks that tags are closed in order; collects attributes and the text outside of style."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], set(), ""
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def test_the_page_is_one_self_contained_well_formed_file(html):
    tags = Tags(html)
    assert tags.links and all(link.startswith("data:image/") for link in tags.links)
    assert not tags.tags & {"script", "link", "iframe", "object"} and "url(" not in html and "@import" not in html


def test_text_of_others_is_shown_literally(html, markdown):
    text = Tags(html).text
    for place in ("caption", "class", "command", "config"):
        assert "<script>alert(" in text, place
    assert text.count("<script>alert(") == html.count("&lt;script&gt;alert(") - html.count('="&lt;script&gt;alert(')
    outside_code = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", markdown, flags=re.S | re.M)
    assert "<script" not in outside_code and "&lt;script&gt;alert(" in outside_code
    assert r"\| \`a\` \*b\* \[c\](d) &amp;  \# e" in outside_code  # cannot end a table cell, nor begin a line


def test_headline_numbers_stand_beside_chance(html, markdown):
    assert "| Zero shot: top-1 accuracy | 60.0 % | 1.6 % | 38× |" in markdown
    assert "| Retrieval: text → image R@5 | 12.5 % | 0.16 % | 78× |" in markdown
    assert "| 0.01 MSE, pixels 0 to 1 | 0.05 MSE, pixels 0 to 1 (baseline) | 0.2× |" in markdown
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    at = cells.index("Zero shot: top-1 accuracy")
    assert cells[at + 1 : at + 4] == ["60.0 %", "1.6 %", "38×"]
    text = re.sub(r"\s+", " ", Tags(html).text)
    assert "Reconstruction: masked-pixel error 0.01 baseline 0.05 · 0.2× · lower is better" in text


def test_the_bar_of_an_error_is_as_long_as_its_share_of_the_baseline():
    known = dict(evaluator="reconstruction", name="masked_mse", unit="MSE", better="lower")
    assert page.shares(runs.Number(value=0.01, baseline=0.05, **known)) == pytest.approx((20, 100))
    assert page.shares(runs.Number(value=0.1, baseline=0.05, **known)) == pytest.approx((100, 50))
    assert page.shares(runs.Number("zero_shot", "top1", 60.0, "%", chance=1.5)) == (60, 1.5)


def test_what_was_trained_and_what_it_cost(html):
    text = re.sub(r"\s+", " ", Tags(html).text)
    for piece in ("MAE-CLIP", "max / cls", "demo", "1,234", "200 steps of 8 = 1,600 examples", "MFU = a / b"):
        assert piece in text, piece


def test_cost_rows(workdir):
    spent = cost.view(runs.read(workdir))
    rows = {what: (value, known) for what, value, known in spent["rows"]}
    assert rows["time, restarts included"] == ("2.0 min", "measured")  # 100 s of steps, 20 s of evaluation
    assert rows["chip-hours"][0] == "0.133 (4 × TPU v4)"
    run = runs.read(workdir)
    run.costs["chip_seconds"] = 2 * 3600.0
    assert ("chip-hours", "2 (at last 4 × TPU v4)", "measured") in cost.view(run)["rows"] and cost.chip_hours(run) == 2
    assert rows["step time"][0] == "500 ms, median"
    assert rows["model FLOPs utilisation (MFU)"] == ("25.0 %, median", "measured time, computed FLOPs")
    assert rows["share of training time spent waiting for input"][0] == "5.0 %"
    assert rows["model FLOPs of the run"] == ("400 GFLOP", "computed")
    assert sum(percent for _, _, percent in spent["shares"]) == pytest.approx(100)


def test_the_first_step_with_its_start_up_does_not_count(workdir):
    run = dataclasses.replace(runs.read(workdir), rows=[{"step": s, "perf/mfu": m} for s, m in ((1, 0.1), (2, 0.5))])
    assert cost.median(run, "perf/mfu") == 0.5


def test_tiles_show_the_picture_they_name(view):
    (shown,) = view["retrieval"]
    for found in shown["text_to_image"][0]["found"]:
        pixels = np.asarray(Image.open(io.BytesIO(found["picture"].data)))
        assert pixels.shape == (TILE, TILE, 3) and (pixels == 60 * found["tile"]).all()
    assert shown["image_to_text"][0]["picture"] is shown["text_to_image"][0]["found"][1]["picture"]


def test_contact_sheets_are_cut_into_rows(view):
    (sheet,) = view["sheets"]
    sizes = [Image.open(io.BytesIO(p.data)).size for p, _ in sheet["rows"]]
    assert sizes == [(10, 4), (10, 4)]


def test_rows_of_sheets_have_their_words_and_colours(html, markdown):
    text = Tags(html).text
    assert "Masked pictures, filled in" in text and 'style="background:#00ff00"></i>dog' in html
    for words in ("the upper row", "the lower one"):
        assert words in text and f"{words}:\n" in markdown


def test_filled_captions(view):
    ((line,),) = [c["lines"] for c in view["captions"]]
    assert [t["true"] for t in line] == ["a", "red", EVIL, "es"]
    assert [t.get("right") for t in line] == [None, True, False, None]
    assert [t["glued"] for t in line] == [False, False, False, True] and line[2]["filled"] == "s"


def test_embedded_pictures_can_be_read(html):
    for kind, data in re.findall(r'"data:image/([a-z+]+);base64,([^"]+)"', html):
        raw = base64.b64decode(data, validate=True)
        assert raw.startswith(b"<?xml") if kind == "svg+xml" else Image.open(io.BytesIO(raw)).size[0] > 0


def test_markdown_has_its_pictures_beside_it(workdir, markdown):
    links = re.findall(r"!\[.*?(?<!\\)\]\((\S+)\)", markdown)
    assert len(links) > 5
    for link in links:
        assert Image.open(workdir / "report" / link).size[0] > 0


def test_the_newest_result_of_each_evaluator_counts(tmp_path):
    path = make_workdir(tmp_path / "run")
    late = {"step": 300, "metrics": {"zero_shot": [percent("top1", 70, chance=1.5625)]}}
    (path / "evals" / "300.json").write_text(json.dumps(written(late)))
    found = {r.evaluator: r for r in runs.read(path).results()}
    assert found["zero_shot"].step == 300 and found["zero_shot"].metrics[0].value == 70
    assert found["retrieval"].step == 200
    assert runs.read(path).examples(300) == 2400


def test_broken_and_repeated_rows(tmp_path, no_figures):
    path = make_workdir(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 200, "train/loss": 9.0}\n{"step": 210, "train/lo\n[1]\n\n{"step": 220, "train/loss": NaN}\n')
    run = runs.read(path)
    assert run.unreadable_rows == 2
    assert run.series("train/loss")[-1] == (1600, 9.0)  # later lines win, what is not finite is left out
    assert "2 lines of metrics.jsonl could not be read and are left out." in page.view(run)["missing"]


def test_results_of_an_older_version_are_left_out_and_said(tmp_path, no_figures):
    path = make_workdir(tmp_path / "run")
    (path / "evals" / "7.json").write_text(json.dumps({"step": 7, "metrics": {"zero_shot/top1": 99.0}}))
    run = runs.read(path)
    assert 7 not in [one["step"] for one in run.evals] and run.older == ["7.json"]
    assert "Left out of evals/, as of an older version and without units: 7.json." in page.view(run)["missing"]


def test_missing_parts_are_said_not_invented(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    report.write(tmp_path / "run")
    text = Tags((tmp_path / "run" / "report" / "index.html").read_text()).text
    said = (
        "has not been evaluated", "no loss curves", "Nothing is recorded of what the run cost",
        "The command of the run is not recorded", "The versions of the libraries are not recorded",
    )  # fmt: skip
    for sentence in said:
        assert sentence in text
        assert sentence in (tmp_path / "run" / "report" / "report.md").read_text()
    assert "%" not in text and "chip-hours" not in text


def test_lost_pictures_and_reasons_are_said(tmp_path, no_figures):
    path = make_workdir(tmp_path / "run")
    (path / "evals" / "200" / "retrieval-tiles.png").unlink()
    report.write(path)
    text = Tags((path / "report" / "index.html").read_text()).text
    assert "The pictures of Retrieval are not in the workdir (200/retrieval-tiles.png)." in text
    assert "Probe is not applicable: it was not asked for." in text and "a red cube" in text


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda p: None, r"no workdir at '.*run'; valid: a folder that a run was given as --workdir"),
        (lambda p: p.mkdir(), r"'.*run' is not a workdir: it has no config.json"),
        (lambda p: (make_workdir(p) / "config.json").write_text("{"), r"cannot read '.*config.json': Expecting"),
        (lambda p: (make_workdir(p) / "evals/100.json").write_text("[]"), r"100.json': it holds a list, not an object"),
        (lambda p: (make_workdir(p) / "evals/100.json").write_text("{}"), r"100.json' has no step; delete it and"),
    ],
)
def test_bad_workdirs_are_one_line_and_exit_code_2(tmp_path, capsys, spoil, message):
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        report.write(tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)


def test_comparison(tmp_path, no_figures, capsys):
    first = make_workdir(tmp_path / "a_run", top1=(1.0, 55.0))
    second = make_workdir(tmp_path / "b", top1=(1.0, 65.0))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"objective": "mae"}')
    one = json.loads((second / "evals" / "200.json").read_text())
    del one["metrics"]["retrieval/text_to_image_R@5"]
    (second / "evals" / "100.json").unlink()
    (second / "evals" / "200.json").write_text(json.dumps(one))
    report.write(first)
    assert main([str(first), str(second), str(tmp_path / "c"), "--out", str(tmp_path / "table")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "table" / "index.html")
    rows = [r.split("|")[1:-1] for r in (tmp_path / "table" / "report.md").read_text().splitlines() if r[:2] == "| "]
    head, _, a, b, c = [[cell.strip() for cell in row] for row in rows]
    top1, recall = head.index("Zero shot: top-1 accuracy (chance 1.6 %)"), 8
    assert head[recall] == "Retrieval: text → image R@5 (chance 0.16 %)"
    assert a[:4] == [r"[a\_run](../a\_run/report/index.html)", "MAE-CLIP", "max / cls", "demo"]
    assert (a[top1], b[top1], c[top1]) == ("55.0 %", "65.0 %", "")
    assert (a[recall], b[recall], c[recall]) == ("12.5 %", "", "")
    assert c[:2] == ["c", "MAE"]
    tags = Tags((tmp_path / "table" / "index.html").read_text())
    assert "c has not been evaluated." in tags.text and tags.links == ["../a_run/report/index.html"]


def test_chance_that_differs_between_runs_is_a_range(tmp_path):
    first, second = (make_workdir(tmp_path / n) for n in "ab")
    text = (second / "evals" / "200.json").read_text().replace('"chance": 1.5625', '"chance": 10.0')
    (second / "evals" / "200.json").write_text(text)
    report.compare([first, second], tmp_path / "table")
    assert "chance 1.6 % to 10.0 %" in (tmp_path / "table" / "report.md").read_text()


def test_curves_carry_their_chance_line(workdir):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawings = dict(figures.accuracies(runs.read(workdir)))
    assert list(drawings) == ["Zero shot", "Retrieval: text → image", "Reconstruction: masked-pixel error"]
    _, ax = plt.subplots()
    drawings["Zero shot"](ax)
    value, chance = ax.lines
    assert list(value.get_xdata()) == [800, 1600] and list(value.get_ydata()) == [20, 60]
    assert list(chance.get_ydata()) == [1.5625] * 2 and chance.get_linestyle() == "--"
    _, ax = plt.subplots()
    drawings["Reconstruction: masked-pixel error"](ax)
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.01] * 2, [0.05] * 2] and ax.get_ylim()[0] == 0
    drawings = dict(figures.losses(runs.read(workdir)))
    assert list(drawings) == ["total loss", "contrastive loss (nats)"]
    _, ax = plt.subplots()
    drawings["contrastive loss (nats)"](ax)
    assert ax.lines[-1].get_ydata()[0] == pytest.approx(np.log(8))
    assert [line.get_label() for line in ax.lines[:2]] == ["training", "validation (loss)"]
    plt.close("all")


def test_smoothing_and_thinning():
    line = [(float(x), 3.0 * x) for x in range(5000)]
    np.testing.assert_allclose(figures.smooth(line), line, rtol=1e-9, atol=1e-6)  # a straight line stays: no lag
    x, _ = figures.thin(line)
    assert len(x) <= figures.MOST_POINTS and (x[0], x[-1]) == (0, 4999)


def test_words_for_numbers():
    assert [page.amount(v, "%") for v in (61.84, 0.1, 0.96, 0.0, float("nan"))] == [
        "61.8 %", "0.1 %", "1.0 %", "0.0 %", "not a number"]  # fmt: skip
    assert [cost.duration(s) for s in (0.4, 75, 564, 18400)] == ["0.4 s", "75 s", "9.4 min", "5.1 h"]
    assert figures.compact(153600) == "154k"


def test_importing_the_report_is_light():
    code = (
        "import sys, maeclip_jax.report; print([m for m in ('jax', 'matplotlib', 'jinja2', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

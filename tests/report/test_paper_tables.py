import base64
import dataclasses
import functools
import io
import json
import math
import re
import statistics

import numpy as np
import pytest
from PIL import Image

from experiments.eval.vtab import evaluators
from maeclip_jax import config as configs
from maeclip_jax import report
from maeclip_jax.evals import statistics as statistics_of
from maeclip_jax.evals.items import Items, to_bytes
from maeclip_jax.evals.items import table as items_table
from maeclip_jax.evals.protocol import Metric, percent
from maeclip_jax.report import figures, paper, selection, tables, trends
from maeclip_jax.report import models as grouping
from maeclip_jax.report import run as runs
from maeclip_jax.report.command import main
from maeclip_jax.workdir import items_file
from tests.report.written import written


@functools.cache
def suite(objective, scale):
    """The evaluators of the paper's suite for a shipped experiment."""
    config = configs.load(f"experiments/{objective}.py:scale={scale}", suite="experiments/eval/paper.py")
    return {(e["type"], e["data"]["source"]["name"]): e for e in configs.plain(config.evals).values()}


def settings(type, name, split="test", **more):
    plain = {"type": type, "data": {"source": {"kind": "tfds", "name": name, "split": split}}, "batch_size": 8}
    shipped = suite("clip", "low").get((type, name), plain)
    if shipped is not plain and shipped["data"]["source"]["split"] != split:
        shipped = shipped | {"data": shipped["data"] | {"source": shipped["data"]["source"] | {"split": split}}}
    return shipped | more


RECORDS = {"low": 11_300_000, "high": 1_400_000_000}
STEPS = {"low": 20691, "high": 170898}  # of the shipped experiments: all of their examples


def shipped(objective, pool, scale, size, **arg):
    both = {"text_pool": pool} if objective in ("clip", "mae_clip") else {}
    argument = {"pool": pool, "scale": scale, "size": size} | both | arg
    argument = ",".join(f"{k}={v}" for k, v in argument.items())
    return configs.plain(configs.load(f"experiments/{objective}.py:{argument}"))


def make(path, objective="clip", pool="max", scale="low", size="B/16", seed=0, evals=(), steps=None, **config):
    """A workdir with evaluations `(name, settings, metrics)`; a metric's value may be a list, one a step.

    At the paper's scales it is a shipped experiment that has seen all of its data. Items are made up that have the
    metrics' values, where these say none.
    """
    (path / "evals").mkdir(parents=True)
    given = config.pop("arg", {})
    if scale in RECORDS and objective != "vqa":
        made, steps = (
            shipped(objective, pool, scale, size, **given) | {"seed": seed},
            (STEPS[scale],) if steps is None else steps,
        )
    else:
        arg = {"pool": pool, "scale": scale, "size": size, "keep": 1.0} | given
        made = {"objective": objective, "arg": arg, "seed": seed, "batch_size": 10, "optim": {"lr": 0.001}}
        made |= {"model": {"image_tower": {"pool": pool, "size": size}}, "evals": {}, "init_from": ""}
        made |= {"data": {"source": {"name": f"pairs_{scale}"}}}
    (path / "config.json").write_text(json.dumps(merged(made, config)))
    (path / "data.json").write_text(json.dumps({"train": {"records": RECORDS.get(scale, 20_000)}}))
    for n, step in enumerate((100,) if steps is None else steps):
        one = {"step": step, "settings": {name: s for name, s, _ in evals}, "seconds": {}}
        one["metrics"] = {name: [at(m, n) for m in metrics] for name, _, metrics in evals}
        (path / "evals" / f"{step}.json").write_text(json.dumps(written(one)))
    return path


def merged(tree, more):
    """Nested dicts with some leaves changed."""
    inner = {k: merged(tree[k], v) for k, v in more.items() if isinstance(v, dict) and isinstance(tree.get(k), dict)}
    return tree | more | inner


def at(metric, step):
    """A metric of several steps at one of them."""
    return dataclasses.replace(metric, value=metric.value[step]) if isinstance(metric.value, list) else metric


def probe(top1, data="imagenet2012", split="validation", name="probe", **more):
    return (name, settings("linear_probe", data, split, **more), [percent("top1", top1, chance=0.1)])


def shot(top1, data="imagenet2012", split="validation"):
    metrics = [percent("top1", top1, chance=0.1), percent("top5", top1 + 10, chance=0.5)]
    return ("zero", settings("zero_shot", data, split), metrics)


def read(*paths):
    """(models, numbers, notes) of workdirs."""
    notes = []
    found = grouping.models([runs.read(p) for p in paths], notes)
    return found, list(grouping.entries(found)), notes


def table(title, *paths):
    models, numbers, _ = read(*paths)
    made, absent = tables.paper_tables(models, numbers)
    (one,) = [t for t in made if t.title.startswith(title)]
    assert one.title not in absent
    return one


def cells(one):
    """{(row, column): text} of what is not empty; a row is its head, a column its head without chance."""
    out = {}
    for row, held in one.rows:
        for column, cell in zip(one.columns, held):
            if cell.lines or cell.paper:
                key = " ".join(filter(None, row)), " ".join(filter(None, column[:2]))
                out[key] = "; ".join(map(str, cell.lines)) + (f" | {cell.paper.split(': ')[1]}" if cell.paper else "")
    return out


def test_linear_probe_has_scales_as_columns_and_the_paper_only_beside_its_own_setting(tmp_path):
    paths = [
        make(tmp_path / "a", evals=[probe(50.0)]),
        make(tmp_path / "b", scale="high", evals=[probe(70.0)]),
        make(tmp_path / "c", scale="demo", size="demo", evals=[probe(20.0)]),
        make(tmp_path / "d", "mae", "cls", evals=[probe(30.0)]),
        make(tmp_path / "e", size="S/16", evals=[probe(40.0)]),
        make(tmp_path / "f", "mae_clip", evals=[probe(60.0, split="validation[:10%]")]),
    ]
    found = cells(table("T1", *paths))
    assert found == {
        ("ImageNet CLIP MAX B/16 chance 0.1 %", "11.3M pairs"): "50.0 | 52.6",
        ("ImageNet CLIP MAX B/16 chance 0.1 %", "1.4B pairs"): "70.0 | 77.5",
        ("ImageNet CLIP MAX demo chance 0.1 %", "1k pairs"): "20.0",
        ("ImageNet MAE CLS B/16 chance 0.1 %", "11.3M pairs"): "30.0 | 33.9",
        ("ImageNet CLIP MAX S/16 chance 0.1 %", "11.3M pairs"): "40.0",
        ("ImageNet MAE-CLIP MAX B/16 chance 0.1 %", "11.3M pairs"): "60.0",
    }
    assert [r[0][1] for r in table("T1", *paths).rows] == ["MAE", "CLIP", "CLIP", "CLIP", "MAE-CLIP"]
    assert "the pooling of the 11.3M models is not known" in table("T1", *paths).note
    assert "11.3M" not in table("T1", paths[2]).note
    assert table("T1", paths[2]).columns[0][0] == "1k pairs" and len(table("T1", paths[2]).columns) == 3


def test_pooling_and_what_is_no_clip_of_the_paper(tmp_path):
    paths = [
        make(tmp_path / "a", pool="gap", scale="high", evals=[shot(60.0), probe(70.0)]),
        make(tmp_path / "b", pool="max", scale="high", evals=[shot(61.0)]),
        make(tmp_path / "c", pool="max", scale="high", evals=[shot(62.0)], arg={"loss": "sigmoid"}),
        make(tmp_path / "d", pool="max", scale="high", evals=[shot(63.0)], arg={"keep": 0.5}),
        make(tmp_path / "e", pool="max", scale="high", evals=[shot(64.0)], init_from="hf-clip:/clip-b16"),
    ]
    assert cells(table("T3", *paths)) == {
        ("CLIP GAP 1.4B B/16 2.8B", "ImageNet zero-shot top-1"): "60.0 | 61.8",
        ("CLIP GAP 1.4B B/16 2.8B", "ImageNet linear probe top-1"): "70.0 | 75.9",
        ("CLIP MAX 1.4B B/16 2.8B", "ImageNet zero-shot top-1"): "61.0 | 63.7",
        ("CLIP MAX 1.4B B/16 loss sigmoid 2.8B", "ImageNet zero-shot top-1"): "62.0",
        ("CLIP MAX 1.4B B/16 keeps 0.5 2.8B", "ImageNet zero-shot top-1"): "63.0",
        ("CLIP MAX 1.4B B/16 from hf-clip:/clip-b16 2.8B", "ImageNet zero-shot top-1"): "64.0",
    }


def test_seeds_are_one_row_with_sample_deviation(tmp_path):
    values = [50.0, 51.0, 53.0]
    paths = [make(tmp_path / str(n), seed=n, evals=[probe(v)]) for n, v in enumerate(values)]
    (model,), _, notes = read(*paths)
    assert len(model.runs) == 3 and notes == []
    (text,) = cells(table("T1", *paths)).values()
    sd = statistics.stdev(values)
    assert (
        math.isclose(sd, math.sqrt(7 / 3))
        and text == f"51.3 ± {4.303 * sd / math.sqrt(3):.1f} (3 seeds, sd {sd:.1f}) | 52.6"
    )


@pytest.mark.parametrize(("broken", "said"), [(math.nan, "not a number"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_seeds_that_are_not_finite_are_counted(tmp_path, broken, said):
    paths = [make(tmp_path / str(n), seed=n, evals=[probe(v)]) for n, v in enumerate([50.0, broken, 53.0])]
    assert list(cells(table("T1", *paths)).values()) == [f"{said} (2 of 3 seeds finite) | 52.6"]
    both = [*paths, make(tmp_path / "other", seed=3, evals=[probe(-math.inf)])]
    assert " (2 of 4 seeds finite) | 52.6" in next(iter(cells(table("T1", *both)).values()))
    made = evaluators(32)
    for seed in range(2):
        evals = [(n, c, [percent("top1", broken if seed and not i else 10 + i, chance=5)])
                 for i, (n, c) in enumerate(made.items())]  # fmt: skip
        make(tmp_path / f"vtab{seed}", seed=seed, evals=evals)
    found = cells(table("VTAB", tmp_path / "vtab0", tmp_path / "vtab1"))
    assert {k[0]: v for k, v in found.items() if "mean" in k[0]} == {
        "natural mean of 7": f"{said} (1 of 2 seeds finite)",
        "specialized mean of 4": "18.5000 ± 0.0000 (2 seeds, sd 0)",
        "structured mean of 8": "24.5000 ± 0.0000 (2 seeds, sd 0)",
        "all mean of 19": f"{said} (1 of 2 seeds finite)",
    }


def test_what_is_no_seed_is_not_averaged(tmp_path):
    paths = [
        make(tmp_path / "a", evals=[probe(50.0)]),
        make(tmp_path / "again", evals=[probe(52.0)]),  # the same seed: no new sample
        make(tmp_path / "rate", seed=1, evals=[probe(54.0)], optim={"lr": 0.1}),
    ]
    found, _, _ = read(*paths)
    assert [len(m.runs) for m in found] == [1, 1, 1]
    assert {m.note for m in found} == {"optim.lr 0.0005", "optim.lr 0.1"}
    found, _, _ = read(*paths[:2])
    assert {m.note for m in found} == {"a", "again"}
    # Where it ran and how it is looked at changes nothing.
    other = make(tmp_path / "b", seed=2, evals=[probe(51.0)], mesh={"fsdp": 8}, checkpoint={"every": "1%"})
    assert [len(m.runs) for m in read(paths[0], other)[0]] == [2]


def test_another_batch_is_another_model_and_another_mesh_is_not(tmp_path):
    made = dict(evals=[shot(60.0)], model={"image_tower": {"pool": "max"}, "compute": {"attention": "xla"}})
    small = make(tmp_path / "a", batch_size=128, seed=0, **made)
    large = make(tmp_path / "b", batch_size=1024, seed=1, **made)
    assert len(table("T3", small, large).rows) == 2
    fused = {"image_tower": {"pool": "max"}, "compute": {"attention": "fused"}}
    other = make(tmp_path / "c", batch_size=128, seed=1, **made | {"model": fused}, mesh={"fsdp": 8})
    (row,) = table("T3", small, other).rows
    assert "(2 seeds, sd 0)" in str(row[1][0].lines[0])


def test_seeds_evaluated_at_different_times_are_said(tmp_path):
    paths = [make(tmp_path / str(n), seed=n, evals=[probe(50.0)], steps=(100 * (n + 1),)) for n in range(2)]
    notes = selection.view([runs.read(p) for p in paths], tmp_path)["notes"]
    assert notes == [
        "The seeds of CLIP MAX low B/16 were last evaluated after 1,638,400 and 3,276,800 examples; their means mix "
        "these."
    ]


def test_two_ways_of_measuring_are_two_lines(tmp_path):
    ways = [probe(50.0), probe(55.0, name="lars", solver="lars"), probe(60.0, name="gap", pool="gap")]
    (text,) = cells(table("T1", make(tmp_path / "a", evals=ways))).values()
    assert text.startswith("50.0 (probe); 55.0 (lars)")
    assert "60.0" not in text  # features pooled otherwise
    models, numbers, _ = read(tmp_path / "a")
    assert "60.0 (pool gap)" in cells(tables.everything(models, numbers)).values()
    (text,) = cells(table("T1", make(tmp_path / "b", evals=ways[2:]))).values()
    assert text == "60.0 (pool gap)"


def vqa(path, start, accuracy, data="clevr", baseline=40.0, **more):
    source = {"kind": "questions", "of": {"kind": "tfds", "name": data, "split": "validation"}}
    one = (
        "answers",
        {"type": "vqa", "data": {"source": source}},
        [percent("accuracy", accuracy, reference=baseline)],
    )
    arg = {"of": "clip"} | more.pop("arg", {})
    return make(path, "vqa", more.pop("pool", "max"), evals=[one], init_from=str(start), arg=arg, **more)


def test_finetuned_runs_belong_to_the_row_of_their_pretrained_run(tmp_path):
    start = make(tmp_path / "clip", scale="high", evals=[shot(61.0)])
    paths = [
        vqa(tmp_path / "v0", start, 80.0, scale="", size=""),
        vqa(tmp_path / "v1", start / "checkpoints" / "100", 82.0, seed=1, scale="", size=""),
        vqa(tmp_path / "w", start, 30.0, "daquar", 25.0, scale="", size=""),
    ]
    one = table("T2", start, *paths)
    assert cells(one) == {
        ("CLIP MAX 1.4B B/16 2.8B", "CLEVR accuracy"): "81.0 ± 12.7 (2 seeds, sd 1.4) | 87.8",
        ("CLIP MAX 1.4B B/16 2.8B", "daquar accuracy"): "30.0",
    }
    heads = [" ".join(c[::2]) for c in one.columns]
    assert heads == ["CLEVR baseline 40.0 %", "VQAv2 ", "GQA ", "daquar baseline 25.0 %"]
    alone = table("T2", *paths)  # the pretrained run was not given, but is there
    assert cells(alone) == cells(one)
    elsewhere = vqa(tmp_path / "x", "clip/checkpoints", 90.0, seed=2, scale="", size="")  # as said from another folder
    assert "84.0 ± 13.1 (3 seeds, sd 5.3)" in next(iter(cells(table("T2", start, *paths, elsewhere)).values()))
    assert not any("zero" in str(t) for t in tables.paper_tables(*read(*paths)[:2])[0])


def test_answers_without_looking_are_apart(tmp_path):
    start = make(tmp_path / "clip", scale="high")
    paths = [
        vqa(tmp_path / "v", start, 80.0, arg={"blind": False}),
        vqa(tmp_path / "b", start, 45.0, arg={"blind": True}),
    ]
    assert list(cells(table("T2", *paths)).values()) == ["80.0 (not blind); 45.0 (blind) | 87.8"]
    assert list(cells(table("T2", *paths[1:])).values()) == ["45.0"]


def test_a_finetuned_run_without_its_pretrained_one_stands_beside_no_number_of_the_paper(tmp_path):
    path = vqa(tmp_path / "v", tmp_path / "gone", 80.0, scale="high", arg={"of": "mae_clip"})
    scratch = vqa(tmp_path / "s", "", 70.0, scale="high")
    assert cells(table("T2", path, scratch)) == {
        ("MAE-CLIP MAX unknown B/16 pretrained run not found", "CLEVR accuracy"): "80.0",
        ("CLIP MAX unknown B/16 not pretrained", "CLEVR accuracy"): "70.0",
    }
    _, _, notes = read(path)
    assert notes == [f"v began with {str(tmp_path / 'gone')!r}, which is not there to be read."]


def test_retrieval_and_actions(tmp_path):
    both = [percent("image_to_text_R@1", 50, chance=0.02), percent("text_to_image_R@1", 35, chance=0.02),
            percent("image_to_text_R@5", 80, chance=0.1)]  # fmt: skip
    evals = [
        ("coco", settings("retrieval", "coco_captions/2014:1.1.0"), both),
        ("mine", settings("retrieval", "photos"), both),
        ("acts", settings("zero_shot", "coco_a"), [percent("top1", 20), percent("top5", 40)]),
    ]
    one = table("T4", make(tmp_path / "a", scale="high", evals=evals))
    assert [" ".join(c) for c in one.columns] == [
        "COCO I→T R@1 chance 0.02 %", "COCO T→I R@1 chance 0.02 %", "Flickr30k I→T R@1 ", "Flickr30k T→I R@1 ",
        "COCO-a zero-shot top-1 ", "COCO-a zero-shot top-5 ", "photos I→T R@1 chance 0.02 %",
        "photos T→I R@1 chance 0.02 %",
    ]  # fmt: skip
    assert list(cells(one).values()) == ["50.0 | 55.3", "35.0 | 39.0", "20.0 | 22.7", "40.0 | 51.6", "50.0", "35.0"]
    assert [bool(c.lines) for c in one.rows[0][1][2:4]] == [False, False] and not one.rows[0][1][2].paper


def test_vtab_means_stand_only_where_every_task_was_measured(tmp_path):
    made = evaluators(32)
    evals = [(name, config, [percent("top1", 10 + n, chance=5)]) for n, (name, config) in enumerate(made.items())]
    evals.append(probe(99.0, "cifar100", "test", "full"))  # the same data set, but not the task
    found = cells(table("VTAB", make(tmp_path / "all", evals=evals)))
    assert len(found) == 19 + 4 and found["structured clevr count all chance 5.0 %", "CLIP MAX low B/16"] == "21.0"
    means = {k[0]: v for k, v in found.items() if "mean" in k[0]}
    assert means == {"natural mean of 7": "13.0", "specialized mean of 4": "18.5", "structured mean of 8": "24.5",
                     "all mean of 19": "19.0"}  # fmt: skip
    for pool, size, more in (("gap", "1k", 20.0), ("own", "full", 40.0)):  # the model's own pooling is max
        way = evaluators(32, size=size, pool=pool).items()
        name = "full" if size == "full" else pool
        evals += [(f"{n}_{name}", c, [percent("top1", more + i, chance=5)]) for i, (n, c) in enumerate(way)]
    found = cells(table("VTAB", make(tmp_path / "ways", evals=evals)))
    assert found["all mean of 19", "CLIP MAX low B/16"] == "19.0 (vtab); 49.0 (vtab full)"
    some = cells(table("VTAB", make(tmp_path / "some", evals=evals[1:20])))
    assert sorted(k[0] for k in some if "mean" in k[0]) == ["specialized mean of 4", "structured mean of 8"]
    assert list(cells(table("T1", tmp_path / "all")).values()) == ["99.0"]


def test_grounding_has_scores_as_rows(tmp_path):
    def found(iou):
        return [percent("gradcam_iou", iou), percent("gradcam_pointing", 56, chance=12),
                percent("gradcam_gap_matched_iou", 36, chance=6), percent("similarity_matched_iou", 40, chance=6),
                percent("baseline_center_pointing", 28.7)]  # fmt: skip

    paths = [
        make(tmp_path / pool, pool=pool, evals=[("g", settings("grounding", "scenes/demo"), found(iou))])
        for pool, iou in (("gap", 9.0), ("max", 5.0))
    ]
    one = table("Grounding", *paths)
    assert [r[1:] for r, _ in one.rows] == [
        ("pointing", "Grad-CAM", "chance 12.0 %"), ("pointing", "the centre, no map", ""),
        ("matched iou", "Grad-CAM, GAP", "chance 6.0 %"), ("matched iou", "similarity", "chance 6.0 %"),
        ("iou", "Grad-CAM", ""),
    ]  # fmt: skip
    assert not any(c.lines[0].best or c.lines[0].tied for _, held in one.rows for c in held)  # no items were kept


def test_numbers_keep_unit_direction_and_what_they_are_compared_with():
    given = [percent("accuracy", 50, chance=4, reference=30), percent("iou", 10), Metric("5_shot_sd", 2.0, "%"),
             Metric("loss", 1.5, "nats", "lower", interval=(1.0, 2.0))]  # fmt: skip
    found = runs.result(written({"step": 1, "metrics": {"v": given}}), "v").metrics
    assert [(m.name, m.value, m.unit, m.better, m.interval and tuple(m.interval)) for m in found] == [
        (m.name, m.value, m.unit, m.better, m.interval) for m in given
    ]
    assert [m.against for m in found] == [(("chance", 4), ("baseline", 30)), (), (), ()]


@pytest.mark.parametrize(
    "config,expected",
    [
        ({"data": {"source": {"kind": "tfds", "name": "imagenet2012:5.1.0", "split": "validation"}}},
         ("imagenet2012", "validation")),
        ({"data": {"source": {"kind": "tfds", "name": "", "dir": "/d/demo/1.0.0/", "split": "x"}}}, ("demo", "x")),
        ({"train": {"source": {"name": "a"}}, "test": {"source": {"name": "b/c", "split": "t"}}}, ("b/c", "t")),
        ({"data": {"source": {"kind": "questions", "of": {"name": "gqa", "split": "testdev"}}}}, ("gqa", "testdev")),
        ({"data": {"source": {"kind": "scenes"}}}, ("scenes", "")),
        ({}, ("", "")),
    ],
)  # fmt: skip
def test_the_data_set_of_an_evaluation(config, expected):
    assert grouping.data_set(config) == expected


def test_older_files_without_settings_take_those_of_the_config(tmp_path):
    path = make(tmp_path / "a", evals=[probe(50.0)])
    (file,) = (path / "evals").iterdir()
    one = json.loads(file.read_text())
    config = json.loads((path / "config.json").read_text()) | {"evals": one.pop("settings")}
    file.write_text(json.dumps(one))
    (path / "config.json").write_text(json.dumps(config))
    assert list(cells(table("T1", path)).values()) == ["50.0 | 52.6"]


def picture(path, rows=2, columns=3, width=1):
    size = 8 * width
    Image.fromarray(np.full((rows * (size + 2) - 2, columns * size, 3), 90, np.uint8)).save(path)


def two_steps(kind, first, second):
    """An evaluation whose metrics are `first`'s at one step and `second`'s at the next."""
    (name, config, a), (_, _, b) = kind(first), kind(second)
    return name, config, [dataclasses.replace(m, value=[m.value, n.value]) for m, n in zip(a, b)]


def everything(folder):
    """Workdirs that fill every part of the page."""
    seeds = [
        make(folder / f"gap{n}", pool="gap", seed=n, steps=(50, 100),
             evals=[two_steps(shot, 40.0 + n, 50.0 + n), two_steps(probe, 60.0, 62.5 + n)])
        for n in range(2)
    ]  # fmt: skip
    found = [percent("gradcam_pointing", 55, chance=7.5)]
    evals = [two_steps(shot, 45.5, 57.0), ("ground", settings("grounding", "segment"), found),
             ("seg", settings("segmentation", "voc_segmentation"), [percent("miou", 33.3, reference=3.5)])]  # fmt: skip
    small = make(folder / "small", scale="demo", size="B/16", evals=[shot(30.0)])
    large = make(folder / "max", scale="high", evals=evals, steps=(50, STEPS["high"]))
    last = large / "evals" / f"{STEPS['high']}.json"
    one = json.loads(last.read_text())
    sheet = {"kind": "sheet", "picture": "sheet", "columns": ["image", "mask", "map"], "rows": 2, "gap": 2, "note": ""}
    sheet |= {"legend": [["dog", "#00ff00"], ["evil", "red;x:y"]]}
    one["details"] = {"ground/sheet": sheet | {"rows_text": ["a <red> cube", "a dog"]}}
    one["pictures"] = {"ground/sheet": "sheet.png"}
    last.write_text(json.dumps(one))
    picture(large / "evals" / "sheet.png", width=100)
    return [*seeds, small, large, vqa(folder / "v", large, 66.0)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    assert main(["--tables", *map(str, everything(folder / "runs")), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_the_page_is_one_file_and_shows_everything(page):
    html = (page / "index.html").read_text()
    links = re.findall(r'(?:src|href|srcset)="([^"]*)"', html)
    assert links and all(x.startswith("data:image/") for x in links)
    for piece in ("T1. Linear probe", "T2. VQA finetuning", "T3. Pooling", "Zero-shot segmentation", "Grounding",
                  "a &lt;red&gt; cube", "background:#00ff00",
                  "Accuracy against examples seen", "Accuracy against different pairs read", "chance 7.5 %",
                  "T4. Zero-shot retrieval and visual actions; Nearest neighbours and few shots; VTAB.",
                  "63.0", "paper, 1.4B: 63.7 (slides)", "± 6.4 (2 seeds, sd 0.7)", "VQA finetuning"):  # fmt: skip
        assert piece in html or piece in re.sub(r"<[^>]+>", " ", html), piece
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(d))).size
        for d in re.findall(r"data:image/(?:png|jpeg);base64,([^\"]+)", html)
    ]
    assert sizes == [(2400 * 2 // 3, 800 * 2 // 3)] * 2  # rows of a sheet, no wider than the page needs


def test_markdown_says_the_same(page):
    text = (page / "report.md").read_text()
    assert (
        "| CLIP | GAP | 1.64M | B/16 | 1.64M | 50.5 ± 6.4 (2 seeds, sd 0.7) | 63.0 ± 6.4 (2 seeds, sd 0.7) · not the "
        "paper's 11.3M: 1.64M pairs read, not 11.3M; 1.64M examples seen, not 339M |" in text in text
    )
    assert "| CLIP | MAX | 1.4B | B/16 | 2.8B | 57.0 · paper, 1.4B: 63.7 (slides) |  |" in text
    for name in re.findall(r"!\[.*?\]\((\S+)\)", text):
        assert Image.open(page / name).size[0] > 0


def test_no_number_is_invented(page, tmp_path):
    """Every percent of the tables comes from a workdir or from the paper."""
    known = {f"{v:.1f}" for columns, rows, _ in paper.TABLES.values() for values in rows.values() for v in values}
    for path in (page.parent / "runs").glob("*/evals/*.json"):
        one = json.loads(path.read_text())
        numbers = [*one["metrics"].values(), *(a[k] for a in one["about"].values() for k in ("chance", "reference"))]
        known |= {tables.line([v], "%").text for v in numbers if v is not None}
    means = [tables.line(v, "%") for v in ([50.0, 51.0], [62.5, 63.5], [60.0, 61.0])]
    known |= {x.text for x in means} | {n for x in means for n in re.findall(r"[\d.]+", x.spread)}
    body = (page / "report.md").read_text().split("## The runs")[0]
    body += (page / "report.md").read_text().split("## All numbers")[1]
    rows = [line.split("|")[4:] for line in body.splitlines() if line.startswith("|") and "---" not in line]
    shown = {n for row in rows for cell in row for n in re.findall(r"(?<![\w./])\d+\.\d+(?![\w.])", cell)}
    assert len(shown) > 20 and shown <= known | {"11.3", "1.4", "1.64"}, shown - known


def test_curves(page):
    found, numbers, _ = read(*sorted((page.parent / "runs").iterdir()))
    drawings = dict(trends.against_examples(found))
    assert sorted(drawings) == [
        "Grounding, segment test: gradcam pointing",
        "Linear probe, ImageNet validation: top-1",
        "Segmentation, Pascal VOC test: mean IoU",
        "Zero shot, ImageNet validation: top-1",
    ]
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    drawings["Zero shot, ImageNet validation: top-1"](ax)
    data = sorted((list(x.get_xdata()), list(x.get_ydata())) for x in ax.lines[:4])
    few, large = [50 * 16384, 100 * 16384], [50 * 16384, STEPS["high"] * 16384]
    assert data == sorted([(few, [40.0, 50.0]), (few, [41.0, 51.0]), (large, [45.5, 57.0]), ([1000], [30.0])])
    assert [t.get_label() for t in ax.lines if t.get_label()[0] != "_"] == [
        "CLIP GAP low B/16",
        "CLIP MAX demo B/16",
        "CLIP MAX high B/16",
        "chance",
    ]
    _, ax = plt.subplots()
    ((title, draw),) = trends.against_pairs(numbers)
    draw(ax)
    assert title == "Zero shot, ImageNet validation: top-1" and ax.get_xscale() == "log"
    drawn = sorted((list(x.get_xdata()), list(x.get_ydata())) for x in ax.lines)
    assert ([1000, 1_400_000_000], [30.0, 57.0]) in drawn and ([1638400], [50.5]) in drawn
    bar = statistics_of.of_seeds([50.0, 51.0])
    assert ([1638400, 1638400], list(bar)) in drawn and len(drawn) == 3
    plt.close("all")


def points(drawing):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    drawing(ax)
    found = {x.get_label(): list(zip(x.get_xdata(), x.get_ydata())) for x in ax.lines if x.get_label()[0] != "_"}
    plt.close("all")
    return found


def test_curves_join_only_what_differs_in_the_number_of_pairs(tmp_path):
    """Other sizes, and other sets of as many pairs, are lines of their own, not seeds of one model."""
    few = make(tmp_path / "few", scale="demo", size="B/16", evals=[shot(30.0)])
    other = make(tmp_path / "other", scale="demo", size="L/14", evals=[shot(50.0)])
    large = make(tmp_path / "large", scale="high", size="B/16", evals=[shot(57.0)])
    ((_, drawing),) = trends.against_pairs(read(few, other, large)[1])
    assert {name: [y for _, y in at] for name, at in points(drawing).items()} == {
        "CLIP MAX B/16": [30.0, 57.0], "CLIP MAX L/14": [50.0]
    }  # fmt: skip
    sets = [make(tmp_path / n, scale=n, size="B/16", evals=[shot(v)]) for n, v in (("web", 40.0), ("clean", 60.0))]
    assert trends.against_pairs(read(*sets, large)[1]) == []  # the line of a set has one point


def test_two_evaluators_of_one_kind_are_two_figures(tmp_path):
    pair = [two_steps(probe, 60.0, 62.0), (two_steps(probe, 20.0, 25.0)[0] + "_raw", *two_steps(probe, 20.0, 25.0)[1:])]
    path = make(tmp_path / "a", steps=(50, 100), evals=pair)
    drawings = dict(trends.against_examples(read(path)[0]))
    title = "Linear probe, ImageNet validation: top-1"
    assert sorted(drawings) == [f"{title} (probe)", f"{title} (probe_raw)"]
    assert [20, 25] in [[y for _, y in at] for at in points(drawings[f"{title} (probe_raw)"]).values()]


def test_models_with_as_many_pairs_are_not_seeds_of_one(tmp_path):
    sets = [make(tmp_path / n, scale=n, size="B/16", evals=[probe(v)]) for n, v in (("web", 40.0), ("clean", 60.0))]
    found = cells(table("T1", *sets))
    assert {row: text.split()[0] for (row, _), text in found.items() if "CLIP" in row and not text.startswith("|")} == {
        "ImageNet CLIP MAX B/16 web chance 0.1 %": "40.0", "ImageNet CLIP MAX B/16 clean chance 0.1 %": "60.0"
    }  # fmt: skip


def test_pairs_of_a_mix_are_read_by_their_shares(tmp_path):
    """Of 1,000 and 1,000,000 records half each, 20,000 examples read 1,000 and 10,000 different ones."""
    path = make(tmp_path / "a", scale="web", size="B/16", evals=[probe(40.0)])
    (path / "data.json").write_text(json.dumps({"few": {"records": 1000}, "many": {"records": 1_000_000}}))
    config = json.loads((path / "config.json").read_text())
    config["data"] = {"source": None, "mix": [["few", 0.5, {}], ["many", 0.5, {}]]}
    (path / "config.json").write_text(json.dumps(config))
    run = runs.read(path)
    assert run.examples(2000) == 20_000 and run.pairs(2000) == 11_000
    assert run.pairs(10_000_000) == 1_001_000


def test_numbers_of_an_earlier_step_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "render", lambda *_: b"\x89PNG")
    path = make(tmp_path / "a", steps=(50, 100), evals=[two_steps(shot, 40.0, 50.0), two_steps(probe, 60.0, 62.0)])
    last = path / "evals" / "100.json"
    one = json.loads(last.read_text())
    for part in ("metrics", "about"):
        one[part] = {k: v for k, v in one[part].items() if not k.startswith("probe/")}
    for part in ("settings", "seconds"):
        one[part].pop("probe", None)
    last.write_text(json.dumps(one))
    report.collect([path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "probe of " in text and "was last measured after" in text and "others after" in text


def test_runs_without_evaluations_and_runs_given_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "render", lambda *_: b"\x89PNG")
    path = make(tmp_path / "sweep" / "a", steps=())
    report.collect([path, f"{path}/", tmp_path / "sweep"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "tables from 1 run\n" in text and "- a has not been evaluated." in text
    assert "T1. Linear probe; T2. VQA finetuning;" in text


@pytest.mark.parametrize(
    "argv,message",
    [
        (
            ["--tables", "{}/none", "--out", "{}/out"],
            r"no workdir at '.*none'; valid: a folder that a run was given as",
        ),
        (["--tables", "{}/bare", "--out", "{}/out"], r"'.*bare' is not a workdir: it has no config.json; valid"),
        (["--tables", "{}/good"], r"--tables needs a folder to write to; valid: --tables WORKDIR\.\.\. --out DIR"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, message):
    (tmp_path / "bare").mkdir()
    make(tmp_path / "good")
    assert main([a.format(tmp_path) for a in argv]) == 2
    assert re.fullmatch(rf"error: {message}[^\n]*\n", capsys.readouterr().err)


def test_numbers_of_the_paper():
    assert paper.number(paper.PROBE, "CLIP", "gap", "high", "validation") == 75.9  # T3 knows the pooling, T1 does not
    assert paper.number(paper.PROBE, "CLIP", "cls", "high", "validation") is None
    assert paper.number(paper.PROBE, "CLIP", "cls", "low", "validation") == 52.6
    assert paper.number(paper.PROBE, "CLIP", "gap", "low", "train") is None
    assert paper.number(paper.GQA, "MAE-CLIP", "max", "high", "testdev") == 55.3
    for columns, rows, note in paper.TABLES.values():
        assert note and all(len(v) == len(columns) for v in rows.values())
    # T1 and T3 agree where both have a number.
    t1, t3 = paper.T1[1], paper.T3[1]
    assert all(v[0] == t3[k][1] for k, v in t1.items() if k in t3)


def kept(path, metric, items, step=None):
    """Keeps the items of a metric with a run."""
    step = step or int(next(p for p in (path / "evals").glob("*.json")).stem)
    items_file(path, step).write_bytes(to_bytes(items_table({metric: items})))
    return path


def arm(path, right, pool, seed=0):
    made = Items(100 * np.asarray(right))
    return kept(
        make(path, pool=pool, scale="demo", size="demo", seed=seed, evals=[shot(made.mean())]), "zero/top1", made
    )


def test_bold_is_what_a_test_separates_and_noise_is_said_to_be_noise(tmp_path):
    random = np.random.default_rng(0)
    gap = random.random(640) < 0.46
    same, better = gap ^ (random.random(640) < 0.02), gap | (random.random(640) < 0.2)
    paths = [arm(tmp_path / "gap", gap, "gap"), arm(tmp_path / "max", better, "max")]
    first = [row[1][0].lines[0] for row in table("T3", *paths).rows]
    assert [(x.best, x.tied) for x in first] == [(False, False), (True, False)]
    noise = arm(tmp_path / "cls", same, "cls")
    lines = [row[1][0].lines[0] for row in table("T3", paths[0], noise).rows]
    assert [(x.best, x.tied) for x in lines] == [(False, True)] * 2 and str(lines[0]).endswith("≈")
    lines = [row[1][0].lines[0] for row in table("T3", *paths, noise).rows]
    assert sorted((x.best, x.tied) for x in lines) == [(False, False), (False, False), (True, False)]
    old = make(tmp_path / "old", pool="map", scale="demo", size="demo", evals=[shot(10.0)])  # without items
    lines = [row[1][0].lines[0] for row in table("T3", paths[1], old).rows]
    assert not any(x.best or x.tied for x in lines)


def test_seeds_have_to_differ_as_well_as_items(tmp_path):
    """Thousands of pictures tell any two runs apart; whether the models differ, seeds say."""
    random = np.random.default_rng(1)
    easy = random.random(5000)
    paths = [
        arm(tmp_path / f"{pool}{seed}", easy < share, pool, seed)
        for pool, shares in (("gap", (0.50, 0.60)), ("max", (0.54, 0.64))) for seed, share in enumerate(shares)
    ]  # fmt: skip
    lines = [row[1][0].lines[0] for row in table("T3", *paths).rows]
    assert [(x.best, x.tied) for x in lines] == [(False, True)] * 2
    alone = [row[1][0].lines[0] for row in table("T3", paths[0], paths[2]).rows]
    assert [x.best for x in alone] == [False, True]


@pytest.mark.parametrize("change, words", [
    (dict(records=113_000), "113k pairs read, not 11.3M"),
    (dict(records=None), "pairs read not known"),
    (dict(steps=(10_000,)), "164M examples seen, not 339M"),
    (dict(batch_size=4096, steps=(4 * 20691,)), "batch_size 4096, not 16384"),
    (dict(data={"source": {"name": "photos"}}), "data.source.name photos, not cc12m"),
    (dict(data={"source": {"split": "train[:1%]"}}), "data.source.split train[:1%], not train"),
    (dict(optim={"lr": 0.1}), "optim.lr 0.1, not 0.0005"),
    (dict(model={"weights": {"image": 0.0, "text": 0.0}}), "weights.image 0.0, not 0.1; weights.text 0.0, not 0.05"),
    (dict(total="1 epochs"), "total 1 epochs, not 30 epochs"),
    (dict(settings={"standardise": False}), "solver"),
])  # fmt: skip
def test_the_paper_stands_beside_the_shipped_run_and_else_the_cell_says_why_not(tmp_path, change, words):
    change = dict(change)
    records, given = change.pop("records", RECORDS["low"]), change.pop("settings", {})
    more = {"solver": dict(type="lbfgs", **given)} if given else {}
    path = make(tmp_path / "a", "mae_clip", evals=[probe(60.0, **more)], **change)
    (path / "data.json").write_text(json.dumps({"train": {"records": records} if records else {}}))
    (cell,) = (c for _, row in table("T1", path).rows for c in row if c.lines)
    assert not cell.paper and words in cell.apart, cell.apart
    column = next(c[0] for c, held in zip(table("T1", path).columns, table("T1", path).rows[0][1]) if held.lines)
    assert column == {113_000: "113k pairs", None: "unknown pairs"}.get(records, "11.3M pairs")


def test_the_argument_is_no_evidence(tmp_path):
    """The word scale=low alone puts nothing into the paper's column."""
    path = make(tmp_path / "a", evals=[probe(50.0)])
    assert list(cells(table("T1", path)).values()) == ["50.0 | 52.6"]
    (path / "data.json").write_text(json.dumps({"train": {"records": 1000}}))
    assert {c for _, c in cells(table("T1", path))} == {"1k pairs"}

"""Suites of evaluations on a checkpoint: the same numbers on 1 device, 8, and 2 processes; features made once; mistakes
named, the others done."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from maeclip_jax import main
from maeclip_jax.data import ops, pipeline
from maeclip_jax.data.image_ops import sample_box
from maeclip_jax.errors import UserError
from maeclip_jax.run import evaluate
from tests import runs, suite

ARG = "steps=12,save=6"
SUITE = "--config.evals=tests/suite.py"


def evaluated(workdir, devices):
    config = runs.config(ARG, resume=str(runs.whole(8, ARG)))
    config.evals = suite.get_evals(config)
    evaluate.run(config, workdir, devices=jax.devices()[:devices])
    return runs.result(workdir, 12)


@pytest.fixture(scope="module")
def passes():
    """The ops of every pass over data that `on_one` makes."""
    return []


@pytest.fixture(scope="module")
def on_one(passes):
    runs.whole(8, ARG)  # before passes are counted: it evaluates, too
    real = pipeline.Data.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline.Data, "evaluate", lambda self, **kw: (passes.append(self.config["ops"]), real(self, **kw))[1]
        )
        return evaluated(runs.folder() / "suite-1", 1)


def assert_same(have, want):
    """To float tolerance; scores of maps to a few pixels, which rounding may put on either side of a border."""
    assert have["metrics"].keys() == want["metrics"].keys()
    for name, value in want["metrics"].items():
        of_pixels = name.split("/")[0] in ("grounding", "segmentation")
        # Percent. A pixel of a mask of 140 in one query of 20 is 0.04; a map that is cut to the size of a mask takes
        # another pixel for each that it loses, and one such exchange with a mask of 50 is 0.064.
        atol = (0.07 if name.endswith("matched_iou") else 0.05) if of_pixels else 1e-4
        np.testing.assert_allclose(have["metrics"][name], value, rtol=1e-4, atol=atol, err_msg=name)


def test_eight_devices_give_what_one_gives(on_one, tmp_path):
    have = evaluated(tmp_path, 8)
    assert {n.split("/")[0] for n in have["metrics"]} == {
        "zero_shot", "knn", "linear_probe", "few_shot", "segmentation", "grounding"
    }  # fmt: skip
    assert_same(have, on_one)


@pytest.mark.long
def test_two_processes_give_what_one_gives(on_one, tmp_path):
    given = [f"--config.resume={runs.whole(8, ARG)}", "--mode=eval", SUITE]
    processes = runs.together(tmp_path / "two", ARG, *given, devices=1)
    assert runs.wait(processes) == [0, 0], [runs.text(tmp_path / f"two.{i}.txt") for i in (0, 1)]
    assert_same(runs.result(tmp_path / "two", 12), on_one)


def test_every_picture_of_a_data_set_is_encoded_once_for_all_who_need_it(on_one, passes):
    evals = suite.get_evals(None)
    wanted = (evals["knn"]["data"], evals["knn"]["train"], evals["grounding"]["data"])
    test, train, masked = (d["ops"] for d in wanted)
    # Zero-shot, k-NN, probe and few-shot want three kinds of features of two data sets; maps need each picture anew.
    assert sorted(passes) == sorted([test, train, masked, masked])


def run_main(*argv):
    return main.main([f"--config=tests/tiny.py:{ARG}", "--mode=eval", "--cache=", *argv])


def test_what_cannot_be_evaluated_is_named_and_the_rest_is_done(tmp_path, capfd, caplog):
    reference = runs.whole(8, ARG)
    code = run_main(f"--workdir={tmp_path}", f"--config.resume={reference}", f"{SUITE}:broken", "--cpu_devices=8")
    out = capfd.readouterr()
    assert code == 2
    (line,) = [text for text in out.err.splitlines() if text.startswith("error: ")]
    assert "evaluation missing failed: no data set 'nowhere' at " in line
    assert "evaluation misnamed failed: zero_shot: `classes` has 2 class names, the data source 9" in line
    assert "evaluation unmasked failed: segmentation needs the names" in line or "unmasked failed" in line
    assert "eval unread: n/a, this objective answers no questions; finetune it with experiments/vqa.py" in out.out
    done = runs.result(tmp_path, 12)
    assert {"knn", "zero_shot", "grounding"} <= done["seconds"].keys() and "missing" not in done["seconds"]
    assert done["settings"]["knn"]["type"] == "knn" and done["not_applicable"].keys() == {"unread"}


def test_results_of_other_settings_are_made_again(tmp_path, capsys):
    config = runs.config(ARG, resume=str(runs.whole(8, ARG)))
    knn = suite.get_evals(config)["knn"]
    config.evals = dict(knn=knn)
    first = evaluate.run(config, tmp_path)
    assert evaluate.run(config, tmp_path) == {} and "delete it to evaluate again" in capsys.readouterr().out
    config.evals = dict(knn=knn | dict(k=2))
    second = evaluate.run(config, tmp_path)
    assert first.keys() - second.keys() == {"knn/top1_k1"}
    assert runs.result(tmp_path, 12)["metrics"].keys() == second.keys()  # nothing of the old settings stays


def test_results_of_two_checkpoints_are_not_put_together(tmp_path):
    """A file of results has the name of its step alone, and two runs may have the same steps."""
    first, second = runs.whole(8, ARG), runs.copy(runs.whole(8, ARG), tmp_path / "second")
    config = runs.config(ARG, resume=str(first))
    config.evals = dict(knn=suite.get_evals(config)["knn"])
    assert evaluate.run(config, tmp_path / "results") and evaluate.run(config, tmp_path / "results") == {}
    config.resume = str(second)
    with pytest.raises(UserError, match=f"holds results of {first}/checkpoints/12; name another --workdir for those"):
        evaluate.run(config, tmp_path / "results")


def test_parameters_are_not_evaluated_as_another_model(tmp_path):
    config = runs.config(ARG, resume=str(runs.whole(8, ARG)))
    config.model.compute.dtype = "bfloat16"  # how it is computed may differ
    config.evals = dict(knn=suite.get_evals(config)["knn"])
    assert evaluate.run(config, tmp_path / "rounded")
    was = config.model.image_tower.pool
    config.model.image_tower.pool = "max" if was != "max" else "gap"
    with pytest.raises(UserError, match=f"is of another model: model.image_tower.pool '{was}' there and"):
        evaluate.run(config, tmp_path / "other")


def test_the_config_of_a_run_is_a_config(tmp_path):
    workdir = runs.copy(runs.whole(8, ARG), tmp_path / "run")
    values = main.parse([f"--config={workdir}/config.json", f"--workdir={workdir}", "--config.seed=7"])
    want = runs.config(ARG)
    assert values.config.seed == 7 and values.config.model.to_dict() == want.model.to_dict()
    assert json.loads(values.config.evals.to_json()) == json.loads(want.evals.to_json())
    chosen = main.parse([f"--config={workdir}/config.json", f"--workdir={workdir}", SUITE])
    assert set(chosen.config.evals) == set(suite.get_evals(None))


@pytest.mark.parametrize("argv, text", [
    (["--config=runs/nowhere/config.json"], "cannot read --config=runs/nowhere/config.json: "),
    (["--config=tests/tiny.py", "--config.evals=experiments/eval/nothing.py"],
     "no evaluation file 'experiments/eval/nothing.py'; here are: experiments/eval/folders.py, "),
    (["--config=tests/tiny.py", "--config.evals=experiments/eval/paper.py:only=imagnet"],
     "unknown set 'imagnet' (did you mean 'imagenet'?); valid: coco, coco_a, "),
    (["--config=tests/tiny.py", "--config.evals=experiments/eval/folders.py"],
     "no data sets named; valid: folders.py:"),
    (["--config=tests/tiny.py", "--config.evals=experiments/eval/vtab.py:which=nature"],
     "unknown VTAB task 'nature' (did you mean 'natural'?); valid: all, natural, "),
])  # fmt: skip
def test_a_mistake_in_a_suite_is_one_line(argv, text, capfd):
    assert main.main([*argv, "--mode=eval", "--workdir=unused"]) == 2
    assert runs.without_alarms(capfd.readouterr().err)[-1].startswith(f"error: {text}")


@pytest.mark.parametrize("name", ["scenes", "folders:classify=a+b,segment=c,retrieval=d", "paper", "vtab"])
@pytest.mark.parametrize("objective", ["mae", "clip"])
def test_suites_fit_any_objective(name, objective):
    """Ops parse, pictures have the size of the run, and every setting is one that its evaluator has."""
    import inspect
    from types import SimpleNamespace

    from maeclip_jax import evals
    from maeclip_jax.data import ops
    from maeclip_jax.evals.segmentation import window_places

    name, _, arg = name.partition(":")
    config = main.parse(
        [f"--config=experiments/{objective}.py:scale=photos", "--workdir=x",
         f"--config.evals=experiments/eval/{name}.py:{arg}"]
    ).config  # fmt: skip
    found, tower = config.evals, config.model.image_tower
    assert len(found) >= 4
    for entry in found.values():
        settings = entry.to_dict()
        kind = settings.pop("type")
        made = evals.table()[kind]
        assert set(settings) <= set(inspect.signature(made).parameters)
        for which in {"data", "train", "val"} & settings.keys():
            parsed = ops.parse(settings[which]["ops"], SimpleNamespace(tokenizer=object()))
            geometry = [s for s in parsed.steps if s.function.__name__ in ("resize", "resize_small", "center_crop")]
            assert "image" in parsed.names and geometry
            side = tower.size * (2 if "stride" in settings else 1)
            assert all(side in np.ravel([*s.args, *s.kwargs.values()]).tolist() for s in geometry)
        if "stride" in settings:
            assert len(window_places(2 * tower.size, tower.size, tower.patch, settings["stride"])) == 3


def suite_of(name, arg):
    command = ["--config=experiments/clip.py:scale=photos", "--workdir=x"]
    return main.parse([*command, f"--config.evals=experiments/eval/{name}.py:{arg}"]).config.evals


@pytest.mark.parametrize(
    "name, arg, want",
    [
        ("paper", "", {"imagenet_linear_probe", "imagenet_knn"}),
        ("paper", "pool=max", {"imagenet_linear_probe_max", "imagenet_knn_max"}),
        ("paper", "probe=lars", {"imagenet_linear_probe_lars", "imagenet_knn"}),
        ("paper", "probe=lars,pool=logsumexp(0.5)", {"imagenet_linear_probe_lars_logsumexp_0_5",
                                                     "imagenet_knn_logsumexp_0_5"}),
        ("vtab", "which=dtd", {"vtab_dtd"}),
        ("vtab", "which=dtd,size=full,pool=topk(4)", {"vtab_dtd_full_topk_4"}),
    ],
)  # fmt: skip
def test_another_way_of_measuring_has_a_name_of_its_own(name, arg, want):
    """Results of other settings under the same name would be lost."""
    found = suite_of(name, f"only=imagenet,{arg}" if name == "paper" else arg)
    assert {n for n, e in found.items() if e.type in ("linear_probe", "knn")} == want


def test_prompts_and_names_of_a_persons_own_stand_beside_ours():
    ours, theirs = (suite_of("paper", f"only=imagenet+imagenet_v2{w}") for w in ("", ",templates=a/openai.json"))
    assert {"imagenet_zero_shot", "imagenet_v2_zero_shot"} <= set(ours)
    assert {"imagenet_zero_shot_openai", "imagenet_v2_zero_shot_openai"} <= set(theirs)
    found = suite_of("paper", "only=imagenet,templates=a/openai.json,classes=names.txt").imagenet_zero_shot_openai_names
    assert (found.templates, found.classes) == ("a/openai.json", "names.txt")
    assert (ours.imagenet_zero_shot.templates, ours.imagenet_zero_shot.classes) == ("imagenet", "imagenet")


def test_only_the_probe_learns_from_augmented_pictures():
    found = suite_of("paper", "only=imagenet,probe=lars")
    assert "flip_lr" in found.imagenet_linear_probe_lars.train.ops
    assert found.imagenet_knn == suite_of("paper", "only=imagenet").imagenet_knn


def test_maes_probe_sees_pictures_as_mae_does():
    """Tested on the middle of 110 pixels for a model of 96, as of 256 for 224; crops and tests bicubic, antialiased."""
    probe = suite_of("paper", "only=imagenet,probe=lars").imagenet_linear_probe_lars
    assert "resize_small(110)|center_crop(96)" in probe.data.ops
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), np.uint8)
    context = SimpleNamespace(tokenizer=object())
    picture = Image.fromarray(pixels)
    seen = ops.parse(probe.data.ops, context)({"image": pixels, "label": 0}, np.random.default_rng(0))["image"]
    large = picture.resize((154, 110), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(seen, np.asarray(large.crop((29, 7, 29 + 96, 7 + 96))))
    for seed in range(4):
        seen = ops.parse(probe.train.ops, context)({"image": pixels, "label": 0}, np.random.default_rng(seed))["image"]
        top, left, height, width = sample_box(np.random.default_rng(seed), 300, 420, (0.08, 1), (3 / 4, 4 / 3))
        crop = picture.crop((left, top, left + width, top + height)).resize((96, 96), Image.Resampling.BICUBIC)
        assert any(np.array_equal(seen, x) for x in (np.asarray(crop), np.asarray(crop)[:, ::-1]))

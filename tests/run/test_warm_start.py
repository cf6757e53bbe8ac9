"""A warm start from a run of ours: settings that give the same shapes another meaning are refused, or said."""

import dataclasses
import functools
import re

import numpy as np
import pytest

from maeclip_jax import objectives
from maeclip_jax.errors import UserError
from maeclip_jax.params import flatten
from maeclip_jax.run.warm_start import MEANING, OMITTED, differences
from maeclip_jax.workdir.identity import all_leaves
from tests import runs
from tests.objectives import models

FROM = "runs/first"


def config(objective="mae_clip", **settings):
    return runs.config(f"objective={objective}", **settings)


@functools.cache
def paths(name="mae_clip") -> dict[str, str]:
    return {path: path for path in flatten(models.parameters(models.build(name)))}


def said(then, now, loaded=None) -> str:
    return differences(FROM, then.to_dict(), now, loaded or paths())


def refused(then, now, loaded=None) -> str:
    with pytest.raises(UserError) as error:
        said(then, now, loaded)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_same_settings_have_nothing_to_say_whatever_is_not_of_the_parameters():
    assert said(config(), config()) == ""
    other = {"optim.lr": 0.5, "model.keep": 0.5, "model.mask.image": 0.5, "model.image_tower.drop_path": 0.1, "seed": 3}
    assert said(config(), config(**other)) == ""
    assert differences(FROM, {}, config(), paths()) == f"; {FROM} has no config.json, so its settings were not compared"


@pytest.mark.parametrize("tower, top", [("image_tower", "image"), ("text_tower", "text"), ("decoder_tower", "decoder")])
def test_other_heads_are_refused_in_one_line_that_says_what_to_do(tower, top):
    text = refused(config(), config(**{f"model.{tower}.heads": 4}))
    assert text == (
        f"init_from 'runs/first': model.{tower}.heads is 4 here and 2 there, so its parameters {top}/... fit by their "
        f"shapes and compute something else; set --config.model.{tower}.heads=2, or leave them out: "
        rf"""--config.init_rules="((r'{top}/.*', ''), (r'(.*)', r'\1'))" """.strip()
    )
    without = {path: new for path, new in paths().items() if not path.startswith(f"{top}/")}
    assert said(config(), config(**{f"model.{tower}.heads": 4}), without) == ""


def test_an_activation_is_refused_unless_it_is_nearly_the_same():
    name = "model.image_tower.activation"
    assert "model.image_tower.activation is 'quick_gelu' here" in refused(config(), config(**{name: "quick_gelu"}))
    text = said(config(**{name: "gelu"}), config(**{name: "gelu_tanh"}))
    assert text == f"; set otherwise than there: {name} was 'gelu' and is 'gelu_tanh'"


@pytest.mark.parametrize(
    "name, other",
    [
        ("model.image_tower.pool", "max"), ("model.image_tower.cls", True), ("model.image_tower.norm_pre", True),
        ("model.image_tower.size", 64), ("model.text_tower.causal", True), ("model.text_tower.padding", "attended"),
        ("model.text_tower.projection", "affine"), ("model.stats", "cc12m"), ("model.norm_pix", False),
    ],
)  # fmt: skip
def test_what_may_be_changed_on_purpose_is_said(name, other):
    was = dict(all_leaves(config()))[name]
    text = said(config(), config(**{name: other}))
    assert text == f"; set otherwise than there: {name} was {was!r} and is {other!r}"


def test_settings_that_a_config_leaves_out_have_the_default_of_the_modules():
    then, now = config(), config()
    with now.unlocked():
        now.model.image_tower.update(eps=1e-6, position="sincos", cls_position=False, patch_bias=True)
        now.model.decoder_tower.eps = 1e-5
    assert said(then, now) == "; set otherwise than there: model.decoder_tower.eps was 1e-06 and is 1e-05"
    for name, value in OMITTED.items():
        owners = [objectives.table()[k] for k in ("clip", "mae_clip")]
        fields = {f.name: f.default for owner in owners for f in dataclasses.fields(owner)}
        if name in fields and name != "loss":
            assert fields[name] == value, name


def test_a_part_that_comes_from_another_is_compared_with_that_one():
    """M3AE's encoder of both into CLIP's image tower, by a rule."""
    then, now = config("m3ae", **{"model.image_tower.heads": 4}), config("clip")
    loaded = {p: p.replace("image_text/", "image/") for p in paths("m3ae") if p.startswith("image_text/trunk")}
    text = refused(then, now, loaded)
    assert "model.image_tower.heads is 2 here and 4 there, so its parameters image_text/... fit" in text
    then.model.image_tower.heads = 2
    assert said(then, now, loaded) == (
        "; set otherwise than there: model.image_tower.cls was True and is False, model.image_tower.pool was 'cls' "
        "and is 'gap', model.stats was 'cc12m' and is 'imagenet'"
    )


def test_every_part_of_every_objective_says_what_it_depends_on():
    """A part without an entry is one whose parameters mean the same whatever is set."""
    tops = {path.partition("/")[0] for name in objectives.table() for path in paths(name)}
    assert tops - set(MEANING) == {
        "log_logit_scale", "simclr_head", "distil_head", "patch_head", "mask_token"
    }  # fmt: skip
    trunks = {path.partition("/")[0] for name in objectives.table() for path in paths(name) if "/trunk/" in path}
    for top in trunks:
        assert any({"heads", "activation"} <= set(names) for names in MEANING[top].values()), top


def test_a_run_refuses_a_decoder_of_other_heads_and_takes_the_advice(tmp_path, capsys):
    first = runs.whole(8)
    arg, other = "steps=1,evals=false,examples=false", {"init_from": str(first), "model.decoder_tower.heads": 4}
    with pytest.raises(UserError, match=r"model.decoder_tower.heads is 4 here and 2 there") as error:
        runs.run(tmp_path / "refused", arg, 1, **other)
    rules = re.search(r'--config.init_rules="(.*)"$', str(error.value))[1]
    runs.run(tmp_path / "taken", arg, 1, **other, init_rules=eval(rules), **{"model.image_tower.pool": "max"})
    said = capsys.readouterr().out
    assert re.search(
        r"parameters loaded; fresh: \d+ \(decoder\); unused: none; set otherwise than there: model.image_tower.pool "
        r"was 'gap' and is 'max'\n",
        said,
    )
    assert np.isfinite(runs.series(tmp_path / "taken")[1])

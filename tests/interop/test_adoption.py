"""`--config.init_from=hf-clip:/path`: towers become those of the weights, the experiment stays."""

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest

from maeclip_jax import interop, main, objectives
from maeclip_jax.config import read
from maeclip_jax.errors import UserError
from maeclip_jax.interop import adoption
from maeclip_jax.nn.tower import Encoder
from maeclip_jax.objectives import streams
from maeclip_jax.params import flatten, stack_layers
from maeclip_jax.run import checkpoint, train
from maeclip_jax.run.warm_start import init_params
from tests.interop import foreign


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return foreign.hf_clip(tmp_path_factory.mktemp("clip") / "m")


def parsed(clip, experiment="experiments/mae_clip.py:runlocal", *more):
    argv = [f"--config={experiment}", "--workdir=unused", f"--config.init_from=hf-clip:{clip[0]}", *more]
    return main.parse(argv).config


def test_towers_are_those_of_the_weights_and_the_experiment_stays(clip):
    plain = main.parse(["--config=experiments/mae_clip.py:runlocal", "--workdir=unused"]).config
    config = parsed(clip)
    theirs = foreign.clip_config().model
    own = dict(pool="gap", drop_path=0.0)
    assert config.model.image_tower.to_dict() == theirs.image_tower.to_dict() | dict(size=32) | own
    assert config.model.text_tower.to_dict() == theirs.text_tower.to_dict() | dict(length=16) | own
    assert config.model.embed_width == 8 and config.model.stats == "clip"
    assert config.tokenizer.to_dict() == dict(type="clip", path=str(clip[0] / "merges.txt"))
    for name in ("decoder_tower", "mask", "weights", "loss", "compute", "decode"):
        assert config.model[name] == plain.model[name]
    assert config.data == plain.data and config.evals == plain.evals and config.optim == plain.optim


def test_what_init_rules_leave_out_is_not_adopted(clip):
    rules = r"--config.init_rules=((r'(image/.*)', r'\1'),)"
    config = parsed(clip, "experiments/clip.py:runlocal", rules)
    assert config.model.image_tower.norm_pre and "norm_pre" not in config.model.text_tower
    assert config.tokenizer.path == "scenes"


@pytest.mark.parametrize("experiment", ["clip", "mae_clip", "vqa"])
def test_what_weights_do_not_say_stays(clip, experiment):
    """The share of dropped paths was thrown away with the tower."""
    dropped = [f"--config.model.{tower}_tower.drop_path={x}" for tower, x in (("image", 0.2), ("text", 0.1))]
    config = parsed(clip, f"experiments/{experiment}.py:runlocal", *dropped)
    theirs = foreign.clip_config().model
    assert (config.model.image_tower.drop_path, config.model.text_tower.drop_path) == (0.2, 0.1)
    assert config.model.image_tower.width == theirs.image_tower.width
    adoption.parameters(config, {})


def test_a_head_that_weights_do_not_have_stays(tmp_path):
    """A MAE ends at its tokens: how they are projected is the experiment's."""
    mae = ml_collections.ConfigDict(dict(objective="mae", model=foreign.mae_model()))
    interop.save("hf-vit-mae", mae, foreign.random_params(mae), tmp_path)
    argv = ["--config=experiments/clip.py:runlocal", "--workdir=x", f"--config.init_from=hf-vit-mae:{tmp_path}"]
    config = main.parse([*argv, "--config.model.image_tower.projection=affine"]).config
    assert config.model.image_tower.projection == "affine" and config.model.image_tower.width == 24
    with pytest.raises(UserError, match=r"model\.image_tower\.norm_pre is True here and False there; leave the towers"):
        main.parse([*argv, "--config.model.image_tower.norm_pre=True"])
    config = main.parse(["--config=experiments/siglip.py:runlocal", *argv[1:]]).config
    assert config.model.image_tower.projection == "none" and config.model.embed_width == 24
    fresh(config)


def test_every_setting_of_a_tower_is_of_the_weights_or_of_the_experiment(clip):
    """A new one belongs into IMPLIED if weights that do not say it imply its default, else among those that stay."""
    encoder = {f.name: f.default for f in dataclasses.fields(Encoder)}
    shapes = {"width", "depth", "heads"}
    known = set(adoption.IMPLIED) | shapes | {"drop_path", "image", "text", "compute", "name", "parent"}
    assert set(encoder) - known == set()
    for name in set(adoption.IMPLIED) & set(encoder):
        assert adoption.IMPLIED[name] == encoder[name], name
    embedding = set(streams.EMBEDDING) | set(streams.HEAD)
    described = {"patch", "vocab", "position"} | set(adoption.IMPLIED) | set(adoption.OWN)
    assert embedding - described == {"std", "projection"}


def open_clip_file(folder):
    """A file of open_clip's that nobody knows, with its words beside."""
    from maeclip_jax.interop import openai_clip
    from tests.interop import test_clip_family as family

    (folder / "merges.txt").write_text(foreign.MERGES)
    return family.write(folder, family.openai_arrays(2, openai_clip.VOCAB))


def test_heads_that_no_file_says_come_from_the_command_line(tmp_path):
    path = open_clip_file(tmp_path)
    argv = ["--config=experiments/mae_clip.py:runlocal", "--workdir=x", f"--config.init_from=open_clip:{path}"]
    argv.append("--config.model.text_tower.vocab=49408")
    whose = [f"--config.model.{tower}_tower.heads=" for tower in ("image", "text")]
    for said, tower in (((), "image"), ((f"{whose[0]}4",), "text")):
        with pytest.raises(UserError) as e:
            main.parse([*argv, *said])
        assert f"nothing says how many heads the {tower} tower has, which is 128 wide; say it: --config.model." in str(
            e.value
        )
        assert str(e.value).endswith(f"--config.model.{tower}_tower.heads=N") and "\n" not in str(e.value)
    with pytest.raises(UserError, match="the image tower is 128 wide, which does not divide into 3 heads"):
        main.parse([*argv, f"{whose[0]}3", f"{whose[1]}2"])
    config = main.parse([*argv, f"{whose[0]}4", f"{whose[1]}2"]).config
    assert (config.model.image_tower.heads, config.model.text_tower.heads) == (4, 2)
    have, _ = adoption.parameters(config, {})
    want = flatten(interop.load("open_clip", path, heads=dict(image=4, text=2)).params)
    assert set(have) == set(want) and all(np.array_equal(have[p], want[p]) for p in want)


def test_who_leaves_a_tower_out_need_not_say_its_heads(tmp_path):
    """Neither by the rules nor because the experiment has no such tower."""
    from tests.interop.test_mae_family import mae_config, of, official

    path = open_clip_file(tmp_path)
    argv = ["--config=experiments/clip.py:runlocal", "--workdir=x", r"--config.init_rules=((r'(image/.*)', r'\1'),)"]
    own = main.parse(argv).config.model.text_tower
    config = main.parse([*argv, f"--config.init_from=open_clip:{path}", "--config.model.image_tower.heads=2"]).config
    assert config.model.image_tower.heads == 2 and config.model.text_tower == own
    have, _ = adoption.parameters(config, {})
    assert have and all(p.startswith("image/") for p in have)

    mae = mae_config()
    np.savez(tmp_path / "mae.npz", **official(mae, of(mae)))
    argv = ["--config=experiments/clip.py:runlocal", "--workdir=x", f"--config.init_from=mae:{tmp_path / 'mae.npz'}"]
    config = main.parse([*argv, "--config.model.image_tower.heads=1"]).config
    assert config.model.image_tower.width == 64 and "decoder_tower" not in config.model
    have, _ = adoption.parameters(config, {})
    want = interop.load("mae", tmp_path / "mae.npz", heads=dict(image=1, decoder=1)).params
    assert np.array_equal(
        have["image/trunk/blocks/attention/qkv/kernel"], flatten(want)["image/trunk/blocks/attention/qkv/kernel"]
    )


def test_what_the_weights_say_is_not_changed_by_a_setting(clip):
    """It was overwritten without a word."""
    for setting, message in (
        ("image_tower.heads=4", "heads is 4 here and 3 there"),
        ("text_tower.depth=5", "depth is 5 here and 2 there"),
        ("image_tower.activation=gelu", "activation is 'gelu' here and 'quick_gelu' there"),
        ("text_tower.padding=attended", "padding is 'attended' here and 'masked' there"),
    ):
        with pytest.raises(UserError, match=rf"model\.{setting.partition('.')[0]}.{message}; leave the towers to the"):
            parsed(clip, "experiments/mae_clip.py:runlocal", f"--config.model.{setting}")
    config = parsed(clip, "experiments/mae_clip.py:runlocal", "--config.model.image_tower.heads=3")
    assert config.model.image_tower.heads == 3


def test_what_was_adopted_once_needs_no_weights_again(clip, tmp_path):
    config = parsed(clip)
    before = config.to_dict()
    config.init_from = config.init_adopted = "hf-clip:/gone"
    adoption.adopt(config)
    assert config.model.to_dict() == before["model"]


def fresh(config):
    objective = objectives.make(config.objective, config.model)
    batch = {k: np.ones((2, *x.shape), x.dtype) for k, x in objective.inputs().items()}
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: objective.init({"params": key, "mask": key}, batch, train=True)["params"])
    return jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_values_arrive_with_positions_interpolated(clip, layers, caplog):
    config = parsed(clip, "experiments/mae_clip.py:runlocal", f"--config.model.compute.layers={layers}")
    config.model.image_tower.size = 64
    params = fresh(config)
    have, said = adoption.parameters(config, params)
    made, report = init_params(config.init_from, config.init_rules, params, have)
    assert report.endswith("(decoder); unused: none")
    made = stack_layers(flatten(made))
    for path, value in clip[1].items():
        if path == "text/embed_text/position":
            value = value[:16]
        if path != "image/embed_image/position":
            assert np.array_equal(made[path], value), path
    assert made["image/embed_image/position"].shape == (64, 12) and made["image/embed_image/position"].any()
    assert "arrays used, 0 left out; image/embed_image/position interpolated from 4x4 to 8x8; " in said
    assert "image_tower was trained with pool=cls, this config has gap" in caplog.text


def test_a_setting_changed_afterwards_is_refused(clip):
    config = parsed(clip)
    config.model.image_tower.activation = "gelu"
    with pytest.raises(UserError, match=r"model\.image_tower.activation is 'gelu' here and 'quick_gelu' there; leave"):
        adoption.parameters(config, {})


def test_a_mae_goes_on_as_mae_clip(tmp_path):
    """Pictures' tower and decoder are taken; words stay as they are."""
    mae = ml_collections.ConfigDict(dict(objective="mae", model=foreign.mae_model()))
    params = foreign.random_params(mae)
    interop.save("hf-vit-mae", mae, params, tmp_path)
    argv = ["--config=experiments/mae_clip.py:runlocal", "--workdir=x"]
    plain, config = (main.parse([*argv, *more]).config for more in ((), (f"--config.init_from=hf-vit-mae:{tmp_path}",)))
    assert config.model.image_tower.width == config.model.decoder_tower.width == 24
    assert config.model.text_tower == plain.model.text_tower and config.tokenizer == plain.tokenizer
    fresh_params = fresh(config)
    have, _ = adoption.parameters(config, fresh_params)
    made, report = init_params(config.init_from, config.init_rules, fresh_params, have)
    assert np.array_equal(made["image"]["cls"], params["image"]["cls"])
    assert "unused: 2 (decoder)" in report  # MAE-CLIP has an entrance to the decoder for each tower


def test_fixed_positions_of_another_size_are_said(tmp_path):
    mae = ml_collections.ConfigDict(dict(objective="mae", model=foreign.mae_model()))
    interop.save("hf-vit-mae", mae, foreign.random_params(mae), tmp_path)
    argv = ["--config=experiments/mae_clip.py:runlocal", "--workdir=x", f"--config.init_from=hf-vit-mae:{tmp_path}"]
    config = main.parse(argv).config
    said = "the fixed positions of pictures are those of 8x8 patches, the weights know 4x4"
    assert said not in adoption.parameters(config, {})[1]
    config.model.image_tower.size = 64
    assert said in adoption.parameters(config, {})[1]


def test_mistakes_are_one_line(clip, tmp_path):
    for file in clip[0].iterdir():
        if file.name != "merges.txt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"its tokenizer's file is missing beside the weights; put it there \(merges"):
        parsed((tmp_path,))
    with pytest.raises(UserError, match=r"of up to 20 tokens, the config has 24: set model\.text_tower"):
        parsed(clip, "experiments/mae_clip.py:scale=demo")
    with pytest.raises(UserError, match="unknown kind of weights 'hf_clip'"):
        main.parse(["--config=tests/tiny.py", "--workdir=x", "--config.init_from=hf_clip:/x"])
    with pytest.raises(UserError, match=f"weights '{tmp_path}/none.bin': no such file"):
        main.parse(["--config=tests/tiny.py", "--workdir=x", f"--config.init_from=hf-clip:{tmp_path}/none.bin"])


def test_clip_goes_on_as_mae_clip(clip, tmp_path):
    """Trained for two steps without moving: the run holds the weights it began with."""
    still = ("--config.optim.lr=0.0", "--config.optim.weight_decay=0.0")
    config = parsed(clip, "tests/tiny.py:objective=mae_clip,steps=2,evals=false", *still)
    train.run(config, tmp_path, devices=jax.devices()[:1])
    state = checkpoint.read_numpy(checkpoint.locate(tmp_path) / "state", "params/")
    for path in ("image/trunk/blocks/mlp/up/kernel", "text_head/project/kernel", "image/norm_pre/scale"):
        assert np.array_equal(state[f"params/{path}"], clip[1][path])
    again = read(str(tmp_path / "config.json"))
    assert again.init_adopted == again.init_from == f"hf-clip:{clip[0]}"

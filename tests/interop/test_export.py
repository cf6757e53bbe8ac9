"""Models of ours as folders of other libraries, without these: what goes out, what is refused, what comes back."""

import copy
import json
import re

import jax
import numpy as np
import pytest

from experiments import clip, mae, mae_clip, siglip
from maeclip_jax import interop, objectives
from maeclip_jax.config import load
from maeclip_jax.data import tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.interop import export, files
from maeclip_jax.params import flatten
from tests import long
from tests.golden import ROOT
from tests.interop import foreign

POOLS = ("gap", "max", "cls", "map", "topk(2)", "logsumexp(1)")
TWO_TOWERS = ("hf-clip", "hf-siglip", "open_clip")
# (experiment, pool) -> formats with texts that write the model as the experiment makes it; the others need advice.
AS_IT_IS = {("siglip", "gap"): {"hf-siglip"}, ("siglip", "map"): {"hf-siglip"}, ("siglip", "cls"): {"open_clip"}}


def experiment(name, pool="gap", settings=None, more=""):
    return load(f"{ROOT}/experiments/{name}.py:runlocal,pool={pool}{more}", settings)


def embedded(config, params):
    """{"image": [B, E], "text": [B, E]} of fixed pictures and texts; without a tokenizer of its own, of fixed ids."""
    rng = np.random.default_rng(0)
    side, length = config.model.image_tower.size, config.model.text_tower.length
    words = tokenizer.of(config)
    texts = [words(t, length) for t in ("a red circle", "two blue squares left of a green triangle")]
    batch = {"image": rng.integers(0, 256, (2, side, side, 3), np.uint8), "text": np.stack(texts)}
    objective = objectives.make(config.objective, config.model)
    made = jax.jit(lambda p: objective.apply({"params": p}, batch, method="embed"))(params)
    return {k: np.asarray(x) for k, x in made.items()}


SEEN = {}  # experiments share most of their models: each is compared once


def comes_back_equal(kind, config, folder):
    """Saves, loads, and compares what both say of the same pictures and texts."""
    model = {
        k: v for k, v in config.model.to_dict().items() if k in ("image_tower", "text_tower", "embed_width", "loss")
    }
    key = (kind, json.dumps(model | config.tokenizer.to_dict(), sort_keys=True))
    if key in SEEN:
        return
    params = foreign.random_params(config)
    interop.save(kind, config, params, folder)
    found = interop.load(kind, folder)
    ours, theirs = embedded(config, params), embedded(found.config, found.params)
    for stream, z in ours.items():
        back = theirs[stream][:, : z.shape[1]]
        np.testing.assert_allclose(back, z, atol=2e-6, err_msg=f"{kind} {stream}")
        assert not theirs[stream][:, z.shape[1] :].any()
    assert found.config.preprocess.image == config.preprocess.image
    assert found.config.model.stats == config.model.stats
    SEEN[key] = True


def advice(message):
    return dict(re.findall(r"--config\.([\w.]+)=(\S+?)(?=[;\s]|$)", message))


LONG = ("flip", "slip", "silc", "tips")  # CLIP's towers with another way to train them


@pytest.mark.parametrize("name", long.marked(["clip", "siglip", *LONG, "mae_clip"], LONG))
def test_every_experiment_goes_out_or_is_told_how(name, tmp_path):
    """With each pooling and format: what is saved is equal; what is refused is saved after the advice is followed."""
    for pool in POOLS:
        for kind in TWO_TOWERS:
            folder = tmp_path / f"{pool}-{kind}"
            config = experiment(name, pool)
            try:
                comes_back_equal(kind, config, folder)
            except UserError as e:
                message = str(e)
                assert kind not in AS_IT_IS.get((name, pool), ())
            else:
                assert kind in AS_IT_IS.get((name, pool), ()), f"{name} {pool} {kind} was saved"
                continue
            assert message.startswith(f"{kind} cannot express this model; it can if it is trained with --config.")
            assert "\n" not in message and not folder.exists()
            able = set(re.findall(r"hf-clip|hf-siglip|open_clip", message.partition("; as it is, ")[2]))
            assert able == AS_IT_IS.get((name, pool), set()) and "hf-vision" in message
            comes_back_equal(kind, experiment(name, pool, advice(message)), folder)
        report = interop.save("hf-vision", config, foreign.random_params(config), tmp_path / f"{pool}-vision")
        assert report.used


def test_an_mae_is_refused_by_formats_of_two_towers(tmp_path):
    config = mae.get_config("runlocal")
    for kind in TWO_TOWERS:
        with pytest.raises(UserError) as e:
            interop.save(kind, config, {}, tmp_path / "x")
        assert str(e.value) == (
            f"{kind} needs an image tower and a text tower that share a space; objective 'mae' has none: train clip, "
            "siglip, flip, slip, silc, tips or mae_clip; as it is, it can be written as hf-vit-mae or hf-vision (its "
            "image tower alone)"
        )
    interop.save("hf-vit-mae", config, foreign.random_params(config), tmp_path / "x")


def test_a_causal_image_tower_is_refused(tmp_path):
    config = siglip.get_config("runlocal")
    config.model.image_tower.causal = True
    for kind in interop.WRITTEN:
        with pytest.raises(UserError, match=f"{kind} cannot express a causal image tower; no format can"):
            interop.save(kind, config, {}, tmp_path / "x")


@pytest.mark.parametrize("kind", ["hf-clip", "open_clip"])
def test_words_without_an_end_are_told_of_a_tokenizer_that_has_one(kind, tmp_path):
    """SentencePiece of ours has no end of text, and bytes have none: CLIP's merges do."""
    from maeclip_jax.prepare import vocabulary
    from tests.data.test_tokenizer import SPECS, TEXT, captions

    if not TEXT.exists():
        pytest.skip(f"{TEXT} is not there; set MAECLIP_SHARED_DATA")
    (tmp_path / "words.model").write_bytes(vocabulary.train(iter(captions(2000)), 400))
    settings = {"model.text_tower.causal": True, "model.image_tower.cls": True, "model.image_tower.pool": "cls"}
    settings |= {"model.image_tower.norm_pre": True, "model.text_tower.pool": "last"}
    for words in (
        {"tokenizer.type": "sentencepiece", "tokenizer.path": str(tmp_path / "words.model")},
        {"tokenizer.type": "bytes", "tokenizer.path": "", "model.text_tower.vocab": 257},
    ):
        with pytest.raises(UserError) as e:
            interop.save(kind, experiment("clip", settings=settings | words), {}, tmp_path / "x")
        found = advice(str(e.value))
        assert found == {
            "tokenizer.type": "clip", "tokenizer.path": "bpe_simple_vocab_16e6.txt.gz",
            "model.text_tower.vocab": "49408",
        }  # fmt: skip
        config = experiment("clip", settings=settings | words | found | {"tokenizer.path": SPECS["clip"]["path"]})
        comes_back_equal(kind, config, tmp_path / kind)


def clip_model():
    """A CLIP in every setting that hf-clip and open_clip have, with the words of CLIP."""
    config = foreign.clip_config()
    config.tokenizer = dict(type="clip", path="")
    config.preprocess = dict(image="decode|resize(32,method='bilinear')")
    return config


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_what_is_saved_comes_back_bit_for_bit(kind, tmp_path):
    """Parameters, towers, tokenizer and preprocessing; and what is saved again is the same to the byte."""
    if kind == "hf-siglip":
        config = siglip.get_config("runlocal")
        config.tokenizer.eos = True
    else:
        config = clip_model()
        (tmp_path / "m.txt").write_text(foreign.MERGES)
        config.tokenizer.path = str(tmp_path / "m.txt")
    params = foreign.random_params(config)
    interop.save(kind, config, params, tmp_path / "once")
    found = interop.load(kind, tmp_path / "once")
    before, after = flatten(params), flatten(found.params)
    assert set(before) == set(after)
    assert all(np.asarray(before[k]).tobytes() == np.asarray(after[k]).tobytes() for k in before)
    for tower in ("image_tower", "text_tower"):
        have, back = (export.DEFAULTS | c.model[tower].to_dict() for c in (config, found.config))
        have |= dict(map=back["map"])  # only its activation is said by us, and more by them
        assert {k: back[k] for k in have} == have
    assert found.config.model.loss == config.model.loss and found.config.model.embed_width == config.model.embed_width
    assert found.config.preprocess.image == config.preprocess.image
    ours, theirs = tokenizer.of(config), tokenizer.of(found.config)
    for text in ("a cd ab", "A red Circle!", ""):
        np.testing.assert_array_equal(ours(text, 12), theirs(text, 12))
    interop.save(kind, found.config, found.params, tmp_path / "twice")
    names = sorted(p.name for p in (tmp_path / "once").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "twice").iterdir())
    assert all((tmp_path / "once" / n).read_bytes() == (tmp_path / "twice" / n).read_bytes() for n in names)


def test_hf_siglip_writes_a_mean_as_attention(tmp_path):
    """Also where pictures and texts are compared in fewer dimensions than the tower is wide."""
    config = experiment("siglip", "gap", {"model.image_tower.projection": "linear", "model.embed_width": "16"})
    comes_back_equal("hf-siglip", config, tmp_path / "x")
    assert files.read(tmp_path / "x")["text_model.head.weight"].shape == (32, 32)


@pytest.mark.parametrize(
    "image, size, crop, resample",
    [
        ("decode|resize_small(32)|center_crop(32)", dict(shortest_edge=32), dict(height=32, width=32), 3),
        ("decode|resize_small(40,'bilinear')|center_crop(32)", dict(shortest_edge=40), dict(height=32, width=32), 2),
        ("decode|resize(32)", dict(height=32, width=32), None, 3),
    ],
)  # fmt: skip
def test_the_image_processor_is_that_of_config_preprocess(image, size, crop, resample, tmp_path):
    config = siglip.get_config("runlocal")
    config.preprocess.image = image
    interop.save("hf-siglip", config, foreign.random_params(config), tmp_path)
    found = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert found["size"] == size and found.get("crop_size") == crop and found["resample"] == resample
    assert found["do_center_crop"] == (crop is not None)
    assert (found["image_mean"], found["image_std"]) == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    "kind, image, valid",
    [
        ("hf-siglip", "decode|fit(32)", "valid: 'decode|resize(32)' or 'decode|resize_small(SIDE)|center_crop(32)'"),
        ("hf-siglip", "decode|resize(32,antialias='area')", "valid: 'decode|resize(32)' or"),
        ("hf-siglip", "decode|resize_small(32)|center_crop(32)|blank", "valid: 'decode|resize(32)' or"),
        ("open_clip", "decode|resize_small(40)|center_crop(32)",
         "valid: config.preprocess.image='decode|resize_small(32)|center_crop(32)' or 'decode|resize(32)'"),
    ],
)  # fmt: skip
def test_other_preprocessing_is_refused_with_what_is_valid(kind, image, valid, tmp_path):
    config = experiment("siglip", "cls" if kind == "open_clip" else "map")
    config.preprocess.image = image
    with pytest.raises(UserError, match=re.escape(valid)):
        interop.save(kind, config, foreign.random_params(config), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_is_written_over_only_where_that_is_said(tmp_path):
    config = siglip.get_config("runlocal")
    params = foreign.random_params(config)
    interop.save("hf-siglip", config, params, tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is there already and holds something; .*--overwrite"):
        interop.save("hf-vision", config, params, tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is there already and holds something; .*--overwrite"):
        interop.save("hf-vision", config, params, tmp_path / "file")
    interop.save("hf-vision", config, params, tmp_path / "x", overwrite=True)
    names = {p.name for p in (tmp_path / "x").iterdir()}  # no tokenizer of the format of before stays
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "maeclip_jax.json", "README.md",
                     "notes.txt"}  # fmt: skip


def test_without_a_tokenizer_nothing_is_written_unless_that_is_said(tmp_path):
    config = foreign.clip_config()
    with pytest.raises(UserError, match=r"no tokenizer came with this model, and hf-clip needs one: set config.tok"):
        interop.save("hf-clip", config, {}, tmp_path / "x")
    interop.save("hf-clip", config, foreign.random_params(config), tmp_path / "x", tokenizer=False)
    assert not (tmp_path / "x" / "tokenizer.json").exists()
    assert interop.load("hf-clip", tmp_path / "x").config.tokenizer.type == ""
    config.tokenizer = dict(type="clip", path=str(tmp_path / "no.gz"))
    with pytest.raises(UserError, match=r"tokenizer file .*no.gz' is not there"):
        interop.save("hf-clip", config, {}, tmp_path / "y")


def test_the_card_says_what_is_known(tmp_path):
    config = mae_clip.get_config("runlocal")
    about = dict(
        name="mine", step=817, total="7 epochs", data="tfds scenes/demo train", batch_size=128, seed=0,
        evals={"zero_shot/top1": dict(value=71.25, unit="%", better="higher", chance=4.0)},
    )  # fmt: skip
    interop.save("hf-vision", config, foreign.random_params(config), tmp_path / "x", about=about)
    card = (tmp_path / "x" / "README.md").read_text()
    for line in (
        "# mine", "- Data: tfds scenes/demo train", "- Steps: 817 (7 epochs were planned)", "- Batch size: 128",
        "- Seed: 0",
        "| zero_shot/top1 | 71.25 | % | 4 |", "pipeline_tag: image-feature-extraction", "- maeclip_jax ", "- jax ",
        "hf-vision has no place for `decoder`, `image_head`, `log_logit_scale`, `text`, `text_head`.",
    ):  # fmt: skip
        assert line in card
    interop.save("hf-vision", config, foreign.random_params(config), tmp_path / "y")
    card = (tmp_path / "y" / "README.md").read_text()
    assert "- Steps: unknown" in card and "None were made." in card


def test_a_siglip_of_short_texts_says_what_the_pipeline_does(tmp_path):
    config = siglip.get_config("runlocal")
    report = interop.save("hf-siglip", config, foreign.random_params(config), tmp_path / "x")
    assert "gives every SigLIP 64 tokens and refuses this one of 16" in str(report)
    assert "refuses this model, which reads\n16." in (tmp_path / "x" / "README.md").read_text()
    config = copy.deepcopy(config)
    config.model.text_tower.length = 64
    report = interop.save("hf-siglip", config, foreign.random_params(config), tmp_path / "y")
    assert not report.notes and "pipeline(" in (tmp_path / "y" / "README.md").read_text()


def test_the_same_arrays_whatever_the_layout_of_layers(tmp_path):
    config = siglip.get_config("runlocal")
    params = foreign.random_params(config)
    unrolled = copy.deepcopy(params)
    for tower in ("image", "text"):
        blocks = unrolled[tower]["trunk"].pop("blocks")
        depth = config.model[f"{tower}_tower"].depth
        unrolled[tower]["trunk"] |= {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(depth)}
    for name, tree in (("stacked", params), ("unrolled", unrolled)):
        interop.save("hf-siglip", config, tree, tmp_path / name)
    a, b = (files.read(tmp_path / n) for n in ("stacked", "unrolled"))
    assert set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_first_experiment_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError) as e:
        interop.save("hf-clip", clip.get_config("runlocal"), {}, tmp_path / "x")
    assert str(e.value) == (
        "hf-clip cannot express this model; it can if it is trained with --config.model.image_tower.cls=True "
        "--config.model.image_tower.norm_pre=True --config.model.image_tower.pool=cls "
        "--config.model.text_tower.causal=True --config.model.text_tower.pool=last --config.tokenizer.eos=True; as it "
        "is, it can be written as hf-vision (its image tower alone)"
    )


def test_a_run_goes_on_from_what_was_written(tmp_path):
    """Its tokenizer and its size are taken along, whatever the tokenizer is."""
    words = {"tokenizer.type": "bytes", "tokenizer.path": "", "model.text_tower.vocab": 257}
    config = experiment("siglip", "map", words)
    config.preprocess.image = "decode|resize(32,'bilinear')"
    interop.save("hf-siglip", config, foreign.random_params(config), tmp_path / "x")
    started = experiment("siglip", "map", {"init_from": f"hf-siglip:{tmp_path / 'x'}"})
    assert started.tokenizer.to_dict() == dict(type="bytes", path="") and started.model.text_tower.vocab == 257
    larger = interop.load("hf-siglip", tmp_path / "x", size=48).config
    assert larger.preprocess.image == "decode|resize(48,'bilinear')" and larger.model.image_tower.size == 48

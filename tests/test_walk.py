"""The whole way of a user, as commands: prepare, vocabulary, train, move to another machine, load, continue, hand on.

The same pictures and texts have the same numbers at every station. "Another machine" is another folder and another
working directory with nothing in them but the workdir and a clone of the code.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import maeclip_jax as mc
from tests import runs, torture
from tests.golden import ROOT

PHOTOS = Path(os.environ.get("MAECLIP_SHARED_DATA", ROOT.parent / "shared" / "data")) / "photos"
STEPS = 300

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (PHOTOS / "captions.jsonl").exists(),
        reason=f"no photos at {PHOTOS}; set MAECLIP_SHARED_DATA to the folder that holds photos/",
    ),
]


def command(module, *words, cwd, code=ROOT, **env):
    """What a command printed; it runs in `cwd` with the package of the clone in `code`."""
    there = os.environ | {"PYTHONPATH": str(code), "MAECLIP_DATA_DIR": "data", "JAX_NUM_CPU_DEVICES": "1"} | env
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=cwd,
        env=there,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """(folder of the first machine, folder of the second, which has a moved run and a clone, flags of the training)"""
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    rows = [json.loads(x) for x in (PHOTOS / "captions.jsonl").read_text().splitlines()]
    (home / "pictures").mkdir()
    (home / "pictures" / "images").symlink_to(PHOTOS / "images")
    marked = [r | {"split": "test" if i % 10 == 0 else "val" if i % 10 == 1 else "train"} for i, r in enumerate(rows)]
    (home / "pictures" / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in marked))
    command("maeclip_jax.prepare", "--src=pictures", "--out=data", "--name=photos", "--short_side=64", cwd=home)
    words = ("--name=photos", "--out=data/photos/words.model", "--size=600", "--end")
    command("maeclip_jax.prepare.vocabulary", *words, cwd=home)
    settings = (
        "--config.total=300 steps", "--config.batch_size=16", "--config.checkpoint.every=150 steps",
        "--config.evals.val.batch_size=8", "--config.evals.retrieval.batch_size=8",
        "--config.model.image_tower.norm_pre=True", "--config.model.text_tower.causal=True",
        "--config.tokenizer.eos=True",  # as a CLIP of other libraries has them
    )  # fmt: skip
    flags = (f"--config={ROOT}/experiments/clip.py:scale=photos,size=mu,pool=cls,text_pool=last", *settings)
    command("maeclip_jax.main", *flags, "--workdir=runs/a", cwd=home)
    shutil.copytree(home / "runs" / "a", away / "a")
    shutil.rmtree(home / "runs")
    (home / "data" / "photos" / "words.model").unlink()
    for part in ("maeclip_jax", "experiments"):
        shutil.copytree(ROOT / part, away / "clone" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return home, away, flags


def pictures():
    return sorted((PHOTOS / "images").iterdir())[:20]


TEXTS = ["a photo of a dog", "people on a street", "a plate of food", "a train"]


def test_trained_moved_loaded_and_continued(walk, tmp_path):
    home, away, flags = walk
    model = mc.load(away / "a")
    assert model.step == STEPS
    here = model.embed(images=pictures(), texts=TEXTS)
    program = (
        "import sys, numpy as np, maeclip_jax as mc\n"
        "assert mc.__file__.startswith(sys.argv[1]), mc.__file__\n"
        "z = mc.load(sys.argv[2]).embed(images=sys.argv[4:], texts=sys.argv[3].split('|'))\n"
        "np.savez('z.npz', **z)\n"
    )
    words = [sys.executable, "-c", program, away / "clone", away / "a", "|".join(TEXTS), *pictures()]
    env = os.environ | {"PYTHONPATH": str(away / "clone"), "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run(list(map(str, words)), cwd=tmp_path, env=env, check=True, timeout=600)
    with np.load(tmp_path / "z.npz") as there:
        for stream in ("image", "text"):
            np.testing.assert_allclose(there[stream], here[stream], atol=1e-6)
    (tmp_path / "data").symlink_to(home / "data")
    longer = [x.replace("300 steps", "310 steps") for x in flags]
    said = command("maeclip_jax.main", *longer, f"--workdir={away / 'a'}", cwd=tmp_path, code=away / "clone")
    assert "continuing from step 300 of 310" in said and "the learning rate goes on at" in said
    assert sorted(torture.steps(away / "a"))[-1] == 310
    assert max(runs.series(away / "a")) == 310


def same_middle(paths, side):
    """Those whose middle `transformers` cuts out where we do: it rounds half a pixel down, we to the even one."""
    from PIL import Image

    found = []
    for path in paths:
        width, height = Image.open(path).size
        spare = int(side * max(width, height) / min(width, height)) - side
        found += [path] * (spare // 2 == round(spare / 2))
    return found


def test_handed_on_to_other_libraries(walk, tmp_path):
    """`python -m maeclip_jax.run.export` writes folders that transformers and open_clip load, with the same numbers."""
    torch = pytest.importorskip("torch", reason="needs torch: make test-parity")
    transformers = pytest.importorskip("transformers", reason="needs transformers: make test-parity")
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip: make test-parity")
    from PIL import Image

    _, away, _ = walk
    for kind in ("hf-clip", "open_clip"):
        words = ("--workdir", away / "a", "--format", kind, "--out", tmp_path / kind)
        said = command("maeclip_jax.run.export", *words, cwd=tmp_path, code=away / "clone")
        assert said.endswith(f"written: {tmp_path / kind}\n")
    model = mc.load(away / "a")
    side = model.config.model.image_tower.size
    paths = same_middle(sorted((PHOTOS / "images").iterdir()), side)[:20]
    assert len(paths) == 20
    ours = model.embed(images=paths, texts=TEXTS)
    scores = np.exp(np.exp(model.params["log_logit_scale"]) * ours["image"] @ ours["text"].T)
    scores /= scores.sum(1, keepdims=True)
    assert scores.std(1).max() > 1e-2  # or equal scores would say nothing

    process = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf-clip", backend="pil")
    name = str(tmp_path / "hf-clip")
    pipe = transformers.pipeline("zero-shot-image-classification", name, image_processor=process)
    settings = dict(candidate_labels=TEXTS, hypothesis_template="{}")
    found = [{x["label"]: x["score"] for x in pipe(Image.open(p), **settings)} for p in paths]
    np.testing.assert_allclose([[row[t] for t in TEXTS] for row in found], scores, atol=1e-4)
    whole = transformers.AutoProcessor.from_pretrained(name)
    ids = whole(text=TEXTS, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, model.preprocess.texts(TEXTS))

    theirs, _, process = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'open_clip'}")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'open_clip'}")(TEXTS)
    with torch.no_grad():
        there = dict(
            image=theirs.eval().encode_image(torch.stack([process(Image.open(p)) for p in paths]), normalize=True),
            text=theirs.encode_text(ids, normalize=True),
        )
    for stream, z in there.items():
        np.testing.assert_allclose(z.numpy(), ours[stream], atol=1e-4)
    for kind in ("hf-clip", "open_clip"):  # and back
        again = mc.load(f"{kind}:{tmp_path / kind}").embed(images=paths, texts=TEXTS)
        for stream in ("image", "text"):
            np.testing.assert_allclose(again[stream], ours[stream], atol=1e-5)

"""Messages advise what exists: every setting, flag, command, make target, extra and module that one names.

Looked at are the texts in the code of the package (not its docstrings), so that a message is held to it wherever it is
raised.
"""

import ast
import configparser
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maeclip_jax.config import leaves, load
from maeclip_jax.data import source
from maeclip_jax.errors import UserError
from tests.data.test_source import write
from tests.golden import ARGS, CASES, ROOT

FILES = sorted((ROOT / "maeclip_jax").rglob("*.py")) + sorted((ROOT / "experiments").rglob("*.py"))
# Flags of other programs, which no parser of ours knows.
FOREIGN = {
    "--short": "git", "--upgrade": "pip", "--xla_jf_dump_llo_text": "libtpu", "--xla_jf_dump_to": "libtpu",
    "--xla_cpu_enable_concurrency_optimized_scheduler": "XLA",
} | dict.fromkeys(
    ("--url_list", "--input_format", "--url_col", "--caption_col", "--output_format", "--output_folder",
     "--resize_mode", "--image_size", "--incremental_mode"), "img2dataset")  # fmt: skip


def texts(path: Path) -> list[str]:
    """The strings of a file, those with values in them with a blank in their place; docstrings are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(x.value if isinstance(x, ast.Constant) else "{}" for x in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | inside):
            found.append(node.value)
    return found


TEXTS = {path.relative_to(ROOT).as_posix(): texts(path) for path in FILES}


def named(pattern: str) -> list[tuple[str, str]]:
    """(file, what it names), each once."""
    return sorted({(file, name) for file, said in TEXTS.items() for text in said for name in re.findall(pattern, text)})


@functools.cache
def settings() -> set[str]:
    """Dotted names of all leaves and sections of all experiments."""
    names = {"resume", "init_from", "init_rules", "init_adopted"}
    drawn = "clip.py:scale=demo,data=scenes,pairs=100"
    for made in [*(f"{experiment}.py:{ARGS[arg]}" for experiment, arg in CASES), drawn]:
        for name, _ in leaves(load(f"{ROOT}/experiments/{made}").to_dict()):
            parts = name.split(".")
            names |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return names


@functools.cache
def flags() -> set[str]:
    """Flags that some command of the package takes: what is added to a parser."""
    found = {"--config", "--help"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            given = getattr(node, "args" if isinstance(node, ast.Call) else "defaults", ())
            given = given if isinstance(given, list) else ()
            found |= {a.value for a in given if isinstance(a, ast.Constant) and str(a.value).startswith("--")}
    return found


def test_settings_of_messages_exist():
    known = settings()
    sections = "|".join(sorted({name.rpartition(".")[0] for name in known if "." in name}, key=len, reverse=True))
    found = named(r"--config\.([a-z_]+(?:\.[a-z_]+)*)") + named(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)*)\b(?!\()")
    assert len(found) > 20
    below = named(rf"(?<![\w./:{{-])((?:{sections})\.[a-z_]+)\b(?![(/.])")  # set optim.clip_norm
    assert len(below) > 30
    files = ("config.json", "model.safetensors", "data.pkl", "data.json", "tokenizer.json", "tokenizer.model")
    files += ("data.image_normalization", "data.image_size", "data.tokenizer_max_length")  # flags of M3AE's own code
    assert not [pair for pair in found + below if pair[1] not in {*known, "name", "json"} and pair[1] not in files]


def test_flags_of_messages_exist():
    found = named(r"(?<!var\()(?<![\w-])(--[a-z][a-z_]*)")
    assert len(found) > 20
    assert not [(file, flag) for file, flag in found if flag not in flags() | FOREIGN.keys()]


def runs(module: str) -> bool:
    """Whether `python -m module` does something."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return False
    if spec.submodule_search_locations:
        return importlib.util.find_spec(f"{module}.__main__") is not None
    return 'if __name__ == "__main__":' in Path(spec.origin).read_text(encoding="utf-8")


def test_commands_of_messages_exist():
    modules = named(r"python -m ([\w.]+\w)(?!\.?[\w{])")
    assert len(modules) >= 3
    assert not [(file, name) for file, name in modules if not runs(name)]
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = named(r"(?:`|: |run )make ([\w-]+)")
    assert asked and not [(file, name) for file, name in asked if name not in targets]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = named(r"""(?:["' ]\.|maeclip_jax)\[([a-z-]+)\]""")
    assert len(extras) > 3
    assert not [(file, name) for file, name in extras if name not in setup["options.extras_require"]]


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "maeclip_jax/prepare/builders").glob("[a-z]*.py")])
def test_what_a_missing_data_set_asks_for_is_a_command_that_takes_its_flags(name, tmp_path, capsys):
    """Also where the data set is called like a module that is no command."""
    with pytest.raises(UserError) as error:
        source.make(dict(kind="tfds", dir=str(tmp_path), name=name))
    module, *words = re.search("prepare it with `python -m ([^`]*)`", str(error.value))[1].split(" ")
    assert runs(module)
    code = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=600)
    assert code.returncode == 0
    for flag in [w for w in words if w.startswith("--")]:
        assert re.search(rf"^\s+{flag}\b", code.stdout, re.MULTILINE), flag


def test_a_catalogue_whose_builders_cannot_be_imported_is_still_the_catalogue(tmp_path):
    """Without h5py, TFDS does not list laion400m, which does not need it."""
    with pytest.raises(UserError) as error:
        source.make(dict(kind="tfds", dir=str(tmp_path), name="laion400m"))
    said = str(error.value)
    assert 'pip install -e ".[catalog]"' in said and "tfds.builder('laion400m'" in said
    for package in ("tensorflow", "h5py"):
        assert (f"{package} not installed" in said or f"{package} and" in said) == (
            importlib.util.find_spec(package) is None
        )


def test_an_unknown_split_is_answered_with_a_slice_of_one_that_is_there(tmp_path):
    write(tmp_path, "pairs", {"label": np.int64}, lambda i: {"label": i}, test=200)
    write(tmp_path, "nothing", {"label": np.int64}, lambda i: {"label": i})
    with pytest.raises(UserError, match=r"nothing/1\.0\.0 has no splits, so no records; prepare it again"):
        source.make(dict(kind="tfds", dir=str(tmp_path), name="nothing"))
    with pytest.raises(UserError) as error:
        source.make(dict(kind="tfds", dir=str(tmp_path), name="pairs", split="trian"))
    advised = re.search(r"a slice such as (.*)$", str(error.value))[1]
    assert advised == "test[99%:]"
    assert len(source.make(dict(kind="tfds", dir=str(tmp_path), name="pairs", split=advised))) == 2


def test_a_tuple_may_be_given_as_words():
    demo = "experiments/clip.py:runlocal"
    for text, want in {
        "a": ("a",), "(image|text)/.*": ("(image|text)/.*",), "image/.*, text/.*": ("image/.*", "text/.*"), "()": (),
        "": (), "('a','b')": ("a", "b"), "['a']": ("a",), "'a,b'": ("a,b",),
    }.items():  # fmt: skip
        assert load(demo, {"optim.freeze": text}).optim.freeze == want, text
    assert load(demo, {"optim.freeze": ("a", "b")}).optim.freeze == ("a", "b")
    assert load(demo, {"log.sinks": "jsonl,tensorboard"}).log.sinks == ("jsonl", "tensorboard")
    assert load(demo, {"evals.retrieval.k": "1,3"}).evals.retrieval.k == (1, 3)
    assert load(demo, {"evals.retrieval.k": "1"}).evals.retrieval.k == (1,)

"""An experiment file, its argument and overrides become one validated config. Also: durations, named files.

`load` is the one way in: the command line, `mc.experiment`, sweeps, benchmarks and the pre-flight call it.
"""

from __future__ import annotations

import ast
import errno
import glob
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from maeclip_jax import remote
from maeclip_jax.errors import UserError, unknown


def load(source: str | os.PathLike, settings: Mapping[str, Any] | None = None, suite: str = ""):
    """The ConfigDict of `source` with `settings` put in.

    `source`: an experiment file with its argument ("experiments/clip.py:scale=demo"), or the config.json of a run.
    `settings`: leaves to change, by dotted name, such as {"total": "1 epochs", "optim.lr": 1e-3}; text is read as on
    the command line. The text tower has as many entries as the tokenizer's file, unless `settings` or the experiment
    say another number (model.text_tower.vocab). `suite`: a file of evaluations with its argument, in place of the
    config's own evaluations.
    Raises UserError for a file, an argument, a name or a value that does not fit, with the valid ones.

    The folder of an experiment's folder joins sys.path, so that files may import their neighbours from anywhere.
    """
    source = os.fspath(source)
    path, argument = split(source)
    config = read(source) if path.endswith(".json") else _call(path, "experiment", "get_config", argument or None)
    if suite:
        path, argument = split(suite)
        config.evals = _call(path, "evaluation", "get_evals", config, argument or None)
    said = source.endswith(".json") or "model.text_tower.vocab" in (settings or {})  # a run is as its parameters are
    follows = not said and has_usual_table(config)
    config = _changed(config, settings or {})
    for name, value in leaves(config):
        if isinstance(value, str) and _PLACE.search(name):
            remote.check_scheme(value, f"--config.{name}", "checkpoints" if name == "resume" else "")
    if follows:
        from maeclip_jax.data import tokenizer

        config.model.text_tower.vocab = tokenizer.size(config.tokenizer) or config.model.text_tower.vocab
    if ":" in config.get("init_from", "").replace("://", ""):
        from maeclip_jax.interop import adoption

        adoption.adopt(config, settings or {})  # the towers become those of other code bases' weights
    return config


def split(source: str) -> tuple[str, str]:
    """(file, argument) of "experiments/clip.py:scale=demo"; the colon of gs:// or of a drive begins no argument."""
    found = re.fullmatch(r"((?:[\w+.-]+://|[A-Za-z]:(?=[\\/]))?[^:]*)(?::(.*))?", source, re.DOTALL)
    return found[1], found[2] or ""


def read(path: str):
    """The config that a run left as config.json; lists become the tuples they were. UserError if it cannot be read.

    Files that the run keeps are named by where they are now, wherever the run was moved.
    """
    from ml_collections import ConfigDict

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return tuple(plain(v) for v in value) if isinstance(value, list) else value

    remote.check_scheme(path, "--config")
    try:
        text = remote.read_text(path)
        if text is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        config = ConfigDict(plain(json.loads(text)))
    except UserError:
        raise
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"cannot read --config={path}: {' '.join(str(e).split())}; valid: a run's config.json") from e
    folder = epath.Path(path).parent
    for name, value in list(leaves(config)):
        if isinstance(value, str) and value.startswith(f"{FILES}/") and KEPT.fullmatch(value):
            here = folder if remote.is_remote(folder) else folder.resolve()
            config.update_from_flattened_dict({name: os.fspath(here / value)})
    side = config.get("model", {}).get("image_tower", {}).get("size")
    if "preprocess" not in config and side:  # of a run older than this setting, when these were the rules
        whole = f"resize({side})" if config.get("objective") == "vqa" else f"resize_small({side})|center_crop({side})"
        config.preprocess = dict(image=f"decode|{whole}")
    return config


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every leaf of nested dicts or ConfigDicts; an empty dict is a leaf."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        if not len(value) and path:
            yield path, {}
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def with_leaves(tree: Mapping, values: Mapping[str, object]) -> dict:
    """A copy of nested dicts with some leaves changed, by dotted name."""
    made = dict(tree)
    for name, value in values.items():
        first, _, rest = name.partition(".")
        made[first] = with_leaves(made[first], {rest: value}) if rest else value
    return made


def plain(config) -> dict:
    """A ConfigDict as config.json holds it: JSON's own types."""
    return json.loads(config.to_json_best_effort())


# Files that a config names, such as a vocabulary. A workdir keeps copies of them, named by their content, so that a run
# finds what it was trained with from any folder and on any machine, and another file under the same name is noticed.

FILES = "files"  # the folder in a workdir; a copy is called STEM-DIGEST.SUFFIX
KEPT = re.compile(rf"(?:.*/)?{FILES}/(?P<stem>[^/]+)-(?P<digest>[0-9a-f]{{12}})(?P<suffix>\.[^/]*)?")
_PLACE = re.compile(r"(^|\.)(dir|path|resume|init_from)$")  # leaves that say where something lies
_NO_FILE = re.compile(r"(resume|init_.*|arg(\..*)?|log\..*|checkpoint\..*)")  # folders, weights, words


def named_files(config) -> dict[str, epath.Path]:
    """{dotted name of a leaf: the file that its value names}, of all leaves that name one that is there.

    A value counts if it has a dot or a slash: a bare word is the name of something that comes with the package. Weights
    that a run begins with are not among them.
    """
    found = {}
    for name, value in leaves(config):
        if not isinstance(value, str) or _NO_FILE.fullmatch(name) or not ("/" in value or "." in value):
            continue
        if "\n" in value or len(value) > 1000 or not _is_file(value):
            continue
        found[name] = epath.Path(value)
    return found


def _is_file(value: str) -> bool:
    if remote.is_remote(value) and "." not in value.rpartition("/")[2]:  # a folder; to ask takes two requests
        return False
    try:
        return epath.Path(value).is_file()
    except Exception:  # no such scheme, no such storage, no path at all
        return False


def digest(path: epath.Path) -> str:
    """12 hexadecimal digits of the SHA-256 of a file's content. UserError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as e:
        raise UserError(f"cannot read {str(path)!r}: {e}") from e


def by_content(value: object) -> object:
    """The value of a leaf, with the content of a file in place of the name of its kept copy; anything else as it is."""
    kept = KEPT.fullmatch(value) if isinstance(value, str) else None
    return content(kept["digest"]) if kept else value


def content(digest: str) -> str:
    """How the content of a file is named to a person, by its `digest`."""
    return f"a file of SHA-256 {digest}..."


def has_usual_table(config) -> bool:
    """Whether the text tower's table has the size that its tokenizer's file usually has, and so follows the file."""
    from maeclip_jax.data import tokenizer

    words, tower = config.get("tokenizer", {}), config.get("model", {}).get("text_tower") or {}
    return bool(tower.get("vocab")) and tower["vocab"] == tokenizer.usual_size(words)


def shipped(folder: str = "experiments", holds: str = "def get_config(") -> list[str]:
    """Names of the files in `folder` whose text `holds` that: experiments. UserError where none is here."""
    found = [os.path.basename(p)[:-3] for p in _files(f"{folder}/*.py", holds)]
    if not found:
        raise UserError(f"{folder}/ is not in this folder; run in the repository, which holds it")
    return found


def _call(path: str, what: str, function: str, *args):
    """Calls `function` of the file at `path`; a UserError names what is wrong with either."""
    if remote.is_remote(path):
        raise UserError(f"{what} file {path!r}: Python files are read from local folders; valid: a copy of it here")
    if not os.path.isfile(path):
        here = _files(f"experiments/{'eval/' if what == 'evaluation' else ''}*.py", f"def {function}(")
        raise UserError(f"no {what} file {path!r}; here are: {', '.join(here) or 'none (run in the repository)'}")
    folder = os.path.dirname(os.path.abspath(path))
    for root in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        if root not in sys.path:
            sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(what, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*args)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{what} file {path!r} failed: {type(e).__name__}: {e}") from e


def _files(pattern: str, holds: str) -> list[str]:
    """Files whose text `holds` that."""
    found = []
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8") as f:
            if holds in f.read():
                found.append(path)
    return found


def _changed(config, settings: Mapping[str, Any]):
    """`config` with `settings`, which ml_collections parses to the type of what they replace."""
    from absl import flags
    from ml_collections import config_flags

    _name_defaults(config, settings)
    argv = ["config", *(f"--config.{name}={_literal(config, name, value)}" for name, value in settings.items())]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise _setting_error(e, settings, config) from e
    return values.config


def _literal(config, name: str, value: Any) -> Any:
    """`value` as ml_collections reads it; where the leaf is a tuple, words such as `text/.*,image/.*` are one, too."""
    leaf = config
    for part in name.split("."):
        leaf = leaf.get(part) if hasattr(leaf, "keys") else None
    if not isinstance(leaf, tuple) or not isinstance(value, str):
        return value
    text = value.strip()
    try:
        found = ast.literal_eval(text or "()")
    except (ValueError, SyntaxError):
        found = tuple(part.strip() for part in text.split(",") if part.strip())
    return repr(tuple(found) if isinstance(found, tuple | list) else (found,))


def _name_defaults(config, settings: Mapping[str, Any]) -> None:
    """Writes into an evaluation of `config` the defaults of its evaluator that `settings` want to change."""
    from maeclip_jax import evals

    for name in settings:
        entry, _, setting = name.removeprefix("evals.").partition(".")
        held = config.get("evals", {}).get(entry) if name.startswith("evals.") else None
        if held and setting in evals.OF_ANY and setting not in held:
            with config.unlocked():
                held[setting] = evals.OF_ANY[setting]
        elif held and setting not in held and held.get("type") in evals.table():
            takes = inspect.signature(evals.table()[held["type"]]).parameters
            if setting in takes and takes[setting].default not in (None, inspect.Parameter.empty):
                with config.unlocked():
                    held[setting] = takes[setting].default


def _setting_error(error: Exception, settings: Mapping[str, Any], config) -> UserError:
    """Which setting does not fit, and why, in one line."""
    text = " ".join(str(error).split())
    for name, value in settings.items():
        node, parts = config, name.split(".")
        for i, part in enumerate(parts):
            if not hasattr(node, "keys"):
                return UserError(f"--config.{name}: config.{'.'.join(parts[:i])} is a value and has no {part!r}")
            if part not in node:
                where = f"setting config.{'.'.join(parts[:i])}".rstrip(".")
                return unknown(f"{where}: name", part, sorted(node.keys()))
            node = node[part]
        if name in text or (value != "" and str(value) in text):
            return UserError(f"--config.{name}={value} does not fit: it is {node!r} ({type(node).__name__}) by default")
    return UserError(text)


# Durations: one string, one conversion. "200 steps", "30 epochs", "12.8B examples", "5%", "2.1e19 FLOPs".

UNITS = ("steps", "epochs", "examples", "FLOPs", "%")
_PREFIX = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}
_FORM = re.compile(
    r"\s*(?P<number>\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(?:%|(?P<prefix>[kMB]?)\s*(?P<unit>step|epoch|example|FLOP)s?)\s*"
)


def in_steps(duration: str) -> bool:
    """Whether a duration is a number of steps, so that what is seen in it goes with the batch."""
    m = _FORM.fullmatch(duration) if isinstance(duration, str) else None
    return bool(m) and m["unit"] == "step"


def to_steps(
    duration: str,
    what: str,
    *,
    batch_size: int,
    epoch: int | None = None,
    total: int | None = None,
    flops: Callable[[], float] | None = None,
) -> int:
    """Number of steps (rounded, never below 1 unless the duration is 0) of `duration`.

    `epoch` examples make an epoch (None: endless data), `total` steps make 100 %, a step is `flops()` model FLOPs.
    Raises UserError naming `what`.
    """
    m = _FORM.fullmatch(duration) if isinstance(duration, str) else None
    if not m:
        raise UserError(
            f"{what}={duration!r} is not a duration; valid: a number and one of {', '.join(UNITS)}, such as '30 epochs'"
        )
    number = float(m["number"]) * _PREFIX[m["prefix"] or ""]
    unit = m["unit"] or "%"
    if unit == "step":
        steps = number
    elif unit == "example":
        steps = number / batch_size
    elif unit == "epoch":
        if epoch is None:
            raise UserError(f"{what}={duration!r}, but endless data has no epochs; use steps or examples")
        steps = number * epoch / batch_size
    elif unit == "FLOP":
        if flops is None:
            raise UserError(f"{what}={duration!r}: FLOPs of a step are not counted here; use steps, examples or %")
        steps = number / flops()
        if number and steps < 1:
            raise UserError(f"{what}={duration!r} is {steps:.2g} steps of {flops():.4g} FLOPs; valid: one step or more")
    else:
        if total is None:
            raise UserError(f"{what}={duration!r}: a percentage needs a total; use steps, epochs or examples")
        steps = number / 100 * total
    return max(1, round(steps)) if number else 0

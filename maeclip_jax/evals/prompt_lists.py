"""Class names and prompt templates: packaged ones by name, a person's own by file or as a list."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from maeclip_jax.errors import UserError, unknown

FOLDER = Path(__file__).parent / "prompts"
# Under what ImageNet's lists stand in files that hold those of several data sets (LAION's CLIP_benchmark, SLIP).
IMAGENET = ("imagenet1k", "imagenet")


def read_list(path: str, what: str) -> list | dict:
    """The JSON value or the lines of a file, of one that holds lists of several data sets ImageNet's; UserError if it
    cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text) if path.endswith(".json") else [x for x in text.split("\n") if x.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise UserError(f"cannot read {what} from {path!r}: {e}") from e
    if isinstance(value, dict) and isinstance(value.get(what), list | dict):
        value = value[what]
    if isinstance(value, dict) and value and all(isinstance(x, list | dict) for x in value.values()):
        sets, value = list(value), next((value[name] for name in IMAGENET if name in value), None)
        if value is None:
            raise UserError(
                f"{path!r} holds {what} of {', '.join(sets[:5])}{', ...' if sets[5:] else ''}; valid: those of "
                f"{' or '.join(IMAGENET)} among them, or a JSON list of strings"
            )
    strings = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not value or not isinstance(value, list | dict) or not all(isinstance(x, str) for x in strings):
        raise UserError(f"{path!r} holds no {what}; valid: a JSON list of strings, or a text file with one a line")
    return value


def class_names(classes: str | Sequence[str] | None, source: Sequence[str] | None) -> list[str]:
    """Readable class names in label order; UserError where they do not match those of the source."""
    if classes is None:
        if not source:
            raise UserError(
                "zero_shot: the data source has no class names; set `classes` to a list, .json or .txt file"
            )
        return [c.replace("_", " ") for c in source]
    named = f"the file {classes!r}" if isinstance(classes, str) else "`classes`"
    if isinstance(classes, str) and (FOLDER / f"{classes}.json").exists():
        classes = str(FOLDER / f"{classes}.json")
    names = read_list(classes, "classes") if isinstance(classes, str) else list(classes)
    if isinstance(names, list) and names and all("\t" in n for n in names):
        names = dict(n.split("\t", 1) for n in names)
    if isinstance(names, dict):
        if not source:
            raise UserError(f"zero_shot: {named} renames classes, but the data source has no class names")
        absent = [c for c in source if c not in names]
        if absent:
            missing = f"{len(absent)} of {len(source)} missing"
            raise UserError(f"zero_shot: {named} has no name for class {absent[0]!r} ({missing})")
        return [names[c] for c in source]
    if source and len(names) != len(source):
        raise UserError(
            f"zero_shot: {named} has {len(names)} class names, the data source {len(source)} "
            f"({', '.join(list(source)[:5])}, ...); they must match one to one, in label order"
        )
    if len(names) < 2:
        raise UserError(f"zero_shot: {named} has {len(names)} class names; at least 2 are needed")
    return names


def read_templates(templates: str | Sequence[str]) -> list[str]:
    """Prompt templates, each with a place for the class name: "{}", or "{c}" as in LAION's CLIP_benchmark."""
    named = repr(templates)
    if isinstance(templates, str) and Path(templates).suffix in (".json", ".txt"):
        templates = read_list(templates, "templates")
    elif isinstance(templates, str):
        packaged = {p.stem: p for p in FOLDER.glob("*.json")}
        if templates not in packaged:
            raise unknown("prompt templates", templates, [*sorted(packaged), "a .json or .txt file"])
        templates = read_list(str(packaged[templates]), "templates")
    templates = [t.replace("{c}", "{}") for t in templates]
    bad = [t for t in templates if "{}" not in t]
    if bad or not len(templates):
        raise UserError(f"prompt template {bad[0] if bad else ''!r} of {named} has no {{}} for the class name")
    return templates


def set_of_prompts(templates: str | Sequence[str], classes: str | Sequence[str] | None) -> str:
    """Which words a number was made with: `prompts imagenet (28, ours), names imagenet (ours)`.

    Packaged sets are ours. A person's own file goes by its name and the first 8 digits of its SHA-256, since a number
    is only comparable with one of the same words.
    """
    names = "of the data" if classes is None else _called(classes)
    return f"prompts {_called(templates, str(len(read_templates(templates))))}, names {names}"


def _called(words: str | Sequence[str], count: str = "") -> str:
    if not isinstance(words, str):
        name, about = "of a list", hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    elif Path(words).suffix in (".json", ".txt"):
        name, about = Path(words).name, hashlib.sha256(Path(words).read_bytes()).hexdigest()[:8]
    else:
        name, about = words, "ours"
    return f"{name} ({', '.join(filter(None, (count, about)))})"


def fill(template: str, name: str) -> str:
    """`a photo of {a} {}`, `orange cube` -> `a photo of an orange cube`."""
    article = "an" if re.match(r"(?i)(?!eu|one\b)[aeio]|u(?!n?i|s)|hour|heir", name) else "a"  # by ear, not by letter
    return template.replace("{a}", article).replace("{}", name)

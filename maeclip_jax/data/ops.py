"""Ops: what happens to a record before it is a row of a batch, written as a string of named functions.

    decode|random_resized_crop(224,area=(0.5,1))|tokenize(64)|keep("image","text")            training
    decode|resize_small(224)|center_crop(224)|captions(5)|tokenize(64)|keep("image","text")   evaluation

`parse` turns the string into a function (record, rng) -> example. Arguments are Python literals. The string ends
in `keep(...)`, which documents the batch. `describe` lists all ops. What antialias="fast" and "exact" mean, and
which op has which: image_ops.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maeclip_jax.data import image_ops, mask_ops, text_ops, vtab
from maeclip_jax.errors import UserError, choose, unknown

_PICTURE = (
    image_ops.random_resized_crop,
    image_ops.views,
    image_ops.random_crop,
    image_ops.center_crop,
    image_ops.corner_crop,
    image_ops.resize,
    image_ops.resize_small,
    image_ops.fit,
    image_ops.flip_lr,
    image_ops.blank,
)
_TEXT = (text_ops.pick_caption, text_ops.captions, text_ops.lower, text_ops.prefix, text_ops.tokenize)
_MASK = (mask_ops.mask, mask_ops.object_classes)
_ROW = (text_ops.label, text_ops.labels, text_ops.answers, vtab.vtab, text_ops.keep)
OPS: dict[str, Callable] = {f.__name__: f for f in (image_ops.decode, *_MASK, *_PICTURE, *_TEXT, *_ROW)}


@dataclass(frozen=True)
class Step:
    """One op with its arguments, and the text it was written as."""

    label: str
    function: Callable
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Ops:
    """A parsed op string: `ops(record, rng) -> example`. `names`: what it keeps. Picklable."""

    string: str
    steps: tuple[Step, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.steps[-1].args

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        """Raises BadRecord where the record is at fault, UserError where the string does not suit the records."""
        example = dict(record)
        for step in self.steps:
            try:
                example = step.function(example, rng, *step.args, **step.kwargs)
            except UserError as error:
                raise UserError(f"ops: {step.label}: {error}") from None
        return example


def parse(string: str, context=None) -> Ops:
    """The ops of `string`; tokenize uses `context.tokenizer`. Raises UserError with the place and what is valid."""
    source = str(string).replace("\n", " ")
    if not source.strip():
        raise UserError(f'ops: empty; write for instance decode|keep("image"); valid ops: {", ".join(OPS)}')
    try:
        node = ast.parse(f"({source})", mode="eval").body
    except SyntaxError as error:
        where = max(0, (error.offset or 1) - 2)
        place = f"at character {where}, before {source[where : where + 20]!r}, in {source!r}"
        raise UserError(f"ops: {error.msg} {place}") from None
    steps = tuple(_step(n, f"({source})", getattr(context, "tokenizer", None)) for n in _chain(node))
    _check_order(steps)
    return Ops(source, steps)


def _chain(node: ast.expr) -> list[ast.expr]:
    """a|b|c as a list; Python reads it as nested "or" of bits."""
    out = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        out.append(node.right)
        node = node.left
    return [node, *out[::-1]]


def _step(node: ast.expr, source: str, tokenizer) -> Step:
    label = ast.get_source_segment(source, node)
    where = f"at character {node.col_offset - 1} of {source[1:-1]!r}"
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise UserError(f"ops: {label!r} is not an op, name or name(arguments), {where}")
    try:
        function = choose("op", call.func.id, OPS)
        parameters = inspect.signature(function).parameters
        args = [_literal(a, source) for a in call.args]
        kwargs = {k.arg or "**": _literal(k.value, source) for k in call.keywords}
        own = {n: p for n, p in list(parameters.items())[2:] if n != "tokenizer"}
        for name in kwargs:
            if name not in own:
                raise unknown(f"argument of {call.func.id}:", name, own)
        try:
            bound = inspect.Signature(list(own.values())).bind(*args, **kwargs)
        except TypeError as error:
            raise UserError(f"{error}; it is {_usage(function)}") from None
        given = {"names": (), **bound.arguments} if "names" in own else bound.arguments
        kwargs = {name: _checked(name, value) for name, value in given.items()}
        args = kwargs.pop("names", ())
        if "method" in kwargs and kwargs.get("antialias", "exact") != "exact":
            raise UserError(f'method={kwargs["method"]!r} needs antialias="exact"; the others have their own')
        if "tokenizer" in parameters:
            if tokenizer is None:
                raise UserError('there is no tokenizer; set config.tokenizer, e.g. dict(type="bytes")')
            kwargs["tokenizer"] = tokenizer
    except UserError as error:
        raise UserError(f"ops: {label}: {error}; {where}") from None
    return Step(label, function, args, kwargs)


def _literal(node: ast.expr, source: str):
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.get_source_segment(source, node)
        raise UserError(f"an argument is a number, a quoted text, True, False or a tuple, not {text!r}") from None


def _check_order(steps: tuple[Step, ...]) -> None:
    names = [s.function.__name__ for s in steps]
    if names.count("keep") != 1 or names[-1] != "keep":
        raise UserError(f'ops: the last op, and only the last, must be keep("image", ...); found {" | ".join(names)}')
    if "decode" in names:
        first = next(s.function for s in steps if s.function in (*_PICTURE, image_ops.decode))
        if first is not image_ops.decode or names.count("decode") > 1:
            raise UserError(f"ops: decode must stand once, before every op on pictures; found {' | '.join(names)}")
    if "mask" in names:
        before = [s.function for s in steps[: names.index("mask")]]
        if names.count("mask") > 1 or any(f in (*_PICTURE, mask_ops.object_classes) for f in before):
            wanted = "mask must stand once, before object_classes and every op that changes the picture's size"
            raise UserError(f"ops: {wanted}; found {' | '.join(names)}")
    elif "mask" in steps[-1].args or "object_classes" in names:
        user = "object_classes" if "object_classes" in names else 'keep("mask")'
        raise UserError(f"ops: {user} needs mask before it; found {' | '.join(names)}")
    made = [s.kwargs.get("out", "text") for s in steps if s.function is text_ops.tokenize]
    if "text" in steps[-1].args and "text" not in made:
        raise UserError(f'ops: keep("text") needs tokenize(length) before it; found {" | ".join(names)}')


def _usage(function) -> str:
    shown = [str(p) for n, p in list(inspect.signature(function).parameters.items())[2:] if n != "tokenizer"]
    return f"{function.__name__}({', '.join(shown)})"


def describe() -> str:
    """All ops with their arguments and what they do, for help texts."""
    return "\n\n".join(_usage(f) + "\n" + textwrap.indent(inspect.getdoc(f), "    ") for f in OPS.values())


# Arguments mean the same in every op, so they are checked by name: value -> value, or None where it is not valid.


def _whole(least: int):
    return lambda v: v if isinstance(v, int) and not isinstance(v, bool) and v >= least else None


def _number(v) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool)


def _pair(v, most: float):
    good = isinstance(v, tuple) and len(v) == 2 and all(map(_number, v)) and 0 < v[0] <= v[1] <= most
    return (float(v[0]), float(v[1])) if good else None


def _size(v):
    v = v if isinstance(v, tuple) else (v, v)
    return v if len(v) == 2 and all(_whole(1)(n) for n in v) else None


def _antialias(v):
    v = {True: "exact", False: "fast"}.get(v, v)  # as other code bases write it
    return v if v in image_ops.ANTIALIAS else None


def _word(*choices: str):
    return (lambda v: v if v in choices else None), " | ".join(choices)


def _quoted(v):
    return v if isinstance(v, str) and v else None


_VALID = {
    "size": (_size, "a side or (height, width), whole and positive"),
    "side": (_whole(1), "a whole number of pixels, 1 or more"),
    "area": (lambda v: _pair(v, 1), "(smallest, largest) share of the picture, 0 < smallest <= largest <= 1"),
    "ratio": (lambda v: _pair(v, math.inf), "(narrowest, widest) width/height, 0 < narrowest <= widest"),
    "antialias": (_antialias, " | ".join(image_ops.ANTIALIAS)),
    "method": _word(*image_ops.METHODS),
    "truncated": _word("refuse", "fill"),
    "max_pixels": (_whole(1), "a whole number of pixels, 1 or more"),
    "min_side": (_whole(1), "a whole number of pixels, 1 or more"),
    "p": (lambda v: float(v) if _number(v) and 0 <= v <= 1 else None, "a probability from 0 to 1"),
    "fill": (lambda v: v if _whole(0)(v) is not None and v <= 255 else None, "a grey value from 0 to 255"),
    "length": (_whole(1), "a whole number of tokens, 1 or more"),
    "k": (_whole(1), "a whole number of captions, 1 or more"),
    "count": (_whole(1), "a whole number of labels, 1 or more"),
    "channel": (_whole(0), "the number of a channel, from 0"),
    "void": (lambda v: v if _whole(0)(v) is not None and v <= 255 else None, "an id from 0 to 255"),
    "most": (_whole(1), "a whole number of answers, 1 or more"),
    "words": (_quoted, "a quoted text"),
    "task": _word(*vtab.TASKS),
    "key": (_quoted, "the quoted name of a field"),
    "out": (_quoted, "the quoted name of a field"),
    "names": (lambda v: v if v and all(map(_quoted, v)) else None, "quoted names, at least one"),
}


def _checked(name: str, value):
    check, valid = _VALID[name]
    try:
        checked = check(value)
    except TypeError:  # an unhashable value
        checked = None
    if checked is None:
        raise UserError(f"{name}={value!r} is not valid; valid: {valid}")
    return checked

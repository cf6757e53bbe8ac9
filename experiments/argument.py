"""The typed argument after the colon of an experiment file: `clip.py:pool=max,scale=low,runlocal`."""

from __future__ import annotations

import ml_collections

from maeclip_jax.errors import UserError, unknown


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
    """`"pool=max,scale=low,runlocal"` -> typed values; a key alone means True.

    `defaults` gives names, types and default values. UserError names an unknown key or bad value and the valid ones.
    """
    values = dict(defaults)
    for part in filter(None, _split(arg or "")):
        key, equals, text = part.partition("=")
        if key not in defaults:
            raise unknown("experiment argument", key, sorted(defaults))
        kind = type(defaults[key])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise UserError(
                    f"experiment argument {key}={text!r} is a switch; valid: {key}, {key}=true, {key}=false"
                )
            values[key] = text.lower() in ("", "true", "1")
            continue
        if not equals:
            raise UserError(f"experiment argument {key!r} needs a value: {key}=... ({defaults[key]!r} by default)")
        try:
            values[key] = kind(text)
        except ValueError:
            raise UserError(f"experiment argument {key}={text!r} is not of type {kind.__name__}") from None
    return ml_collections.ConfigDict(values)


def _split(arg: str) -> list[str]:
    """At commas outside parentheses."""
    parts, depth = [""], 0
    for c in arg:
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]

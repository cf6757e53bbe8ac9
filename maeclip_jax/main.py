"""Trains or evaluates one experiment.

    python -m maeclip_jax.main --config=experiments/mae_clip.py:pool=max,scale=low --workdir=runs/a [--config.x.y=v ...]
    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a \
        --config.evals=experiments/eval/scenes.py

Running the same command again continues the run. A mistake in it ends in one line and exit code 2. --config is an
experiment file with its argument, or the config.json of a run; --config.evals may name a file of evaluations (a suite)
to take the place of the config's own.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags
from etils import epath

from maeclip_jax import doctor, join, pod, startup, watchdog
from maeclip_jax.errors import UserError, unknown

MODES = ("train", "eval")
PLATFORMS = ("cpu", "tpu", "gpu")
CACHE = "~/.cache/maeclip_jax/xla"
# What libraries warn of although all is well.
HARMLESS = ("Reached preemption sync point",)


def define_flags(values: flags.FlagValues, config, argv: list[str]) -> None:
    """The command line, on flag values of its own, so that importing this module defines no global flags."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_dict(
        "config", config, help_string="experiment file[:argument], or config.json", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "directory of the run; local or gs://", flag_values=values)
    flags.DEFINE_string("mode", "train", f"one of {', '.join(MODES)}", flag_values=values)
    flags.DEFINE_string(
        "platform", "", f"one of {', '.join(PLATFORMS)}: insist on it (default: what jax finds)", flag_values=values
    )
    flags.DEFINE_integer(
        "cpu_devices", 0, "so many CPU devices instead of one, to try out sharding", flag_values=values
    )
    flags.DEFINE_string("coordinator", "", "host:port of process 0 (needed outside TPU pods)", flag_values=values)
    flags.DEFINE_integer(
        "processes",
        0,
        "number of processes (default: what a TPU slice says, else 1)",
        flag_values=values,
    )
    flags.DEFINE_integer("process", 0, "number of this process", flag_values=values)
    flags.DEFINE_float("join_timeout", 300, "seconds to wait until all processes have come", flag_values=values)
    flags.DEFINE_string(
        "cache", None, f"compilation cache, local or gs://; empty: none; default: {CACHE}, or WORKDIR/xla where the "
        "workdir is remote, so that new machines find it", flag_values=values,
    )  # fmt: skip
    limits = watchdog.Limits()
    flags.DEFINE_float(
        "stall_factor", limits.factor, "stacks are printed when a step takes so many median steps,", flag_values=values
    )
    flags.DEFINE_float(
        "stall_seconds", limits.seconds, "... and at least so many seconds; 0: never", flag_values=values
    )


def parse(argv: list[str]) -> flags.FlagValues:
    """Flags of a command line; UserError for anything wrong in it, with the valid choices."""
    config, argv = load(argv)
    values = flags.FlagValues()
    try:
        define_flags(values, config, argv)
        rest = values(argv)
    except UserError:
        raise
    except flags.UnrecognizedFlagError as e:
        raise _flag_error(e, argv, config, [f"--{n}" for n in values if not n.startswith("config.")]) from e
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        raise _flag_error(e, argv, config) from e
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; settings are written --config.name=value")
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of the run, such as --workdir=runs/mine")
    for name, choices in (("mode", MODES), ("platform", ("", *PLATFORMS))):
        if values[name].value not in choices:
            raise unknown(f"--{name}", values[name].value, filter(None, choices))
    if ":" in values.config.get("init_from", ""):
        from maeclip_jax.interop import adoption

        adoption.adopt(values.config)  # the towers of other code bases' weights
    return values


def load(argv: list[str]) -> tuple:
    """(config, rest): the config that a command line names, without overrides, and what else stands there.

    The folder of an experiment's folder joins sys.path, so that files may import their neighbours from anywhere.
    """
    named, rest = _take(argv, "config")
    if not named:
        raise UserError(
            "--config is missing: name an experiment file, such as --config=experiments/mae_clip.py:scale=demo"
        )
    path, _, arg = named.partition(":")
    if path.endswith(".json"):
        config = read_config(named)
    else:
        config = _call(path, "experiment", "get_config", arg or None)
    suite, rest = _take(rest, "config.evals")
    if suite:
        path, _, arg = suite.partition(":")
        config.evals = _call(path, "evaluation", "get_evals", config, arg or None)
    return config, rest


def _take(argv: list[str], flag: str) -> tuple[str, list[str]]:
    """The last value of --flag=value or --flag value, and the command line without it."""
    value, rest, after = "", [], iter(argv)
    for arg in after:
        name, equals, text = arg.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            value = text if equals else next(after, "")
        else:
            rest.append(arg)
    return value, rest


def read_config(path: str):
    """The config that a run left as config.json; lists become the tuples they were. UserError if it cannot be read."""
    import json

    from ml_collections import ConfigDict

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return tuple(plain(v) for v in value) if isinstance(value, list) else value

    try:
        return ConfigDict(plain(json.loads(epath.Path(path).read_text())))
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"cannot read --config={path}: {' '.join(str(e).split())}; valid: a run's config.json") from e


def _call(path: str, what: str, function: str, *args):
    """Calls `function` of the file at `path`; a UserError names what is wrong with either."""
    if not os.path.isfile(path):
        here = sorted(glob.glob("experiments/eval/*.py" if what == "evaluation" else "experiments/*.py"))
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


def _flag_error(error: Exception, argv: list[str], config, valid: Sequence[str] = ()) -> UserError:
    """What went wrong in a command line, said in one line; `valid`: the flags there are."""
    text = " ".join(str(error).split())
    for arg in argv[1:]:
        name, _, value = arg.lstrip("-").partition("=")
        if not name.startswith("config."):
            continue
        node, parts = config, name.split(".")[1:]
        for i, part in enumerate(parts):
            if not hasattr(node, "keys"):
                return UserError(f"--{name}: config.{'.'.join(parts[:i])} is a value and has no {part!r}")
            if part not in node:
                return unknown(
                    f"setting config.{'.'.join(parts[:i])}".rstrip(".") + ": name", part, sorted(node.keys())
                )
            node = node[part]
        if name in text or name.removeprefix("config.") in text or (value and value in text):
            return UserError(f"--{name}={value} does not fit: it is {node!r} ({type(node).__name__}) by default")
    if isinstance(error, flags.UnrecognizedFlagError):
        return unknown("flag", f"--{error.flagname}", [*valid, "--config.<name>"])
    return UserError(text)


def start_logging() -> None:
    """Warnings as plain lines on stderr, less those known to mean nothing; nothing where logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: not any(text in record.getMessage() for text in HARMLESS))
    logging.basicConfig(handlers=[handler])


def start_jax(values: flags.FlagValues) -> None:
    """Sets up jax before anything touches a device: platform, fake devices, compilation cache, the other processes."""
    import jax

    if values.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", values.cpu_devices)
    if values.platform:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(values.platform, values.platform))
    jax.config.update("jax_numpy_rank_promotion", "raise")
    folder = cache_folder(values)
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    on_cpu = values.cpu_devices or "cpu" in (values.platform, os.environ.get("JAX_PLATFORMS"))
    found = pod.find(values.coordinator, values.processes, values.process, ask=not on_cpu)
    if found:
        card = pod.card(values.config, {"mode": values.mode, "workdir": values.workdir})
        join.join(found, card, values.join_timeout)
    if not (values.platform or values.cpu_devices or os.environ.get("JAX_PLATFORMS")):
        doctor.refuse_fallback()


def cache_folder(values: flags.FlagValues) -> str:
    """Where compiled programs are kept: --cache, else jax's variable, else a folder of the user's or of the run's."""
    folder = values.cache
    if folder is None:
        here = f"{values.workdir.rstrip('/')}/xla" if "://" in values.workdir else CACHE
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", here)
    return os.path.expanduser(folder)


def guarded(function: Callable[[], None]) -> int:
    """Runs a command; a UserError becomes one line on stderr and exit code 2 (MAECLIP_TRACEBACK=1 shows where)."""
    try:
        function()
        return 0
    except UserError as e:
        if os.environ.get("MAECLIP_TRACEBACK"):
            traceback.print_exc()
        text = " ".join(str(e).split())
        print(f"error: {text}", file=sys.stderr, flush=True)
        join.failed(2, text)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr, flush=True)
        join.failed(130, "interrupted")
        return 130


def run(argv: list[str]) -> None:
    """Parses, sets up jax, trains or evaluates."""
    start = startup.Startup()
    values = parse(argv)
    start_logging()
    import jax

    from maeclip_jax import evaluate, train

    start.add("import", start.so_far())
    limits = watchdog.Limits(values.stall_factor, values.stall_seconds)
    with watchdog.Watchdog(limits, start.look):
        with start.phase("join"):
            start_jax(values)
        with start.phase("devices"):
            jax.devices()
        if values.mode == "train":
            train.run(values.config, values.workdir, start=start, limits=limits)
    if values.mode == "eval":
        evaluate.run(values.config, values.workdir)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done or stopped on request, 2 for a mistake of the user's, 130 for Ctrl-C.

    A process of several also exits with join.LOST, 75, when another is lost, and with the code of one that fails.
    """
    argv = sys.argv if argv is None else argv
    if {"--help", "-help", "-h"} & set(argv):
        from ml_collections import ConfigDict

        values = flags.FlagValues()
        define_flags(values, ConfigDict(), argv[:1])
        print(f"{__doc__}{values.module_help(__name__) or values.get_help()}")
        return 0
    return guarded(lambda: run(argv))


def leave(command: Callable[[], int]) -> NoReturn:
    """Runs a command and exits with its code.

    Where one of several processes fails alone, all end, within seconds: jax would wait 5 minutes for it.
    """
    try:
        code = command()
    except Exception as e:
        join.settle()
        traceback.print_exc()
        code = 1
        join.failed(code, f"{type(e).__name__}: {e}")
    if code:
        join.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main)

"""What every command shares: flags, --config, one-line errors with exit code 2, warnings as lines.

A command makes a `Parser`, adds its own flags, and runs under `guarded`. Commands about an experiment add the flags of
`add_machine` and parse with `parse_experiment`, which takes --config and --config.<name>=<value> in any order.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from maeclip_jax import config as configs
from maeclip_jax import remote
from maeclip_jax.data.ahead import THREAD as READING
from maeclip_jax.errors import UserError, storage, unknown
from maeclip_jax.parallel import joining, machine, rollcall
from maeclip_jax.parallel.terminal import warn

# What libraries warn of although all is well.
HARMLESS = ("Reached preemption sync point",)
# What orbax's threads print of a save that failed, beside the error that it raises, which is the one that counts.
ECHO = "Event loop is closed"


class Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are UserErrors that name the valid flags. `doc`: the docstring of the command."""

    def __init__(self, prog: str, doc: str):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m {prog}", description=doc, formatter_class=style, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        """As argparse, but an unknown flag is named with its nearest neighbour."""
        found, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                raise unknown("flag", word.partition("=")[0], self.flags())
            raise UserError(f"unexpected argument {word!r}; settings are written --config.name=value")
        return found

    def flags(self) -> list[str]:
        """All long flags."""
        return sorted(o for action in self._actions for o in action.option_strings if o.startswith("--"))


class ExperimentParser(Parser):
    """The parser of a command about an experiment: knows --config and --config.<name> beside the flags it is given."""

    def flags(self) -> list[str]:
        return [*super().flags(), "--config", "--config.<name>"]

    def parse_experiment(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags, with `config` loaded. UserError for anything wrong in them, with the valid choices."""
        source, suite, settings, rest = split_config(argv)
        found = self.parse_args(rest)
        found.config = configs.load(source or self._no_config(), settings, suite)
        found.source = source
        return found

    @staticmethod
    def _no_config() -> NoReturn:
        raise UserError(
            "--config is missing: name an experiment file, such as --config=experiments/mae_clip.py:scale=demo"
        )


def split_config(argv: Sequence[str]) -> tuple[str, str, dict[str, str], list[str]]:
    """(--config, --config.evals, {name: value} of the other --config.<name>, the rest); the last of a flag counts.

    A value may follow its flag as a word of its own.
    """
    source, suite, settings, rest, given = "", "", {}, [], iter(argv)
    for word in given:
        name, equals, value = word.partition("=")
        name = "--" + name.lstrip("-") if name.startswith("-") else name
        if name != "--config" and not name.startswith("--config."):
            rest.append(word)
            continue
        if not equals:
            value = next(given, None)
            if value is None:
                raise UserError(f"{name} needs a value")
        if name == "--config":
            source = value
        elif name == "--config.evals":
            suite = value
        else:
            settings.pop(name[9:], None)
            settings[name[9:]] = value
    return source, suite, settings, rest


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that set the devices, the other processes and the compilation cache of a command."""
    platforms = ", ".join(machine.PLATFORMS)
    add = parser.add_argument
    add("--platform", default="", help=f"one of {platforms}: insist on it (default: what jax finds)")
    add("--cpu_devices", type=int, default=0, help="this many CPU devices instead of one, to try out sharding")
    add("--coordinator", default="", help="host:port of process 0 (needed outside TPU pods)")
    add("--processes", type=int, default=0, help="number of processes (default: what a TPU slice says, else 1)")
    add("--process", type=int, default=0, help="number of this process")
    add("--join_timeout", type=float, default=300, help="seconds to wait until all processes are there (%(default)s)")
    add("--cache", help=f"compilation cache, local or gs://; empty: none; default: {machine.CACHE}, or WORKDIR/xla "
        "where the workdir is remote, so that new machines find it")  # fmt: skip


def start_jax(args: argparse.Namespace, **identity: str) -> None:
    """Sets up jax before anything touches a device: platform, fake devices, compilation cache, the other processes.

    `args`: flags of `add_machine` and the config. `identity`: what besides all processes of a run must agree on.
    """
    if args.platform not in ("", *machine.PLATFORMS):
        raise unknown("--platform", args.platform, machine.PLATFORMS)
    cache = machine.cache_folder(args.cache, identity.get("workdir", ""))
    remote.check_scheme(cache, "--cache")
    on_cpu = machine.configure_jax(args.platform, args.cpu_devices, cache)
    joining.join_if_several(
        args.coordinator, args.processes, args.process, ask=not on_cpu, timeout=args.join_timeout,
        settings=lambda: agreed(args.config, identity),
    )  # fmt: skip
    if not (args.platform or args.cpu_devices or os.environ.get("JAX_PLATFORMS")):
        machine.refuse_fallback()


def agreed(config, flags: Mapping[str, str]) -> dict[str, object]:
    """What all processes of a run must agree on: `flags`, every leaf of the config by name, and the files it names."""
    settings = {f"config.{name}": value for name, value in configs.leaves(configs.plain(config))}
    settings |= {f"content of config.{n}": configs.digest(path) for n, path in configs.named_files(config).items()}
    return {f"--{name}": value for name, value in flags.items()} | settings


def start_logging() -> None:
    """Prints warnings, except known harmless ones, as plain lines on stderr, unless logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: not any(text in record.getMessage() for text in HARMLESS))
    if not os.environ.get("MAECLIP_TRACEBACK"):
        handler.addFilter(lambda record: not _is_echo(record))
        before = sys.unraisablehook
        sys.unraisablehook = lambda args: None if ECHO in str(args.exc_value) else before(args)
        warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    warnings.showwarning = _show
    logging.basicConfig(handlers=[handler])


def _is_echo(record: logging.LogRecord) -> bool:
    """Whether this is what orbax's threads and tasks say of a save that failed."""
    text = record.getMessage()
    return "orbax" in record.pathname + text and bool(record.exc_info or text.startswith("Task was destroyed"))


def _show(message: Warning | str, kind: type, *_) -> None:
    """A Python warning in one line."""
    text = " ".join(str(message).split())
    cache = machine.mend_cache(text)
    if cache is None:
        warn(f"{kind.__name__}: {text}")
    elif cache:
        warn(cache)


def guarded(command: Callable[[], int | bool | None]) -> int:
    """Runs a command and returns its exit code: the int that it returns, or 0; 2 for a UserError; 130 for Ctrl-C.

    Of a UserError, `storage.Away` has the code 75: nothing is wrong with the command, which goes on later.
    A UserError becomes one line on stderr (MAECLIP_TRACEBACK=1 also shows where it was raised).
    """
    try:
        code = command()
        return code if type(code) is int else 0  # a bool says whether a run came to its end
    except UserError as e:
        return _mistake(e)
    except OSError as e:
        if storage.number(e) is None:
            raise
        return _mistake(e)
    except Exception as e:
        said = storage.met(e)
        if said is None:
            raise
        return _mistake(said)
    except SystemExit as e:  # argparse, after --help
        return int(e.code or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it was", file=sys.stderr, flush=True)
        joining.failed(130, "interrupted")
        return 130


def _mistake(error: Exception) -> int:
    if os.environ.get("MAECLIP_TRACEBACK"):
        traceback.print_exc()
    text = " ".join(str(error).split())
    with contextlib.suppress(OSError):  # where it is written may be full as well
        print(f"error: {text}", file=sys.stderr, flush=True)
    code = rollcall.LOST if isinstance(error, storage.Away) else 2
    joining.failed(code, text)
    return code


def leave(command: Callable[[], int]) -> NoReturn:
    """Runs a command and exits with its code.

    Where one of several processes fails alone, all end, within seconds: jax would wait 5 minutes for it.
    """
    try:
        code = command()
    except Exception as e:
        joining.settle()
        traceback.print_exc()
        code = 1
        joining.failed(code, f"{type(e).__name__}: {e}")
    if code:
        joining.leave(code)
        if any(type(t).__module__.startswith("orbax.") for t in threading.enumerate()):
            # Threads of a save that failed, which wait for minutes for one another, and Python for them.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os._exit(code)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk takes no more of it; Python would try again and end with a code of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(t.name == READING or t.name.startswith("read gs://") for t in threading.enumerate()):
        # Google's C++ client, which has not given up on a read of before an outage, would abort the process here.
        atexit._run_exitfuncs()  # jax's among them, which several processes end together with
        os._exit(code)
    sys.exit(code)

"""The input pipeline: configs in, batches of numpy arrays out.

`open` opens the sources of a config; its `train` gives endless batches, its `evaluate` one pass in order, both as the
rows of one host. Example n of a training run is a pure function of (seed, n): the record, its augmentation and its
replacement if it is bad know nothing of hosts, threads or processes. So the position of a run is one integer, the
number of examples seen, and a run continues from it in O(1) on any number of hosts, also with another batch size. Step
s on host h of H holds examples `start + s*B + h*B/H + j`: neighbours, in the order in which a batch sharded over the
mesh is laid out.

The work is grain's (`MapDataset` over the rows, threads, worker processes); the order is that of `data.order`, record
by record, or of `data.blocks`, for data in buckets.

A data config is a dict:

    source       dict(kind=..., ...), see data.source
    ops          'decode|...|keep("image","text")'
    mix          ((name, weight, dict(source=, ops=)), ...) instead of source
    seed_offset  another order with the same seed (0)
    max_bad      share of bad records that stops the run (0.1)
    order        "records" permutes records, "blocks" blocks of neighbours; "auto": blocks where a source is in a bucket
    blocks       dict(size=64, window=16, lanes=0, ahead=4, reads=64): see data.blocks.Settings
    num_threads  threads that decode, and read if records are read one by one (0: one a core, at most 16)
    num_workers  processes beside this one, for ops that hold Python's lock (0)
    prefetch     whole batches kept ready (2)

Memory is bounded by (prefetch + 2) batches and a few chunks of 32 rows a thread; with blocks, `window` + `ahead` blocks
of each lane of this host come to that, which `Batches.how` tells in bytes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

from maeclip_jax.data import blocks, caption_length, order, source
from maeclip_jax.data.ahead import Reading, readable
from maeclip_jax.data.batches import Batches
from maeclip_jax.data.rows import Component, EvaluationRows, TrainRows, collate, signature
from maeclip_jax.errors import UserError, unknown
from maeclip_jax.scenes import pool

_DEFAULTS = {
    "source": None,
    "ops": None,
    "mix": None,
    "seed_offset": 0,
    "max_bad": 0.1,
    "order": "auto",
    "blocks": {},
    "num_threads": 0,
    "num_workers": 0,
    "prefetch": 2,
}
_CHUNK = 32  # rows a thread makes at a time: small enough to start soon, large enough to cost nothing


class Data:
    """An opened data config: its sources are open, and every pass reads from them. `open` makes one.

    `length`: records in one epoch (a mix: of all its components), None where a source is endless. `names`: what the
    numbers in the data mean: "label" -> names of classes, "answer" -> answers; {} if nothing is known. `source`: of the
    first component.
    """

    def __init__(self, config, make: Callable = source.make):
        self.config = _checked(config)
        self._parts = [(name, weight, part, make(part["source"])) for name, weight, part in _parts(self.config)]
        self.source = self._parts[0][3]
        self.length = _total(made for *_, made in self._parts)

    def account(self, batch_size: int) -> dict[str, dict]:
        """{component: its order, and what tells its data from others of the same name, where the source knows}."""
        said = {"order": str(self.plan(batch_size) or "records")}
        return {name: {**getattr(made, "account", {}), **said} for name, *_, made in self._parts}

    @property
    def sources(self) -> list[tuple[float, object]]:
        """(weight, source) of every component."""
        return [(weight, made) for _, weight, _, made in self._parts]

    @functools.cached_property
    def names(self) -> dict[str, list[str]]:
        """UserError if the components of a mix do not agree."""
        found: dict[str, list[str]] = {}
        for name, _, _, made in self._parts:
            for what, attribute in (("label", "classes"), ("answer", "answers")):
                names = [str(w) for w in getattr(made, attribute, None) or ()]
                if names and found.setdefault(what, names) != names:
                    raise UserError(f"mix component {name!r} has other names of {what} than those before it")
        return found

    def cut_captions(self, tokenizer, records: int = caption_length.SAMPLE) -> caption_length.Cut:
        """How many captions of the first `records` records (of each component of a mix) are cut by the ops."""
        found = caption_length.Cut()
        for _, _, part, made in self._parts:
            caption_length.count(made, min(records, len(made)), _ops(part["ops"], tokenizer), tokenizer, found)
        return found

    def train(
        self,
        *,
        batch_size: int,
        seed: int,
        start_example: int = 0,
        tokenizer=None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Batches:
        """Endless training batches from global example `start_example` on: this host's rows of each global batch.

        batch_size is global. Besides what the ops keep, a batch has `_key` (object array of str, host only), `_bad`
        (int32: 1 where another record stands for a bad one) and `_bad_names` (list of "key: kind: detail", host only).
        Raises UserError for anything wrong in the config, and when the components of a mix give different rows.
        """
        config = self.config
        rows_a_host = _divide(batch_size, process_index, process_count)
        offset = process_index * rows_a_host
        plan = self.plan(batch_size)
        lanes = plan.lanes if plan else 1
        if start_example < 0 or start_example % lanes:
            raise UserError(
                f"start_example is a count of examples, a multiple of the {lanes} lanes, not {start_example}"
            )
        seeds = (seed, config["seed_offset"])
        mix = order.Mix([weight for _, weight, *_ in self._parts], *seeds) if config["mix"] else None
        reading = Reading(plan.reads) if plan else None
        components, held = [], 0.0
        for c, (name, _, part, made) in enumerate(self._parts):
            ops, length = _ops(part["ops"], tokenizer), None if _endless(made) else _length(made, part["source"])
            if plan is None or length is None:
                components.append(Component(name, made, ops, order.Epochs(length, *seeds, name, lanes=lanes)))
                continue
            size = plan.size if readable(made) else 1
            epochs = blocks.Blocks(length, *seeds, name, size=size, window=plan.window, lanes=lanes)
            ahead = None
            if readable(made):
                starts = blocks.starts(start_example, batch_size, lanes, offset, rows_a_host)
                if mix:
                    starts = {lane: mix.before(position, c, lane) for lane, position in starts.items()}
                held += len(starts) * (plan.window + plan.ahead) * epochs.size * getattr(made, "record_bytes", 0)
                pace = mix.window / mix.counts[c] if mix else 1.0
                # A worker process has some of the rows; it finds out which lanes they are of when it is asked for them.
                starts = {} if config["num_workers"] else starts
                ahead = reading.of(made, epochs, ahead=plan.ahead, starts=starts, pace=pace)
            components.append(Component(name, made, ops, epochs, ahead))
        rows = TrainRows(
            components,
            mix,
            key=order.stable_hash("augment", *seeds),
            start=start_example,
            batch_size=batch_size,
            block=(offset, rows_a_host),
            lanes=lanes,
        )
        spec = _common_spec(rows)
        return Batches(
            _iterate(rows, rows_a_host, config),
            spec,
            max_bad=config["max_bad"],
            whole=self.length,
            alone=process_count == 1,
            reading=reading,
            how=_told(plan, held) if plan else "",
        )

    def plan(self, batch_size: int) -> blocks.Settings | None:
        """How blocks are read; None if records are, one by one."""
        plan, kind = blocks.settings(self.config["blocks"], batch_size), self.config["order"]
        if kind not in blocks.ORDERS:
            raise unknown("order of data:", kind, blocks.ORDERS)
        if kind == "auto":
            kind = "blocks" if any(getattr(made, "remote", False) for *_, made in self._parts) else "records"
        return plan if kind == "blocks" else None

    def evaluate(self, *, batch_size: int, tokenizer=None, process_index: int = 0, process_count: int = 1) -> Batches:
        """One pass over one source in its own order: every record once, all hosts the same number of batches.

        Adds `_valid` (bool): False for rows of zeros, which fill the last batch or stand for a record that cannot be
        used. A bad record is not replaced but left out, counted in `_bad` and named. Draws of the ops, if any, depend
        on the index alone, so two passes are equal.
        """
        config = self.config
        if config["mix"]:
            raise UserError("evaluation reads one source, not a mix: give source=dict(kind=...)")
        rows_a_host = _divide(batch_size, process_index, process_count)
        made = self.source
        if _endless(made):
            raise UserError(f"evaluation needs an end: give count=... to the source of {config['source']!r}")
        whole = _length(made, config["source"])
        plan, block, reading, ahead = self.plan(batch_size), (process_index * rows_a_host, rows_a_host), None, None
        if plan and readable(made):
            reading = Reading(plan.reads)
            told = {"batch_size": batch_size, "offset": block[0], "rows": block[1], "size": plan.size}
            ahead = reading.of(made, blocks.InOrder(whole, **told), ahead=plan.reads)
        component = Component("evaluation", made, _ops(config["ops"], tokenizer), order.Epochs(None), ahead)
        rows = EvaluationRows(component, whole, batch_size, block)
        return Batches(
            _iterate(rows, rows_a_host, config),
            rows.spec,
            max_bad=config["max_bad"],
            whole=whole,
            alone=process_count == 1,
            reading=reading,
        )


def open(config, make: Callable = source.make) -> Data:
    """The data of a config, opened once for all its readers. UserError if something is wrong or missing.

    `make`: config of a source -> the source; a caller passes it to share sources between data configs.
    """
    return Data(config, make)


def train(config, **how) -> Batches:
    """`open(config).train(...)`, for a config that is read only once."""
    return open(config).train(**how)


def evaluate(config, **how) -> Batches:
    """`open(config).evaluate(...)`, for a config that is read only once."""
    return open(config).evaluate(**how)


def _total(sources) -> int | None:
    lengths = [None if _endless(s) else len(s) for s in sources]
    return None if None in lengths else sum(lengths)


def _endless(made) -> bool:
    return getattr(made, "endless", False)


def _length(made, config) -> int:
    if len(made) == 0:
        raise UserError(f"source {config!r} holds no records")
    return len(made)


def _checked(config) -> dict:
    config = source.plain(config)
    if not isinstance(config, dict):
        raise UserError(f"a data config is a dict with {', '.join(_DEFAULTS)}, not {config!r}")
    for name in config:
        if name not in _DEFAULTS:
            raise unknown("key of a data config:", name, _DEFAULTS)
    config = {**_DEFAULTS, **config}
    if (config["source"] is None) == (not config["mix"]):
        raise UserError("a data config has a source or a mix, one of the two")
    return config


def _parts(config: dict) -> list[tuple[str, float, dict]]:
    """(name, weight, dict(source, ops)) of every component."""
    if not config["mix"]:
        return [("", 1.0, config)]
    parts = []
    for entry in config["mix"]:
        if len(entry) != 3:
            raise UserError(f"an entry of mix is (name, weight, dict(source=, ops=)), not {entry!r}")
        name, weight, part = entry
        part = source.plain(part)
        for key in part:
            if key not in ("source", "ops"):
                raise unknown(f"key of mix component {name!r}:", key, ("source", "ops"))
        if not (isinstance(weight, int | float) and weight > 0):
            raise UserError(f"weight of mix component {name!r} is {weight!r}; valid: any number above 0")
        if "source" not in part:
            raise UserError(f"mix component {name!r} has no source")
        parts.append((name, weight, {"ops": config["ops"], **part}))
    twice = [name for name, count in Counter(name for name, *_ in parts).items() if count > 1]
    if twice:
        raise UserError(f"mix has several components named {', '.join(map(repr, twice))}: names must differ")
    return parts


def _ops(ops, tokenizer):
    """The row function of an op string; a function `(record, rng) -> example` is taken as it is."""
    if callable(ops):
        return ops
    if not ops:
        raise UserError('a data config needs ops, for instance decode|resize(64)|tokenize(32)|keep("image","text")')
    from maeclip_jax.data.ops import parse

    return parse(ops, SimpleNamespace(tokenizer=tokenizer))


def _divide(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        near = max(1, round(batch_size / process_count)) * process_count
        raise UserError(
            f"batch size {batch_size} cannot be divided over {process_count} processes; "
            f"valid: multiples of {process_count}, for instance {near}"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}; valid: 0 to {process_count - 1}")
    return batch_size // process_count


def _told(plan: blocks.Settings, held: float) -> str:
    return (
        f"{plan}, {plan.reads} reads at a time, up to {held / 1e6:.0f} MB held by this process; about 1 of "
        f"{plan.lanes * plan.window} rows of a batch are of one block"
    )


def _common_spec(rows: TrainRows) -> dict:
    """The signature all components share; makes one example of each, so a wrong op fails here and not in a thread."""
    specs = {c.name: signature(rows.example(c, 0, 0, 0, ahead=False)[0]) for c in rows.components}
    (first, spec), *others = specs.items()
    for name, other in others:
        if other != spec:
            raise UserError(
                f"components of a mix give different rows: {first!r} has {_show(spec)}; {name!r} has {_show(other)}; "
                "end their ops with the same keep(...), resize and tokenize"
            )
    return spec


def _show(spec: dict) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in sorted(spec.items()))


def _iterate(rows, rows_a_host: int, config: dict):
    """grain's part: chunks of rows made by threads (and processes), joined to batches by a thread ahead of the loop."""
    import grain

    # A chunk divides the batch; a batch with no divisor worth having is made in one piece.
    chunk = max(d for d in range(1, min(_CHUNK, rows_a_host) + 1) if rows_a_host % d == 0)
    workers, lane = config["num_workers"], rows.batch_size // rows.lanes
    if chunk < 8:
        chunk = rows_a_host
    if workers and rows.lanes > 1 and rows_a_host % lane == 0:
        chunk = max(chunk - chunk % lane, lane)  # a worker has whole lanes, or two would read the same blocks
        chunk = next(d for d in range(chunk, 0, -lane) if rows_a_host % d == 0)
    threads = config["num_threads"] or min(16, pool.cores())
    threads = max(1, threads // max(1, workers))
    dataset = grain.MapDataset.source(rows).batch(chunk, batch_fn=collate)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads flags before it starts a process; a notebook has parsed none
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    dataset = dataset.batch(rows_a_host // chunk, batch_fn=list)
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=config["prefetch"]))

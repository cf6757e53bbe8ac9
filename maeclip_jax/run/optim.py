"""Optimizer and learning-rate schedule from the config's `optim` section, all per-parameter choices by path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from maeclip_jax import errors
from maeclip_jax.config import to_steps
from maeclip_jax.params import flatten, is_stacked, map_with_path, match_any, match_rules
from maeclip_jax.run import layer_decay, layerwise

# Which parameters Muon turns: path regex -> (axes that a product sums over, axes it makes), counted from the last. All
# other axes, such as that of stacked layers, are apart. What no rule matches is Adam's: vectors, tables and heads, and
# the projection of patches, as Jordan et al. (2024) leave inputs and outputs to Adam.
MUON = ((r".*/trunk/block(s|_\d+)/(attention|mlp)/(qkv|out|up|down)/kernel", (-2, -1)),)
MUON_BETA = 0.95  # of its momentum (Jordan et al. 2024)
# The root mean square of an update is that of AdamW's, so that AdamW's rate and decay serve (Liu et al. 2025).
MUON_RMS = 0.2


def adafactor(o: Mapping) -> optax.GradientTransformation:
    """As big_vision's, with its constants: moments of a layer's matrices from 32 x 32 on are factored, their decay is
    at most 0.999, updates are not clipped, and momentum comes after the scaling."""
    scale = layerwise.factored_rms(
        decay_rate=0.8,
        min_dim_size_to_factor=32,
        decay_rate_fn=lambda step, power: jnp.minimum(0.999, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -power),
    )
    return optax.chain(scale, optax.ema(o.b1, debias=False, accumulator_dtype=o.mu_dtype))


def muon(o: Mapping, params: Any) -> optax.GradientTransformation:
    """optax's Muon on what the rules `optim.muon` name (none: MUON), its Adam with Nesterov momentum on the rest.

    The three parts of a fused q, k, v are orthogonalised together. UserError for a rule that no parameter matches, or
    for axes that are not two different ones of it.
    """
    own = tuple(o.get("muon", ()))  # a run from before this setting has none
    rules, flat = own or MUON, flatten(params)
    numbered = tuple((pattern, i) for i, (pattern, _) in enumerate(rules))
    rule_of = flatten(match_rules(numbered, params, "optim.muon", default=len(rules), strict=bool(own)))
    turned = {path: tuple(rules[i][1]) for path, i in rule_of.items() if i < len(rules)}
    for path, axes in turned.items():
        ndim = flat[path].ndim
        if len(axes) != 2 or len({axis % ndim for axis in axes if -ndim <= axis < 0}) != 2:
            raise errors.UserError(
                f"optim.muon gives {path!r} {flat[path].shape} the axes {axes}; valid: two of its axes, counted from "
                "the last, such as (-2, -1) of a matrix"
            )

    def dimensions(tree: Any) -> Any:  # of the parameters, or of those that are not frozen
        def of(path: str, leaf: Any):
            return optax.contrib.MuonDimensionNumbers(*turned[path]) if path in turned else None

        return map_with_path(of, tree)

    return optax.contrib.muon(
        learning_rate=-1.0,  # the direction alone: decay and rate follow in the chain, as of every optimizer
        beta=MUON_BETA, eps=o.eps, adam_b1=o.b1, adam_b2=o.b2, mu_dtype=o.mu_dtype, consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip


# The core update of each optimizer, before weight decay, multipliers and learning rate: of `optim`, the parameters.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda o, _: optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps, mu_dtype=o.mu_dtype),
    "lamb": lambda o, _: optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps, mu_dtype=o.mu_dtype),
    "lion": lambda o, _: optax.scale_by_lion(b1=o.b1, b2=o.b2, mu_dtype=o.mu_dtype),
    "adafactor": lambda o, _: adafactor(o),
    "muon": muon,
    "sgd": lambda o, _: optax.trace(decay=o.b1, accumulator_dtype=o.mu_dtype),
}
# What experiments exempt from decay, of whatever parameters a model has of it.
NO_DECAY = (r".*/(embedding|position|probe)",)
MOMENT_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("cosine", "linear", "constant", "rsqrt")
COOLED = ("constant", "rsqrt")  # those that may end in a cool-down: the others fall to their end anyway
DECAYS = ("lr", "schedule")


class Rate(NamedTuple):
    """The learning rate of a step: `peak` times `shape(step)`, which is 1 at the peak."""

    peak: float
    shape: Callable[[Any], jax.Array]

    def __call__(self, step: Any) -> jax.Array:
        return self.peak * self.shape(step)


def schedule(optim: Mapping, *, batch_size: int, total: int, epoch: int | None) -> Rate:
    """Linear warm-up to the peak, then cosine | linear | constant | rsqrt down to `end_lr` (a share of the peak).

    The last `optim.cooldown` of constant and rsqrt takes them down to `end_lr` by a factor that falls linearly, as in
    big_vision. With constant that is warm-up, a stable phase and decay: until the cool-down begins, the rate depends
    neither on its length nor on that of the run, so that cool-downs branch off one stable phase.

    `optim.lr` is absolute when `optim.lr_per_examples` is 0; otherwise it is per that many examples of the global batch
    (256 for MAE, M3AE and FLIP recipes: peak = lr * batch / 256).
    """
    peak = optim.lr * (batch_size / optim.lr_per_examples if optim.lr_per_examples else 1)
    warmup = to_steps(optim.warmup, "optim.warmup", batch_size=batch_size, epoch=epoch, total=total)
    if warmup > total:
        raise errors.UserError(f"optim.warmup={optim.warmup!r} is {warmup} steps, but the whole run has {total}")
    if optim.schedule not in SCHEDULES:
        raise errors.unknown("schedule", optim.schedule, SCHEDULES)
    asked = optim.get("cooldown", "0 steps")  # a run from before this setting has none
    cooldown = to_steps(asked, "optim.cooldown", batch_size=batch_size, epoch=epoch, total=total)
    if cooldown and optim.schedule not in COOLED:
        raise errors.UserError(
            f"optim.cooldown={asked!r}: schedule {optim.schedule!r} falls to its end by itself; valid: '0 steps', or "
            f"optim.schedule={' or '.join(COOLED)}"
        )
    if warmup + cooldown > total:
        raise errors.UserError(
            f"optim.cooldown={asked!r} is {cooldown} steps after a warm-up of {warmup}, but the whole run has {total}; "
            f"valid: up to {total - warmup} steps"
        )
    rest = max(1, total - warmup)

    def shape(step):
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / rest, 0, 1)
        falling = {
            "cosine": lambda: 0.5 * (1 + jnp.cos(math.pi * done)),
            "linear": lambda: 1 - done,
            "constant": lambda: jnp.ones(()),
            "rsqrt": lambda: jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1))),
        }[optim.schedule]()
        if cooldown:
            falling = falling * jnp.clip((total - step) / cooldown, 0, 1)
        after = optim.end_lr + (1 - optim.end_lr) * falling
        return jnp.where(step < warmup, (step + 1) / max(warmup, 1), after)

    return Rate(peak, shape)


def other_length(
    config, before: Mapping, *, step: int, batch_size: int, total: int, epoch: int | None, flops: Callable[[], float]
) -> str:
    """What another length than that of `before` does to the learning rate at `step`, in words; "" if it is the same.

    `config` and `before`: those of now and of then. The rate follows the new length, `total` steps. flops: of a step.
    """
    if "optim" not in before or "total" not in before or before["total"] == config.total:
        return ""
    old = to_steps(before["total"], "total", batch_size=batch_size, epoch=epoch, flops=flops)
    optim = ConfigDict(config.optim.to_dict() | before["optim"])  # which may lack settings that came later
    then = float(schedule(optim, batch_size=batch_size, total=old, epoch=epoch)(step))
    now = float(schedule(config.optim, batch_size=batch_size, total=total, epoch=epoch)(step))
    return (
        f"total was {before['total']} ({old} steps) and is {config.total} ({total} steps): the learning rate goes on "
        f"at {now:.3g}, which the schedule of before has at {then:.3g}"
    )


def make(optim: Mapping, params: Any, rate: Rate) -> optax.GradientTransformation:
    """The optax chain: clip by global norm, optimizer, decoupled decay, trust ratio (lamb), lr, freeze, lr multipliers.

    `optim.no_decay`, `optim.freeze`: path regexes; `optim.lr_multipliers`: (regex, factor) pairs; `optim.layer_decay`:
    see `layer_decay.factors`. Vectors and scalars (fewer than two axes longer than 1, the layer axis apart) are never
    decayed.

    `optim.decay_by`: what a step takes off a matrix, besides the optimizer's update:
    - "lr": weight_decay * rate(step) * parameter, as torch's and optax's AdamW;
    - "schedule": weight_decay * rate.shape(step) * parameter, as google-research/big_vision. It depends neither on the
      peak nor on the multipliers of the learning rate, and lamb's trust ratio does not see it.
    """
    if optim.mu_dtype not in MOMENT_DTYPES:
        raise errors.unknown("optim.mu_dtype", optim.mu_dtype, MOMENT_DTYPES)
    decay_by = optim.get("decay_by", "lr")  # a run from before this setting has none
    if decay_by not in DECAYS:
        raise errors.unknown("optim.decay_by", decay_by, DECAYS)
    core, decays = errors.choose("optimizer", optim.name, OPTIMIZERS)(optim, params), decay_mask(optim, params)
    parts = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    parts.append(core)
    if decay_by == "lr":
        parts.append(optax.add_decayed_weights(optim.weight_decay, mask=decays))
    if optim.name == "lamb":
        parts.append(layerwise.trust_ratio())
    chain = optax.chain(*parts, optax.scale_by_learning_rate(rate if decay_by == "lr" else rate.peak))
    if optim.freeze:
        frozen = match_any(tuple(optim.freeze), params, "optim.freeze")
        decays = jax.tree.map(lambda decay, f: decay and not f, decays, frozen)
        labels = jax.tree.map(lambda f: "freeze" if f else "train", frozen)
        chain = optax.multi_transform({"train": chain, "freeze": optax.set_to_zero()}, labels)
    # These come last: inside multi_transform the updates have holes where parameters are frozen.
    if optim.lr_multipliers:
        chain = optax.chain(
            chain, _times(match_rules(tuple(optim.lr_multipliers), params, "optim.lr_multipliers", 1.0))
        )
    if optim.get("layer_decay"):  # a run from before this setting has none
        chain = optax.chain(chain, _times(layer_decay.factors(tuple(optim.layer_decay), params)))
    if decay_by == "schedule":
        decay = optax.add_decayed_weights(-optim.weight_decay, mask=decays)
        chain = optax.chain(chain, decay, optax.scale_by_schedule(rate.shape))
    return chain


def _times(factors: Any) -> optax.GradientTransformation:
    """Updates times a tree of numbers, or of arrays of the same number of axes."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: (u * f).astype(u.dtype), updates, factors))


def without_effect(optim: Mapping, rate: Rate, total: int) -> list[str]:
    """Sentences about settings of `optim` that change nothing beside the others; `rate`: its own over `total` steps."""
    found = []
    if optim.get("muon") and optim.name != "muon":
        found.append(f"optim.muon has no effect, for optim.name is {optim.name!r}")
    if optim.end_lr and optim.schedule == "constant" and float(rate.shape(total)) == 1:
        found.append(f"optim.end_lr={optim.end_lr:g} has no effect: the constant schedule has no optim.cooldown")
    return found


def decay_mask(optim: Mapping, params: Any) -> Any:
    """A tree of bools: which parameters decay. Matrices do, unless `optim.no_decay` matches; vectors never.

    UserError for a regex besides NO_DECAY that no parameter matches.
    """
    for pattern in (p for p in optim.no_decay if p not in NO_DECAY):
        match_any((pattern,), params, "optim.no_decay")
    exempt = match_any(tuple(optim.no_decay), params, "optim.no_decay", strict=False)

    def decays(path: str, leaf, is_exempt: bool) -> bool:
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape  # scanned layers carry a leading layer axis
        return sum(size > 1 for size in shape) >= 2 and not is_exempt  # [1, 1, D] is a vector too

    flat = flatten(params)
    kept = {p: decays(p, leaf, e) for (p, leaf), e in zip(flat.items(), flatten(exempt).values())}
    return map_with_path(lambda path, _: kept[path], params)


def cap(params: Any, caps: tuple) -> Any:
    """Parameters with upper bounds applied after the update: ((regex, maximum), ...), such as CLIP's ln 100."""
    if not caps:
        return params
    limits = match_rules(tuple(caps), params, "optim.caps", default=math.inf)
    return jax.tree.map(lambda p, m: p if m == math.inf else jnp.minimum(p, m), params, limits)

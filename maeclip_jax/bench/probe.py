"""How long a linear probe takes: features to accuracy, by the code that the evaluator runs.

    python -m maeclip_jax.bench probe                                      50,000 x 768 features, 1000 classes
    python -m maeclip_jax.bench probe --rows 4000 --width 128 --classes 10 --compare

Features are drawn: classes around random centres, with a spectrum that falls like that of real ones. A tenth of the
rows validates; at most 10,000 rank the strengths of l2, as in the evaluator. Measured are one strength on those rows,
the whole sweep (27 strengths) and the last fit on all rows, in seconds of the wall and of the processor, compilation
included; and the sweep again with its programs compiled.

--compare: scikit-learn's LogisticRegression (lbfgs, at most 1000 iterations) on the same rows and strengths, one after
another, on one thread, because its threads hinder each other on few cores: compare the seconds of the processor.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Sequence

import numpy as np

from maeclip_jax import cli
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.evals import l2_search, logistic
from maeclip_jax.evals.accuracy import ranks
from maeclip_jax.evals.standardisation import Standard
from maeclip_jax.parallel.terminal import Progress


def features(rows: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [rows, width], labels [rows]."""
    draw = np.random.default_rng(seed)
    scale = (1.0 + np.arange(width, dtype=np.float32)) ** -0.5
    apart = scale / np.linalg.norm(scale)  # the classes differ mostly in the directions of largest variance
    centres = 5 * draw.normal(size=(classes, width)).astype(np.float32) * scale * apart
    label = draw.integers(0, classes, rows)
    x = draw.standard_normal((rows, width), np.float32) * scale
    x += centres[label] + draw.standard_normal(width, np.float32)
    axes = np.linalg.qr(draw.normal(size=(width, width)))[0].astype(np.float32)
    return x @ axes, label


class Clock:
    """{name: {"wall": s, "cpu": s}} of blocks of code."""

    def __init__(self):
        self.seconds: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(
            f"  {name:<38} {self.seconds[name]['wall']:8.1f} s wall {self.seconds[name]['cpu']:8.1f} s cpu", flush=True
        )


def top1(scores_NxC: np.ndarray, label_N: np.ndarray) -> float:
    """Percent."""
    return 100 * float(np.mean(ranks(scores_NxC, label_N) == 0))


def measure(rows: int, width: int, classes: int, sweep_rows: int, compare: bool = False, again: bool = True) -> dict:
    """All figures, printed as they come."""
    val, test = rows // 10, max(rows // 10, 1000)
    x, label = features(rows + test, width, classes)
    sets = {
        "train": slice(0, rows - val),
        "val": slice(rows - val, rows),
        "all": slice(0, rows),
        "test": slice(rows, None),
    }
    part = {name: (x[where], label[where]) for name, where in sets.items()}
    print(
        f"{rows} x {width} features, {classes} classes: {rows - val} rows train, {val} validate, {test} test",
        flush=True,
    )
    clock = Clock()
    with clock("standardise"):
        standard = Standard.of(part["train"][0])
        part = {name: (standard(x), label) for name, (x, label) in part.items()}
    with clock("prepare (principal axes)"):
        part["sweep"] = l2_search.some(*part["train"], sweep_rows, 0)
        problem = logistic.Problem(*part["sweep"], classes)
    with clock("one strength (l2 = 1), as in the sweep"):
        one = problem.solve([1.0], tolerance=2e-5)
    result = {"one_iterations": int(one.iterations[0])}
    for name in ["sweep"] + ["sweep, programs compiled"] * again:
        with clock(name), Progress("sweep", "fits", l2_search.MOST) as progress:
            found = l2_search.search(problem, *part["val"], tick=progress.update)
    best = found.fit.take([found.best])
    with clock("last fit, on all rows"):
        final = logistic.Problem(*part["all"], classes).solve(best.l2, start=best)
    accuracy = top1(final.scores(part["test"][0]), part["test"][1])
    result |= {
        "l2": found.fit.l2.tolist(),
        "iterations": found.fit.iterations.tolist(),
        "validation": found.accuracy.tolist(),
        "best_l2": float(best.l2[0]),
        "last_iterations": int(final.iterations[0]),
        "top1": accuracy,
    }
    swept, last = found.fit.iterations.tolist(), final.iterations[0]
    print(f"  iterations: {one.iterations[0]} for l2 = 1; sweep {swept}; last {last}")
    print(f"  best l2 {best.l2[0]:.3g}: top-1 {found.accuracy[found.best]:.2f} % validating, {accuracy:.2f} % testing")
    if compare:
        result["scikit-learn"] = against_sklearn(part, found.fit.l2, clock)
        theirs = result["scikit-learn"]
        ours = clock.seconds["sweep, programs compiled" if again else "sweep"]
        result["ratio"] = {kind: clock.seconds["scikit-learn: sweep"][kind] / ours[kind] for kind in ours}
        cold = clock.seconds["scikit-learn: sweep"]["cpu"] / clock.seconds["sweep"]["cpu"]
        print(f"  scikit-learn: best l2 {theirs['best_l2']:.3g}, top-1 {theirs['top1']:.2f} % testing")
        print(f"  sweep, cpu seconds of scikit-learn / ours: {result['ratio']['cpu']:.1f}, {cold:.1f} with compilation")
    return result | {"seconds": clock.seconds}


def against_sklearn(part: dict, l2: np.ndarray, clock: Clock) -> dict:
    """The same strengths one by one, the best refitted on all rows."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "failed to converge" at the weak end
        with clock("scikit-learn: sweep"):
            fits = [LogisticRegression(C=1 / s, max_iter=1000).fit(*part["sweep"]) for s in l2]
            accuracy = np.array([100 * fit.score(*part["val"]) for fit in fits])
        best = int(np.flatnonzero(accuracy == accuracy.max())[-1])
        with clock("scikit-learn: last fit"):
            final = LogisticRegression(C=1 / l2[best], max_iter=1000).fit(*part["all"])
    found = {"best_l2": float(l2[best]), "top1": 100 * final.score(*part["test"]), "validation": accuracy.tolist()}
    return found | {"iterations": [int(fit.n_iter_[0]) for fit in fits]}


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.bench probe", __doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="rows of features (%(default)s)")
    parser.add_argument("--width", type=int, default=768, help="of a row (%(default)s)")
    parser.add_argument("--classes", type=int, default=1000, help="classes (%(default)s)")
    parser.add_argument("--sweep_rows", type=int, default=10_000, help="rows that rank strengths (%(default)s)")
    parser.add_argument("--compare", action="store_true", help="with scikit-learn on the same rows (slow: small sizes)")
    parser.add_argument("--once", action="store_true", help="the sweep once, compilation included")
    add_json(parser)
    args = parser.parse_args(argv)
    result = measure(args.rows, args.width, args.classes, args.sweep_rows, args.compare, not args.once)
    write("probe", result, args.json)

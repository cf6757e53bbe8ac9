"""Reports of runs: a page per workdir, a table over several, and the paper's tables. They read workdirs, nothing else.

python -m maeclip_jax.report WORKDIR...                     report/index.html and report/report.md in each
python -m maeclip_jax.report WORKDIR... --out DIR           one table, a row a run: DIR/index.html and DIR/report.md
python -m maeclip_jax.report --tables WORKDIR... --out DIR  the paper's tables, seeds taken together, with curves and
                                                            pictures: DIR/index.html and DIR/report.md
python -m maeclip_jax.report --compare FIRST SECOND         every number that two runs share, tested on the same items
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from maeclip_jax import remote
from maeclip_jax.workdir import REPORT

__all__ = ["collect", "compare", "differences", "write"]


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes report/index.html (one self-contained file) and report/report.md; returns the path of the page.

    What the workdir does not hold is left out and said so; a folder that is not a workdir raises UserError.
    """
    from maeclip_jax.report import page, run

    remote.check_scheme(workdir, "workdir")
    folder = epath.Path(workdir) / REPORT
    return page.write(page.view(run.read(workdir)), "report", folder)


def compare(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> epath.Path:
    """Writes one table of runs (rows) and evaluation metrics (columns) to `out`; returns the path of the page."""
    from maeclip_jax.report import comparison, page, run

    out = epath.Path(out)
    return page.write(comparison.view([run.read(w) for w in workdirs], out), "comparison", out)


def differences(first: epath.PathLike, second: epath.PathLike) -> str:
    """Every number that two runs share: the second's minus the first's, with its interval and tests, as text.

    UserError where they share none, or were evaluated on different items.
    """
    from maeclip_jax.report import paired, run

    for workdir in (first, second):
        remote.check_scheme(workdir, "workdir")
    return paired.text(run.read(first), run.read(second))


def collect(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> epath.Path:
    """Writes the paper's tables, of all that the runs were evaluated on, to `out`; returns the path of the page.

    A folder that is not a workdir but holds some (of a sweep, say) stands for these.
    """
    from maeclip_jax.report import page, run, selection

    out = epath.Path(out)
    return page.write(selection.view([run.read(w) for w in run.workdirs(workdirs)], out), "tables", out)

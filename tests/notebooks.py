"""Runs the notebooks top to bottom and keeps their outputs: `make notebooks`, `python -m tests.notebooks NAME ...`."""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from pathlib import Path

from tests.golden import ROOT

FOLDER = ROOT / "notebooks"
LIMIT = 200_000  # bytes of a notebook with its outputs


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.ipynb"))


def execute(name: str, **environment: str):
    """The notebook with the outputs of a fresh kernel that started in its folder; raises what a cell raises."""
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )  # fmt: skip
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)} | environment)
    for cell in code(notebook):  # what libraries have to say differs from machine to machine
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for data in (o["data"] for o in cell.outputs if "image/png" in o.get("data", {})):
            data["image/png"] = small(data["image/png"])
    return notebook


def small(png: str) -> str:
    """A picture as notebooks hold it, in 128 colours: a fourth of the bytes."""
    from PIL import Image

    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def code(notebook) -> list:
    """Its cells of code."""
    return [c for c in notebook.cells if c.cell_type == "code"]


def pictures(notebook) -> int:
    """How many outputs are pictures."""
    return sum("image/png" in o.get("data", {}) for c in code(notebook) for o in c.outputs)


def write(notebook, path: Path) -> int:
    """Writes it as the repository keeps it; its size in bytes."""
    import nbformat

    notebook.metadata["language_info"] = {"name": "python"}  # not the version of who ran it
    nbformat.write(notebook, path)
    return path.stat().st_size


def main() -> None:
    for name in sys.argv[1:] or names():
        start = time.perf_counter()
        size = write(execute(name), FOLDER / f"{name}.ipynb")
        print(
            f"notebooks/{name}.ipynb: {time.perf_counter() - start:.0f} s, {size / 1000:.0f} kB with outputs",
            flush=True,
        )
        assert size < LIMIT, f"{name} is larger than {LIMIT} bytes: smaller figures"


if __name__ == "__main__":
    main()

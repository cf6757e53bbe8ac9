"""Tests run on 8 fake CPU devices, with compiled programs kept in .jax_cache/ between runs."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `experiments` and `tests.golden`, however pytest was started
    sys.path.insert(0, str(ROOT))

# As environment, so that tests without jax do not import it; jax reads these when it is imported.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",  # tests compile more than they compute
    "JAX_TRACEBACK_FILTERING": "tracebackhide",  # no note of jax's behind the text of an error
}.items():
    os.environ.setdefault(name, value)

"""Compiled programs of every chip, kept as texts (tests/programs.py), are read whole: nothing of them is lost."""

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.preflight import estimate, hlo, program_text
from tests import programs


@pytest.fixture(scope="module", params=programs.PROGRAMS)
def kept(request):
    return request.param, *programs.read(request.param)


def test_every_operation_is_read_and_every_flop_is_found(kept):
    name, text, known = kept
    module, entry = program_text.computations(text)
    lines = [line for line in text.splitlines() if line.startswith(("  %", "  ROOT %"))]
    assert entry and sum(map(len, module.values())) == len(lines) > 300
    found = hlo.costs(text)
    ratio = found.flops * known["devices"] / known["model FLOPs"]
    least = 1.1 if "remat" in name else 0.96  # pictures need no gradient; recomputation does work again
    assert least < ratio < 1.2 and not found.unknown_loops
    estimate.check_whole(found, known["devices"], 0.96 * known["model FLOPs"])


def test_calls_without_an_estimate_are_named(kept):
    name, text, _ = kept
    called = hlo.costs(text).uncosted
    expected = {
        "v5e-splash": {f"tpu_custom_call splash_mha_{part}" for part in (
            "fwd_residuals", "dq_no_residuals", "dkv_no_residuals")},
        "v5e-two-slices": {"ZeroCrop"},
    }  # fmt: skip
    assert set(called) == expected.get(name, set())


def test_kernels_of_the_halves_of_a_block_are_counted_with_what_they_compute():
    kernels = hlo.costs(programs.read("v6e-half-kernels")[0]).kernels
    calls = {kernel.name: n for kernel, n in kernels.items()}
    assert calls == {  # the texts of a device are too few rows for attention's
        "attention_layer_forward_2x64_8_steps": 1, "attention_layer_backward_2x64_8_steps": 1,
        "mlp_forward_gelu_4x1_steps": 2, "mlp_backward_gelu_4x1_steps": 2,
    }  # fmt: skip
    assert all(kernel.flops > 0 and kernel.bytes > 0 for kernel in kernels)


def test_rows_that_are_moved_without_an_estimate_are_named(kept):
    name, text, _ = kept
    tokens = {"gather": 1, "scatter": 1}  # of the table of tokens, and the table's gradient
    masks = {"gather": 3, "scatter": 1, "sort": 3}  # what is kept of a picture, and restored
    # A fusion of a SparseCore that adds up rows reads them by a gather, too.
    expected = {"v5e-splash": {}, "v5p-fsdp": masks, "tpu7x-fsdp": {"gather": 2, "scatter": 1, "sort": 1}}
    assert hlo.costs(text).unpriced == expected.get(name, tokens)


def test_collectives_of_a_sparse_core_count_as_those_of_a_core():
    """tpu7x gives the gathers of the same program to its SparseCores, as custom calls that name a computation."""
    text = programs.read("tpu7x-fsdp")[0]
    assert text.count("TODO(b/522284627)") == 36
    sparse, core = (hlo.costs(programs.read(name)[0]).collectives for name in ("tpu7x-fsdp", "v6e-fsdp-kernels"))
    assert sparse["all-gather"] == core["all-gather"] > 200_000


def test_metadata_of_a_kernel_that_goes_on_over_lines_is_read():
    text = programs.read("v5e-splash")[0]
    assert text.count("\n}}, metadata=") == 8
    _, known = programs.read("v5e-splash")
    assert hlo.costs(text).flops == known["model FLOPs"]  # all of the loop's body, three times


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("\n}}, metadata=", "\n}, metadata=", "is not an operation"),  # as if a computation ended there
        ("\n}\n", "\n", "is not an operation"),
        ("  ROOT %", "  ", "is not an operation"),
        ("  ROOT %", "  %", "has no result"),
        ("ENTRY ", "", "there is no ENTRY"),
        ("{\n  %", "\n  %", "it is in no computation"),
    ],
)
def test_a_text_that_is_not_understood_is_one_line_and_no_estimate(old, new, said):
    text = programs.read("v5e-splash")[0]
    assert old in text
    with pytest.raises(UserError) as e:
        hlo.costs(text.replace(old, new, 1))
    assert "was not understood at line" in str(e.value) and "\n" not in str(e.value)
    assert said in str(e.value)


def test_lost_flops_stop_a_preflight():
    text, known = programs.read("v4-scan")
    found = hlo.costs(text)
    with pytest.raises(UserError, match="some of its text was not understood"):
        estimate.check_whole(found, known["devices"], 1.1 * known["model FLOPs"])
    found.uncosted["mystery"] = 1  # it may hold the rest, and is reported
    estimate.check_whole(found, known["devices"], 1.1 * known["model FLOPs"])

"""Time on the network: links that a group has, and what the schedule of a program hides; worked out by hand."""

import dataclasses
import itertools

import pytest

from maeclip_jax.parallel.chips import CHIPS, NETWORK
from maeclip_jax.preflight import hlo, network, program_text, table, topology
from tests import programs


def torus(kind: str, *grid: int) -> network.Links:
    """A slice whose devices are in the order of their places, as many on each chip as jax has."""
    chip = CHIPS[kind]
    places = [p for p in itertools.product(*map(range, grid)) for _ in range(chip.devices)]
    return network.Links(chip, grid, tuple(places))


@pytest.mark.parametrize(
    "kind, grid, group, links",
    [
        ("v5e", (16, 16), range(256), 4),  # two rings
        ("v5e", (16, 16), range(16), 2),  # one
        ("v5e", (16, 16), range(8), 1),  # half a row is open at its ends
        ("v5e", (16, 16), [0, 1, 2, 3, 16, 17, 18, 19], 2),  # 2 x 4 chips
        ("v5e", (16, 16), range(0, 256, 2), 3),  # every other of a row: two groups share its links
        ("v5e", (4, 4), range(16), 2),  # no rings in small slices
        ("v4", (4, 4, 4), range(64), 6),
        ("v5p", (4, 4, 8), range(128), 6),
        ("v5p", (2, 2, 4), range(16), 3),  # nothing smaller than a cube of 64 chips has a ring
        ("tpu7x", (2, 4, 4), range(64), 3),  # two devices a chip
        ("tpu7x", (2, 4, 4), range(0, 64, 2), 3),  # one of each
        ("tpu7x", (4, 4, 4), range(0, 128, 2), 6),
    ],
)
def test_a_group_has_the_links_among_its_chips(kind, grid, group, links):
    found, chip = torus(kind, *grid), CHIPS[kind]
    link = chip.ici * chip.devices / (2 * len(grid))
    assert found.speed({found.places[i] for i in group}) == pytest.approx(links * link)


@pytest.mark.parametrize(
    "kind, group, crossing",  # bytes out of a chip of 4 x 4 x 4, for each byte of the whole array
    [
        ("all-gather", range(128), 63 / 64),  # what arrives is for both devices
        ("reduce-scatter", range(128), 63 / 64),
        ("all-reduce", range(128), 2 * 63 / 64),
        ("all-gather", range(0, 128, 2), 2 * 63 / 64),  # the other device of each chip has its own group
        ("all-reduce", range(0, 128, 2), 4 * 63 / 64),
    ],
)
def test_two_devices_share_the_links_of_their_chip(kind, group, crossing):
    found = torus("tpu7x", 4, 4, 4)
    assert found.seconds(kind, 1.0, operation(group)) == pytest.approx(crossing / (6 * 100e9))


def test_devices_of_one_chip_take_none_of_its_links():
    found = torus("tpu7x", 4, 4, 4)
    assert found.seconds("all-gather", 1.0, operation([0, 1])) == pytest.approx(0.5 / 300e9)
    assert found.seconds("all-gather", 1.0, operation([0])) == 0


def operation(group) -> program_text.Op:
    rest = f", replica_groups={{{{{','.join(map(str, group))}}}}}"
    return program_text.Op("sent", "f32[1]", "all-to-all", (), rest, root=False)


@pytest.mark.parametrize(
    "kind, grid, group, crossing, links",  # bytes over the middle, of one that each device has; links there, one way
    [
        ("v5e", (16, 16), [0, 1, 2, 3, 16, 17, 18, 19], 2, 2),  # 2 x 4 chips: 8 / 4 bytes, over two rows
        ("v5e", (16, 16), range(256), 64, 32),  # 16 rings are cut twice
        ("v5e", (16, 16), range(8), 2, 1),
        ("v5e", (16, 16), range(0, 16, 2), 2, 1),  # a ring of which every other chip is another group's
        ("v6e", (16, 16), range(0, 256, 16), 4, 2),
        ("v4", (4, 4, 4), range(64), 16, 32),
        ("tpu7x", (4, 4, 4), range(0, 128, 2), 32, 32),  # of this group and of the other device's of each chip
        ("tpu7x", (4, 4, 4), range(128), 32, 32),
        ("v4", (2, 2, 3), range(12), 12 * 2 / 9, 4),  # an odd row: a third of its chips has two thirds of the bytes
    ],
)
def test_what_all_send_to_all_crosses_the_middle(kind, grid, group, crossing, links):
    found, chip = torus(kind, *grid), CHIPS[kind]
    link = chip.ici * chip.devices / (2 * len(grid))
    places = {found.places[i] for i in group}
    assert found.over_the_middle(places, 1.0) == pytest.approx(crossing / (links * link))
    out = chip.devices * (len(places) - 1) / len(places) / found.speed(places)
    op, together = operation(group), len(group) / len(places)
    assert found.seconds("all-to-all", 1.0, op) == pytest.approx(max(out, crossing / (links * link)))
    assert found.seconds("all-gather", 1.0, op) == pytest.approx(out / together)


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("source_target_pairs={{3,5},{1,2}}", (3, 5)),
        ("", tuple(range(8))),
    ],
)
def test_groups_as_texts_write_them(text, group):
    assert network.group_of(f", channel_id=1, {text}, dimensions={{0}}", 8) == group


TEXT = """HloModule m, is_scheduled=true

%body (s: (s32[], f32[100])) -> (s32[], f32[100]) {
  %s = (s32[], f32[100]) parameter(0)
  %x = f32[100] get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %wait = f32[100] all-reduce(%x), replica_groups={{0,1}}
  %work = f32[100] negate(%wait), backend_config={"estimated_cycles":"3"}
  ROOT %t = (s32[], f32[100]) tuple(%i, %work)
}

%condition (s.1: (s32[], f32[100])) -> pred[] {
  %s.1 = (s32[], f32[100]) parameter(0)
  %n = s32[] constant(5)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a: f32[25]) -> f32[100] {
  %a = f32[25] parameter(0)
  %zero = s32[] constant(0)
  %start = (f32[25], f32[100]) all-gather-start(%a), replica_groups={{0,1}}
  %first = f32[25] negate(%a), backend_config={"estimated_cycles":"30"}
  %done = f32[100] all-gather-done(%start)
  %again = (f32[25], f32[100]) all-gather-start(%first), replica_groups={{0,1}}
  %second = f32[25] negate(%first), backend_config={"estimated_cycles":"500"}
  %gone = f32[100] all-gather-done(%again)
  %state = (s32[], f32[100]) tuple(%zero, %gone)
  %loop = (s32[], f32[100]) while(%state), condition=%condition, body=%body
  ROOT %out = f32[100] get-tuple-element(%loop), index=1
}
"""


def test_work_between_start_and_end_hides_a_collective():
    module, entry = program_text.computations(TEXT)
    # A byte takes a second, a cycle too: gathers of 400 s behind 30 s and 500 s of work, five blocking sums.
    found = network.waits(module, entry, lambda op, _: op.cycles, lambda kind, size, op: size)
    assert found.exposed == 370 + 0 + 5 * 400 and found.hidden == 30 + 400
    assert found.told()["kinds"] == {
        "all-gather": {"calls": 2, "asynchronous": 2, "bytes": 800, "seconds": 800},
        "all-reduce": {"calls": 5, "asynchronous": 0, "bytes": 2000, "seconds": 2000},
    }


GATHERS = {
    # Blocking, behind a gather that has the links for 400 s: the core waits for both, and works 10 s afterwards.
    "a blocking one behind another": (
        """  %start = (f32[25], f32[100]) all-gather-start(%a), replica_groups={{0,1}}
  %sum = f32[25] all-reduce(%a), replica_groups={{0,1}}
  %work = f32[25] negate(%sum), backend_config={"estimated_cycles":"10"}
  ROOT %done = f32[100] all-gather-done(%start)
""",
        500, 0,
    ),
    # 400 s each; 100 s of work hide a part of the first, and the second has ended before the first is asked for.
    "two that end in the other order": (
        """  %s1 = (f32[25], f32[100]) all-gather-start(%a), replica_groups={{0,1}}
  %s2 = (f32[25], f32[100]) all-gather-start(%a), replica_groups={{0,1}}
  %work = f32[25] negate(%a), backend_config={"estimated_cycles":"100"}
  %d2 = f32[100] all-gather-done(%s2)
  ROOT %d1 = f32[100] all-gather-done(%s1)
""",
        700, 100,
    ),
    "the dearest of two branches": (
        """  %p = s32[] constant(0)
  ROOT %either = f32[25] conditional(%p, %a, %a), branch_computations={%once, %twice}
""",
        200, 0,
    ),
    "the dearest of two branches, which works": (
        """  %p = s32[] constant(0)
  ROOT %either = f32[25] conditional(%p, %a, %a), branch_computations={%works, %twice}
""",
        0, 0,
    ),
}  # fmt: skip
BRANCHES = """HloModule m, is_scheduled=true

%once (x: f32[25]) -> f32[25] {
  %x = f32[25] parameter(0)
  ROOT %r1 = f32[25] all-reduce(%x), replica_groups={{0,1}}
}

%twice (y: f32[25]) -> f32[25] {
  %y = f32[25] parameter(0)
  %r2 = f32[25] all-reduce(%y), replica_groups={{0,1}}
  ROOT %r3 = f32[25] all-reduce(%r2), replica_groups={{0,1}}
}

%works (z: f32[25]) -> f32[25] {
  %z = f32[25] parameter(0)
  ROOT %n = f32[25] negate(%z), backend_config={"estimated_cycles":"300"}
}

ENTRY %main (a: f32[25]) -> f32[100] {
  %a = f32[25] parameter(0)
"""


@pytest.mark.parametrize("name", GATHERS)
def test_the_core_waits_for_what_is_before_on_the_links(name):
    """A byte takes a second, a cycle too. What is exposed is how much longer it takes than the work alone."""
    body, exposed, hidden = GATHERS[name]
    module, entry = program_text.computations(f"{BRANCHES}{body}}}\n")

    def seconds(op, _):
        return op.cycles

    found = network.waits(module, entry, seconds, lambda kind, size, op: size)
    assert (found.exposed, found.hidden) == (exposed, hidden)
    whole = network._Clock(module, seconds, lambda kind, size, op: size, network.Waits()).run(entry, 1)
    alone = network._Clock(module, seconds, lambda kind, size, op: 0.0, network.Waits()).run(entry, 1)
    assert whole - alone == exposed


def test_traffic_between_slices_without_a_data_sheet_is_not_free():
    text, _ = programs.read("v5e-two-slices")
    module, entry = program_text.computations(text)
    for kind, known in (("v5e", True), ("v4", False)):
        links = torus(kind, *((2, 2) if kind == "v5e" else (2, 2, 1)))
        links = dataclasses.replace(links, places=links.places * 2, outside=NETWORK.get(kind))
        told = network.waits(module, entry, lambda op, _: 0.0, links.seconds).told()
        assert told["without a data sheet"] == ([] if known else [network.SLICES])
        assert (told["kinds"][network.SLICES]["seconds"] > 0) == known and told["kinds"][network.SLICES]["bytes"] > 0
        assert ("not in it, without a data sheet: between slices" in table.network(told)) != known


def test_collectives_that_run_under_fusions_or_on_sparse_cores_are_asynchronous():
    asynchronous = {}
    for name in ("v5e-two-slices", "tpu7x-fsdp", "v6e-fsdp-kernels"):
        text, _ = programs.read(name)
        module, entry = program_text.computations(text)
        found = network.waits(module, entry, lambda op, _: op.cycles, lambda kind, size, op: size)
        told = found.told()["kinds"]
        asynchronous[name] = told["all-gather"]["asynchronous"], told["all-gather"]["calls"]
        for kind, size in hlo.count(module, entry).collectives.items():
            assert told[kind]["bytes"] == size  # both count the same
        assert found.exposed + found.hidden == pytest.approx(sum(of["seconds"] for of in told.values()))
    # v5e: 12 in the entry, 6 in bodies of loops over two layers.
    assert asynchronous == {"v5e-two-slices": (24, 39), "tpu7x-fsdp": (35, 35), "v6e-fsdp-kernels": (0, 35)}
    assert (
        network.SLICES
        in network.waits(
            *program_text.computations(programs.read("v5e-two-slices")[0]), lambda *_: 0.0, lambda *_: 0.0
        ).told()["kinds"]
    )


def test_nothing_is_said_of_a_network_without_a_data_sheet():
    assert network.links(topology.parse("v3-32"), []) is None

"""What a compiled program does, read from its text: hand-counted, and against programs of known
size that XLA compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cogcalib_jax.plan.chips import CHIPS, Chip, chip_of
from cogcalib_jax.plan.hlo import arrays_in, parse_hlo
from cogcalib_jax.plan.work import group_size, product_flops, read_work, roofline
from cogcalib_jax.sharding import MeshConfig, make_mesh

# ruff: noqa: E501
# Four devices. A loop of 3 turns (0, 2, 4 below 6) gathers 64 x 128 bfloat16 of each device and
# multiplies; one gather is spread over two fusions; an all-reduce stands outside the loop.
BY_HAND = """\
HloModule by_hand, num_partitions=4

%gather_part.1 (p.0: bf16[64,128]) -> bf16[256,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.1 = bf16[256,128]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/layers/dot"}
}

%gather_part.2 (p.1: bf16[64,128]) -> bf16[256,128] {
  %p.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.2 = bf16[256,128]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
}

%body (state.1: (s32[], bf16[64,128], f32[32,256])) -> (s32[], bf16[64,128], f32[32,256]) {
  %state.1 = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}, f32[32,256]{1,0}) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %i.copy = s32[]{:T(128)} copy(%i.1)
  %next = s32[]{:T(128)} add(%i.copy, %two)
  %w = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=1
  %x = f32[32,256]{1,0} get-tuple-element(%state.1), index=2
  %part.1 = bf16[256,128]{1,0} fusion(%w), kind=kCustom, calls=%gather_part.1
  %part.2 = bf16[256,128]{1,0} fusion(%w), kind=kCustom, calls=%gather_part.2
  %low = f32[32,128]{1,0:T(8,128)S(1)} convolution(%x, %part.2), dim_labels=bf_io->bf
  %back = f32[32,256]{1,0} dot(%low, %part.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %state.2 = (s32[]{:T(128)}, bf16[64,128]{1,0}, f32[32,256]{1,0}) tuple(%next, %w, %back)
}

%condition (state.3: (s32[], bf16[64,128], f32[32,256])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %state.3 = (s32[]{:T(128)}, bf16[64,128]{1,0}, f32[32,256]{1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%state.3), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.2, %six), direction=LT
}

ENTRY %main (w.0: bf16[64,128], x.0: f32[32,256]) -> f32[32,256] {
  %w.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %x.0 = f32[32,256]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, bf16[64,128]{1,0}, /*index=2*/f32[32,256]{1,0}) tuple(%zero, %w.0, %x.0)
  %loop = (s32[]{:T(128)}, bf16[64,128]{1,0}, /*index=2*/f32[32,256]{1,0}) while(%first), condition=%condition, body=%body
  %y = f32[32,256]{1,0} get-tuple-element(%loop), index=2
  ROOT %sum = f32[32,256]{1,0} all-reduce(%y), channel_id=9, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_a_loop_is_counted_as_often_as_its_counter_says():
    assert parse_hlo(BY_HAND).runs.times["body"] == 3
    work = read_work(BY_HAND)
    assert work.unknown_loops == 0
    assert work.matmul_flops == 3 * (2 * 32 * 128 * 256 + 2 * 32 * 256 * 128)


def test_what_each_device_sends_by_hand():
    """A gather over 4 sends 3 of its own 16,384-byte parts a turn, however many fusions it is spread
    over; an all-reduce of 32 KiB over pairs sends 2 x 1/2 of it."""
    work = read_work(BY_HAND)
    assert work.by_kind() == {
        "all-gather": {"times": 3, "sent_bytes": 3 * 3 * 16_384},
        "all-reduce": {"times": 1, "sent_bytes": 32_768},
    }
    assert work.sent_bytes == 9 * 16_384 + 32_768
    (gather,) = [one for one in work.collectives if one.kind == "all-gather"]
    assert gather.result_bytes == 65_536 and gather.of == "jit(step)/layers/dot"


def test_memory_traffic_by_hand():
    """A turn reads and writes a gather (16,384 + 65,536); the first product reads x (32,768) and the
    gathered part (65,536) and leaves its result on the chip; the second reads the part and writes
    32,768; the counter is copied (8) and added to (12). The all-reduce reads and writes 32,768."""
    turn = (16_384 + 65_536) + (32_768 + 65_536) + (65_536 + 32_768) + 20
    assert read_work(BY_HAND).memory_bytes == 3 * turn + 2 * 32_768


def test_a_loop_of_unknown_length_is_counted_once_and_said():
    text = BY_HAND.replace("constant(6)", "partition-id()")
    work = read_work(text)
    assert work.unknown_loops == 1
    assert work.by_kind()["all-gather"]["times"] == 1


def test_the_compilers_own_trip_count_goes_first():
    told = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert parse_hlo(BY_HAND.replace("body=%body", told)).runs.times["body"] == 5


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", 2),
        ("replica_groups=mesh['a'=1,'b'=16] {'b'}", 16),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", 4),
        ("replica_groups={}", 32),
        ("channel_id=3", 32),
    ],
)
def test_groups_in_every_notation(attributes, size):
    assert group_size(attributes, 32) == size


def test_types_as_they_are_written():
    arrays = arrays_in(
        "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[], s4[3], f32[2,2]{1,0})"
    )
    assert [a.bytes for a in arrays] == [2048, 1, 2, 16]
    assert [a.in_memory for a in arrays] == [False, True, True, True]


def flops_of(line: str, **shapes: str) -> float:
    parameters = [f"  %{name} = {shape} parameter(0)" for name, shape in shapes.items()]
    text = "\n".join(["ENTRY %main (a: f32[1]) -> f32[1] {", *parameters, line, "}"])
    main = parse_hlo(text).computations["main"]
    return product_flops(main.root, main)


def test_products_written_as_convolutions():
    """As a TPU's compiler wrote them for the step of Llama-3-8B."""
    halves = flops_of(
        "  ROOT %y = f32[304,1024,1]{1,0,2} convolution(%x, %w), window={size=2},"
        " dim_labels=b0f_o0i->bf0",
        x="bf16[304,2,256]{2,1,0}",
        w="bf16[1024,2,256]{2,1,0}",
    )
    assert halves == 2 * 304 * 1024 * 512
    # Scores of 8 x 4 heads: of 8 x 8 pairs of heads and 4 x 4 of groups, one each is a product.
    heads = flops_of(
        "  ROOT %y = f32[8,304,304,4]{2,1,3,0} convolution(%k, %q), window={size=8x4 stride=7x1"
        " pad=0_0x3_3 lhs_dilate=8x1 rhs_reversal=0x1}, dim_labels=b0f1_o01i->0bf1",
        k="bf16[304,8,128,1]{2,0,1,3}",
        q="bf16[304,8,4,128]{3,0,2,1}",
    )
    assert heads == 8 * 4 * 2 * 304 * 304 * 128


def test_a_compiled_loop_of_products_has_the_operations_it_was_written_with():
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    text = jax.jit(layers).lower(jnp.ones((32, 64)), jnp.ones((5, 64, 64))).compile().as_text()
    work = read_work(text)
    assert work.matmul_flops == 5 * 2 * 32 * 64 * 64
    # At least: the weights once, x in and out of every turn.
    assert work.memory_bytes >= 5 * (64 * 64 + 2 * 32 * 64) * 4
    assert not work.collectives


def test_compiled_collectives_are_found_with_their_size():
    """Weights over fsdp, gathered in each of three turns; the sum over examples all-reduced."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, "fsdp")))

    def total(x, w):
        def turn(x, _):
            gathered = jax.lax.with_sharding_constraint(w, whole)
            return jnp.tanh(x @ gathered), None

        return jax.lax.scan(turn, x, None, length=3)[0].sum()

    x = jax.ShapeDtypeStruct(
        (64, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    w = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=cut)
    kinds = read_work(jax.jit(total).lower(x, w).compile().as_text()).by_kind()
    part = 128 * 128 * 4 / 4
    # In the loop or before it, as the compiler likes.
    assert kinds["all-gather"]["sent_bytes"] in (3 * part, 9 * part)
    assert kinds["all-reduce"]["sent_bytes"] >= 2 * 4 * 3 / 4


def test_a_roofline_is_bound_by_what_takes_longest():
    chip = Chip(1e12, 10**9, 1e9, 1e8, (), "none")
    floor = roofline(read_work(BY_HAND), chip)
    assert floor.bound_by == "interconnect"
    assert floor.seconds == pytest.approx(max(floor)) == (9 * 16_384 + 32_768) / 1e8


def test_chips_are_found_by_the_name_jax_gives_them():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("NVIDIA H100 PCIe") is None and chip_of("cpu") is None
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)
    assert all("https://" in chip.source for chip in CHIPS.values())

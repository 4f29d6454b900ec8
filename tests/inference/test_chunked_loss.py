"""The loss in chunks is the loss in one piece, with less memory and without wasted products."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.data.batching import StartBelief
from cogcalib_jax.inference.chunked_loss import _largest_divisor, batch_loss
from cogcalib_jax.inference.forward import coarsened, losses_at
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.terms import TERMS as REGISTERED
from cogcalib_jax.method.terms import Rows, Term, register_term
from cogcalib_jax.models.lora import Head
from cogcalib_jax.sharding import MeshConfig, make_mesh, named_sharding
from tests.inference.tiny import LORA, TINY, VOCAB, one_batch, questions, tiny_decoder

GATES = ("all", "adaptive", "unknown", "oracle", "random")
# Two examples of three positions fit into a chunk of 7; a chunk of 2 cuts every example in two.
CHUNKS = {"whole examples": 7, "by position": 2, "one piece": 1000}
WIDTH = TINY.hidden_size


def method(term, gate="adaptive", **more):
    gate = "all" if term == "none" else gate
    term = "mbls(margin=1)" if term == "mbls" else term
    return MethodConfig(term=term, gate=gate, weight=0.7, **more).build()


def inputs(tokens=3, rows=8, seed=0):
    """A batch with hidden states of its own, so that only the head is at work."""
    batch = one_batch(questions(rows, tokens=tokens))
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*batch.targets.shape, WIDTH)).astype(np.float32)
    weight = np.array([*[1.0] * (rows - 1), 0.0], np.float32)  # the last row only fills the batch
    labels = rng.integers(0, 2, rows).astype(np.float32)
    return batch._replace(weight=weight), hidden, labels


def sums_and_gradient(decoder, batch, hidden, labels, how, loss, chunk, key=None, parts=1):
    """Sums, and the gradient of the loss with respect to hidden states and the head's adapter."""
    head = decoder.head()
    trained = ("lora_A", "lora_B") if head.gain is None else ("lora_A", "lora_B", "gain")
    gate = jnp.float32(3.6)

    def total(hidden, adapter):
        adapted = head.replace(**adapter)
        sums = batch_loss(
            adapted, hidden, batch, labels, how, loss, gate, jax.random.key(1), key, parts, chunk
        )
        return 3.0 * sums.loss, sums  # what follows the sum must reach the gradient

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        hidden, {name: getattr(head, name) for name in trained}
    )


def assert_equal_to(got, wanted, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * max(1.0, np.abs(b).max())
        ),
        got,
        wanted,
    )


@pytest.mark.parametrize(("tied", "tokens"), [(False, "mean"), (True, "sum")])
def test_every_term_and_gate_is_the_same_in_chunks(tied, tokens):
    finish = {"logits_divisor": 0.2, "final_softcap": 2.0} if tied else {}
    config = replace(TINY, tie_word_embeddings=tied, **finish)
    decoder = tiny_decoder(config=config, lora=replace(LORA, use_dora=tied))
    batch, hidden, labels = inputs()
    loss = LossConfig(tokens=tokens)
    cases = [method("none"), *(method("ls", gate) for gate in GATES)]
    if not tied:  # the head is the same to every term
        cases += [method(term) for term in ("mbls", "ecp")]
        cases += [method("ls", normalise=True), method("ls", "random", normalise=True)]

    @jax.jit
    def run(hidden):
        return {
            name: [
                sums_and_gradient(decoder, batch, hidden, labels, case, loss, chunk)
                for case in cases
            ]
            for name, chunk in CHUNKS.items()
        }

    results = run(hidden)
    flagged = set()
    for name in ("whole examples", "by position"):
        for got, wanted in zip(results[name], results["one piece"], strict=True):
            assert_equal_to(got, wanted)
            flagged.add(float(wanted[0][1].gated))
    assert len(flagged) > 3


def test_options_spaces_are_the_same_in_chunks():
    decoder = tiny_decoder()
    batch = one_batch(questions(8, options=(4,)))
    hidden = np.random.default_rng(0).normal(size=(8, 1, WIDTH)).astype(np.float32)
    labels = np.zeros(8, np.float32)
    cases = [
        (method("ls", gate, space=term_space), LossConfig(space))
        for gate, space, term_space in (
            ("adaptive", "vocab", "options"),
            ("adaptive", "options", "vocab"),
            ("random", "options", "options"),
        )
    ]

    @jax.jit
    def run(hidden):
        return [
            [sums_and_gradient(decoder, batch, hidden, labels, *case, chunk) for case in cases]
            for chunk in (3, 1000)
        ]

    assert_equal_to(*run(hidden))


def test_dropout_is_one_model_in_both_passes():
    """Cut by position, the gate is decided by the very NLL whose gradient is taken."""
    decoder = tiny_decoder(lora=replace(LORA, lora_dropout=0.5))
    batch, hidden, labels = inputs()
    run = jax.jit(
        lambda key: sums_and_gradient(
            decoder, batch, hidden, labels, method("ls"), LossConfig(), 2, key
        )[0][1]
    )
    known = set()
    for seed in range(12):
        sums = run(jax.random.key(seed))
        assert sums.known == sums.gated
        known.add(float(sums.known))
    assert len(known) > 1


def products_with_the_head(how, chunk):
    """Products with the head's matrix or its transpose, per position, loops included."""
    decoder = tiny_decoder(lora=None)
    batch, hidden, labels = inputs()

    def loss(hidden):
        gate = jnp.float32(3.6)
        return batch_loss(
            decoder.head(),
            hidden,
            batch,
            labels,
            how,
            LossConfig(),
            gate,
            jax.random.key(1),
            None,
            chunk=chunk,
        ).loss

    operations = 0

    def count(jaxpr, times):
        nonlocal operations
        for equation in jaxpr.eqns:
            inner = [
                v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")
            ]
            for one in inner:
                count(getattr(one, "jaxpr", one), times * equation.params.get("length", 1))
            shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
            if equation.primitive.name == "dot_general" and any(VOCAB in s for s in shapes):
                ((contracted, _), _) = equation.params["dimension_numbers"]
                summed = np.prod([shapes[0][axis] for axis in contracted])
                operations += times * summed * np.prod(shapes[-1])

    count(jax.make_jaxpr(jax.grad(loss))(hidden).jaxpr, 1)
    return operations / (batch.targets.size * VOCAB * WIDTH)


def test_no_logits_are_formed_in_vain():
    """Two products per position; a third only where long examples wait for their gate."""
    assert products_with_the_head(method("ls"), 1000) == 2
    assert products_with_the_head(method("ls"), 7) == 2
    for how in (method("none"), method("ls", "all"), method("ls", "oracle")):
        assert products_with_the_head(how, 2) == pytest.approx(2 * 4 / 3)  # 3 positions as 2 x 2
    assert products_with_the_head(method("ls"), 2) == pytest.approx(3 * 4 / 3)


@pytest.mark.parametrize(
    ("mesh", "chunk"),
    [((8, 1, 1), 2), ((1, 8, 1), 6), ((2, 2, 2), 2), ((2, 2, 2), 6), ((1, 1, 8), 2)],
)
def test_a_mesh_moves_statistics_and_no_logits(mesh, chunk):
    """On every mesh the same numbers; nothing of the size of logits or of the head travels inside
    the loop."""
    mesh = make_mesh(MeshConfig(*mesh))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    batch, hidden, labels = inputs(rows=32)
    rng = np.random.default_rng(0)
    vocab = 264  # can be cut for eight devices
    weight = rng.normal(size=(vocab, WIDTH)).astype(np.float32)
    lora = rng.normal(size=(vocab, 2)).astype(np.float32)
    down = rng.normal(size=(2, WIDTH)).astype(np.float32)

    def place(x, *axes):
        return jax.device_put(x, named_sharding(mesh, axes, x.shape))

    def run(weight, lora, down, hidden, batch, labels):
        # As Decoder.head brings it: whole rows on each device.
        weight = jax.lax.with_sharding_constraint(
            weight, named_sharding(mesh, ("vocab", None), weight.shape)
        )
        gate = jnp.float32(60.0)

        def total(hidden, lora):
            head = Head(weight, down, None, lora, 1.0, 0.0)
            return batch_loss(
                head,
                hidden,
                batch,
                labels,
                method("ls"),
                LossConfig(),
                gate,
                jax.random.key(1),
                None,
                parts,
                chunk,
            ).loss

        return jax.value_and_grad(total, argnums=(0, 1))(hidden, lora)

    wanted = jax.jit(run)(weight, lora, down, hidden, batch, labels)
    placed = (
        place(weight, "vocab", "embed"),
        place(lora, "vocab", "rank"),
        down,
        place(hidden, "batch", None, None),
        jax.tree.map(lambda x: place(x, "batch", *[None] * (x.ndim - 1)), batch),
        place(labels, "batch"),
    )
    compiled = jax.jit(run).lower(*placed).compile()
    assert_equal_to(compiled(*placed), wanted)
    inside, outside = loop_and_rest(compiled.as_text())
    logits = parts * chunk * vocab // (parts * mesh.shape["tensor"])
    for line in inside:
        if re.search(r" = .*(all-gather|all-to-all|collective-permute)", line):
            raise AssertionError(line)
        if "all-reduce(" in line:
            assert elements(line) < max(logits, vocab * 2 // mesh.shape["tensor"] + 1), line
    assert sum("all-gather" in line for line in outside) <= 4


def loop_and_rest(text):
    """Instructions of an HLO module inside while loops' bodies, and the others."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    inside, outside, where = [], [], None
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line)
        if start:
            where = inside if start.group(1) in bodies else outside
        elif where is not None:
            where.append(line)
    assert bodies and inside
    return inside, outside


def elements(line):
    """Elements of the largest array an instruction yields."""
    shapes = re.findall(r"[a-z]\d+\[([\d,]*)\]", line.split(" all-reduce(")[0])
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def test_memory_at_full_size_stays_below_400_mb():
    """4,096 positions, 128,256 words, width 4,096, from shapes alone: temporaries and what the
    backward pass keeps, the head and its inputs aside."""
    positions, vocab, width, rank = 4096, 128256, 4096, 8
    for examples in (64, 1):  # whole examples in a chunk, and one long example
        batch = one_batch(questions(examples, tokens=1))
        shape = (examples, positions // examples)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        long = {n: jax.ShapeDtypeStruct(shape, getattr(batch, n).dtype) for n in LONG}
        batch = batch._replace(**long)

        def loss(hidden, lora_B, weight, lora_A, batch, labels):
            head = Head(weight, lora_A, None, lora_B, 2.0, 0.0)
            gate = jnp.float32(1.0)
            sums = batch_loss(
                head,
                hidden,
                batch,
                labels,
                method("ls"),
                LossConfig(),
                gate,
                jax.random.key(0),
                None,
            )
            return sums.loss

        f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        arguments = (
            f32(*shape, width),
            f32(vocab, rank),
            f32(vocab, width),
            f32(rank, width),
            batch,
            f32(examples),
        )
        memory = (
            jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile().memory_analysis()
        )
        assert memory.temp_size_in_bytes < 400e6


LONG = ("positions", "targets", "loss_mask")


@pytest.mark.parametrize(("n", "most", "wanted"), [(12, 5, 4), (7, 3, 1), (8, 8, 8), (64, 40, 32)])
def test_chunks_divide_the_batch(n, most, wanted):
    assert _largest_divisor(n, most) == wanted


@register_term("gated_square", label="Test term")
@dataclass(frozen=True)
class GatedSquare(Term):
    """The squared log-probability of the target, halved where the gate is closed."""

    needs_gate = True

    def __call__(self, rows):
        return (0.5 + 0.5 * rows.gate) * rows.of_target(rows.log_p) ** 2


def with_start(batch, top=5, seed=3):
    """The batch with beliefs of a start over the vocabulary, coarsened to `top` tokens."""
    logits = np.random.default_rng(seed).normal(0, 2, (*batch.targets.shape, VOCAB))
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    ids = np.argsort(-log_p, -1)[..., :top]
    rest = log_p.copy()
    np.put_along_axis(rest, ids, -1e30, -1)
    belief = StartBelief(
        np.take_along_axis(log_p, ids, -1).astype(np.float32),
        ids.astype(np.int32),
        np.logaddexp.reduce(rest, -1).astype(np.float32),
    )
    return batch._replace(start=belief), log_p


def test_terms_that_see_the_gate_or_the_start_are_the_same_in_chunks():
    decoder = tiny_decoder()
    batch, hidden, labels = inputs()
    batch, _ = with_start(batch)
    cases = [method(term, gate) for term in ("gated_square", "kl") for gate in ("all", "adaptive")]
    cases += [method("focal", "adaptive"), method("kl", "soft"), method("gated_square", "random")]

    @jax.jit
    def run(hidden):
        return [
            [
                sums_and_gradient(decoder, batch, hidden, labels, case, LossConfig(), chunk)
                for case in cases
            ]
            for chunk in CHUNKS.values()
        ]

    results = run(hidden)
    for got in results[:2]:
        assert_equal_to(got, results[2])


@pytest.mark.parametrize("top", [pytest.param(5, marks=pytest.mark.slow), VOCAB])
def test_the_divergence_is_of_coarsened_distributions_and_full_at_the_whole_vocabulary(top):
    decoder = tiny_decoder()
    batch, hidden, labels = inputs(tokens=1)
    batch, start = with_start(batch, top)
    head = decoder.head()

    def kl(hidden):
        case = method(f"kl(top={top})", "all")
        losses = losses_at(head, hidden, batch, LossConfig(), case, None)
        return losses.cal.sum(), losses.cal

    (_, got), gradient = jax.value_and_grad(kl, has_aux=True)(jnp.asarray(hidden))

    def full(hidden):
        log_p = jax.nn.log_softmax(head.logits(hidden), -1)
        each = jnp.sum(np.exp(start) * (start - log_p), -1)
        return each.sum(), each[:, 0]

    (_, wanted), full_gradient = jax.value_and_grad(full, has_aux=True)(jnp.asarray(hidden))
    if top == VOCAB:
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(gradient, full_gradient, rtol=1e-6, atol=1e-6)
        return
    assert (np.asarray(got) < np.asarray(wanted)).all() and (np.asarray(got) > 0).all()
    # By hand: k tokens and the rest, in float64.
    log_p = np.asarray(jax.nn.log_softmax(head.logits(hidden), -1), np.float64)
    ids = batch.start.ids
    p_top, q_top = (np.take_along_axis(np.exp(x), ids, -1) for x in (log_p, start))
    p = np.concatenate([p_top, 1 - p_top.sum(-1, keepdims=True)], -1)
    q = np.concatenate([q_top, 1 - q_top.sum(-1, keepdims=True)], -1)
    np.testing.assert_allclose(got, (q * np.log(q / p)).sum(-1)[:, 0], rtol=1e-4)
    # A token outside of the k moves the divergence through the class of all others.
    outside = int(np.argsort(start[0, 0])[0])

    def moved(step):
        logits = head.logits(hidden[:1, 0])
        of = Rows(logits.at[0, outside].add(step), batch.targets[:1, 0])
        first = jax.tree.map(lambda x: x[:1, 0], batch.start)
        return REGISTERED.make("kl")(coarsened(of, first)).sum()

    slope, step = float(jax.grad(moved)(0.0)), 1e-2
    assert slope == pytest.approx(float(moved(step) - moved(-step)) / (2 * step), rel=1e-2)
    assert slope > 0


def test_a_term_of_the_whole_batch_is_never_cut():
    """MDCA averages over the batch: with options, many rows and small chunks it stays whole."""
    decoder = tiny_decoder()
    batch = one_batch(questions(8, options=(4,)))
    hidden = np.random.default_rng(0).normal(size=(8, 1, WIDTH)).astype(np.float32)
    case = method("mdca", "adaptive", space="options")
    loss = LossConfig("options")

    @jax.jit
    def run(hidden):
        labels = np.zeros(8, np.float32)
        return [
            sums_and_gradient(decoder, batch, hidden, labels, case, loss, chunk)
            for chunk in (2, 1000)
        ]

    got, wanted = run(hidden)
    assert_equal_to(got, wanted)
    assert 0 < float(wanted[0][1].gated) < 8

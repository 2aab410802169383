"""`skip` on networks of several libraries and on what their traces hold."""

import functools

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from skipconv_jax import Rule, skip
from skipconv_jax.ops import (
    AlwaysGate,
    ClosedLoop,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    Previous,
)

X = np.asarray(jax.random.normal(jax.random.key(0), (2, 9, 8, 3)))
KEYS = jax.random.split(jax.random.key(1), 4)
A = 0.3 * jax.random.normal(KEYS[0], (3, 3, 3, 4))
B = 0.3 * jax.random.normal(KEYS[1], (3, 3, 4, 4))
VARIABLES = {"params": {"a": {"kernel": A}, "b": {"kernel": B}}}


def conv(x, kernel, **kw):
    """A plain NHWC convolution."""
    strides = kw.pop("strides", (1, 1))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=numbers, **kw)


def kernels(variables):
    """The two kernels."""
    return variables["params"]["a"]["kernel"], variables["params"]["b"]["kernel"]


def clip_of(x, frames=4):
    """A clip in which a corner moves."""

    def move(leaf, t):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.ndim < 4:
            return leaf
        return leaf.at[:, :3, :3].multiply(1 + 0.5 * t)

    return [jax.tree.map(functools.partial(move, t=t), x) for t in range(frames)]


def check(fn, variables, x, *args, rules=(), atol=2e-5, scan=False):
    """Dense equivalence at eps = 0, frame by frame under jit and in `scan`; returns the table."""
    net = skip(fn, rules, gate=InputNormGate(0.0, block=4))
    params, state = net.init(variables, x, *args)
    start, step, clip = state, jax.jit(net.apply), clip_of(x)
    dense = jax.jit(fn)
    outputs = []
    for frame in clip:
        y, state = step(params, state, frame, *args)
        expected = dense(variables, frame, *args)
        chex.assert_trees_all_equal_shapes_and_dtypes(y, expected)
        chex.assert_trees_all_close(y, expected, atol=atol, rtol=1e-5)
        outputs.append(y)
    if scan:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clip)
        turn = jax.jit(
            functools.partial(lax.scan, lambda s, f: net.apply(params, s, f, *args)[::-1])
        )
        last, ys = turn(start, stacked)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        chex.assert_trees_all_close(ys, together, atol=atol, rtol=1e-5)
        chex.assert_trees_all_equal_structs(last, state)
    table = net.table(variables, x, *args)
    skipped = [row.name for row in table.skipped()]
    assert sorted(skipped) == sorted(state) == sorted(params["gates"])
    if skipped:
        assert min(float(layer.fired.mean()) for layer in state.values()) < 1
    return table


def names(table):
    """Names in the order of the trace."""
    return [row.name for row in table.rows]


class Linen(nn.Module):
    """A kernel used twice, a residual, batch norm, strides, a 1x1 head with bias."""

    @nn.compact
    def __call__(self, x, train=False):
        shared = nn.Conv(3, (3, 3), name="shared")
        x = nn.relu(shared(x)) + x
        x = nn.BatchNorm(use_running_average=not train, name="norm")(shared(x))
        x = nn.Conv(6, (3, 3), strides=2, padding=1, feature_group_count=3, name="group")(x)
        return nn.Conv(2, (1, 1), name="head")(nn.swish(x))


def test_flax_linen():
    model = Linen()
    variables = model.init(KEYS[0], X)
    table = check(model.apply, variables, X, scan=True)
    assert names(table) == ["shared", "shared@1", "group", "head"]
    assert not any(row.dense_because or row.note for row in table.rows)


def test_flax_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.blocks = nnx.List([nnx.Conv(4, 4, (3, 3), rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            x = nnx.relu(self.norm(self.stem(x)))
            for block in self.blocks:
                x = x + block(x)
            return x

    model = Net(nnx.Rngs(0))
    model.eval()
    graph, variables = nnx.split(model)
    table = check(lambda v, x: nnx.merge(graph, v)(x), variables, X)
    assert names(table) == ["stem", "blocks/0", "blocks/1"]


def test_equinox_nchw_under_vmap():
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, padding=1, key=KEYS[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(4, 4, 3, stride=2, groups=2, key=KEYS[1]),
        ]
    )
    variables, static = eqx.partition(model, eqx.is_array)
    x = X.transpose(0, 3, 1, 2)
    table = check(lambda v, x: jax.vmap(eqx.combine(v, static))(x), variables, x)
    assert names(table) == ["layers/0", "layers/2"]
    assert table.rows[0].out_shape == (9, 8, 4)  # channels last, whatever the network's layout


def test_haiku():
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = jax.nn.relu(hk.Conv2D(4, 3, stride=2, name="stem")(x))
        return hk.Conv2D(2, 3, rate=2, name="head")(x)

    net = hk.without_apply_rng(hk.transform(forward))
    table = check(net.apply, net.init(KEYS[0], X), X)
    assert names(table) == ["stem", "head"]


def test_layouts():
    def fn(variables, x):
        a, b = kernels(variables)
        x = lax.conv_general_dilated(
            x.transpose(1, 2, 3, 0),
            a.transpose(3, 2, 0, 1),
            (1, 2),
            "SAME",
            dimension_numbers=("HWCN", "OIHW", "CNHW"),
        )
        return lax.conv_general_dilated(
            x, b, (1, 1), [(1, 1), (2, 0)], dimension_numbers=("CNHW", "HWIO", "NCHW")
        )

    table = check(fn, VARIABLES, X)
    assert [row.out_shape for row in table.rows] == [(9, 4, 4), (9, 4, 4)]


def test_one_and_three_dimensions():
    def fn(variables, x):
        rows = lax.conv_general_dilated(
            x[:, :, 0],
            variables["line"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        volume = lax.conv_general_dilated(
            x[..., None],
            variables["cube"],
            (1, 2, 1),
            "SAME",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return rows, volume

    variables = {"line": A[0], "cube": B[:, :, :3, None]}
    assert names(check(fn, variables, X)) == ["line", "cube"]


def test_nested_jit_remat_custom_jvp_and_custom_vjp():
    @jax.custom_vjp
    def first(x, kernel):
        return jax.jit(conv)(x, kernel)

    first.defvjp(lambda x, k: (first(x, k), (x, k)), lambda r, g: jax.tree.map(jnp.zeros_like, r))

    @jax.custom_jvp
    def second(x, kernel):
        return conv(x, kernel)

    @second.defjvp
    def _(primals, tangents):
        return second(*primals), second(tangents[0], primals[1])

    @jax.jit
    def fn(variables, x):
        a, b = kernels(variables)
        inner = jax.checkpoint(lambda h: jnp.tanh(jax.jit(conv)(jnp.tanh(conv(h, b)), b)))
        return inner(second(first(x, a), b)), jax.checkpoint(jnp.sin)(x)

    table = check(fn, VARIABLES, X)
    assert names(table) == ["a", "b", "b@1", "b@2"]
    assert [row.note.split(":")[0] for row in table.rows] == [
        "custom_vjp_call",
        "custom_jvp_call",
        "",
        "",
    ]


def test_control_flow_stays_dense_right_and_reported():
    def fn(variables, x):
        a, b = kernels(variables)
        x = conv(x, a)
        x, _ = lax.scan(lambda c, _: (jnp.tanh(conv(c, b)), None), x, None, length=3)
        x = lax.fori_loop(0, jnp.asarray(2), lambda i, c: jnp.tanh(conv(c, b)), x)
        x = lax.cond(x.sum() > 1e9, lambda c: c, lambda c: conv(c, 2.0 * b), x)
        return conv(x, b)

    table = check(fn, VARIABLES, X, atol=1e-3, scan=True)
    assert [(r.name, r.dense_because, r.calls) for r in table.rows] == [
        ("a", "", 1),
        ("b", "inside `scan`", 3),
        ("b@1", "inside `while`", 1),
        ("b@2", "inside `cond`", 1),
        ("b@3", "", 1),
    ]
    assert table.rows[1].macs == 3 * table.rows[4].macs
    assert "one turn" in table.rows[2].note
    assert "every branch" in table.rows[3].note
    assert str(table).count("dense: inside") == 3


def test_nothing_is_left_dense_silently():
    def fn(variables, x, other):
        a, b = kernels(variables)
        z = conv(x, a)
        by_frame = b * z.mean(axis=(0, 1, 2))[None, None, None]
        grouped = lax.conv_general_dilated(
            z, B[..., :2], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            batch_group_count=2,
        )  # fmt: skip
        return (
            conv(z, by_frame),
            lax.conv_transpose(z, b, (2, 2), "SAME"),
            conv(other, a),
            grouped,
            conv(z, b),
        )

    table = check(fn, VARIABLES, X, X, rules=[("b@1", None)])
    assert [(row.name, row.dense_because) for row in table.rows] == [
        ("a", ""),
        ("constant", "it groups the batch"),
        ("dynamic", "its kernel depends on the frame"),
        ("b", "it dilates its input (transposed convolution)"),
        ("a@1", "its input does not depend on the frame"),
        ("b@1", "by rule"),
    ]


def test_weight_standardised_and_folded_kernels_are_named_after_the_kernel():
    def fn(variables, x):
        k = variables["params"]["a"]["kernel"]
        k = (k - k.mean(axis=(0, 1, 2), keepdims=True)) / k.std(axis=(0, 1, 2), keepdims=True)
        return conv(x, jax.jit(jnp.multiply)(k, variables["scale"].reshape(1, 1, 1, 4)))

    table = check(fn, VARIABLES | {"scale": jnp.arange(1.0, 5.0)}, X)
    assert names(table) == ["a"]


def test_names_never_clash():
    variables = {"a": {"kernel": A}, "a@1": {"kernel": 2 * A}}

    def fn(v, x):
        return conv(x, v["a"]["kernel"]), conv(x, v["a@1"]["kernel"]), conv(x, v["a"]["kernel"])

    assert names(check(fn, variables, X)) == ["a", "a@1", "a@2"]


def test_closed_over_kernels_and_vmapped_ensembles():
    table = check(lambda v, x: conv(x, A), {}, X)
    assert names(table) == ["constant"]
    scales = jnp.array([1.0, 2.0])
    table = check(lambda v, x: jax.vmap(lambda s: conv(x, s * v["k"]))(scales), {"k": A}, X)
    assert table.macs == 2 * 9 * 8 * A.size


def test_uint8_frames_and_pytrees():
    frame = {"rgb": np.full((2, 9, 8, 3), 7, np.uint8), "gain": np.ones((2, 1), np.float32)}

    def fn(variables, x):
        image = x["rgb"].astype(jnp.float32) / 255.0
        return {
            "z": conv(image, kernels(variables)[0]) * x["gain"][:, :, None, None],
            "x": x["rgb"],
        }

    net = skip(fn)
    params, state = net.init(VARIABLES, frame)
    y, state = net.apply(params, state, frame)
    chex.assert_trees_all_close(y, fn(VARIABLES, frame), atol=1e-5)
    again, state = net.apply(params, state, frame)
    chex.assert_trees_all_equal(y, again)
    assert float(state["a"].fired.max()) == 0


def test_bfloat16_network():
    model = nn.Sequential([nn.Conv(4, (3, 3), dtype=jnp.bfloat16), nn.relu])
    check(model.apply, model.init(KEYS[0], X), X, atol=1e-2)


def test_images_of_a_stream_share_its_state_and_reset():
    """As in segment networks: (B, T, H, W, C) frames folded into the batch."""
    x = np.stack([X, 2 * X, 3 * X], axis=1)

    def fn(variables, x):
        z = conv(x.reshape(-1, *x.shape[2:]), kernels(variables)[0])
        return z.reshape(*x.shape[:2], *z.shape[1:]).mean(axis=1)

    net = skip(fn, gate=InputNormGate(1e-3, block=4))
    params, state = net.init(VARIABLES, x)
    y, state = net.apply(params, state, x)
    chex.assert_trees_all_close(y, fn(VARIABLES, x), atol=1e-5)
    assert net.table(VARIABLES, x).rows[0].calls == 3
    assert state["a"].fresh.shape == (2,)
    _, state = net.apply(params, net.reset(state, jnp.array([False, True])), x)
    np.testing.assert_array_equal(state["a"].fired.min(axis=(1, 2)), [0, 0, 0, 1, 1, 1])


def test_streams_repeated_along_the_batch_stay_dense():
    """As in flip tests: a reset could not tell the images of a stream from the next stream's."""

    def interleaved(variables, x, axis=0):
        both = jnp.concatenate if axis == 0 else functools.partial(jnp.stack, axis=axis)
        both = both([x, x[:, :, ::-1]]).reshape(-1, *x.shape[1:])
        z = conv(jnp.tanh(conv(both, kernels(variables)[0])), kernels(variables)[1])
        return z.reshape(2, -1, *z.shape[1:]).sum(axis=axis)

    table = check(interleaved, VARIABLES, X)
    assert all("several times" in row.dense_because for row in table.rows)
    one_stream = check(interleaved, VARIABLES, X[:1])
    by_stream = check(functools.partial(interleaved, axis=1), VARIABLES, X)
    for table in (one_stream, by_stream):
        assert [(row.name, row.calls) for row in table.skipped()] == [("a", 2), ("b", 2)]


def test_rules_first_match_wins_and_none_is_dense():
    model = Linen()
    variables = model.init(KEYS[0], X)
    first, second = OutputNormGate(0.1, block=2), InputNormGate(0.2, block=3)
    rules = [
        ("head", None),
        ("shared@1", Rule(first, ClosedLoop(), "blocks")),
        ("shared*", Rule(second)),
        ("*", Rule(AlwaysGate(block=1))),
    ]
    net = skip(model.apply, rules, policy=Previous())
    table = net.table(variables, X)
    assert [row.gate for row in table.rows] == [second, first, AlwaysGate(block=1), None]
    assert table.rows[3].dense_because == "by rule"
    params, state = net.init(variables, X)
    assert sorted(state) == ["group", "shared", "shared@1"]
    assert state["shared@1"].reference.ndim == 6  # ClosedLoop's tiles
    y, _ = net.apply(params, state, X)
    chex.assert_trees_all_close(y, model.apply(variables, X), atol=1e-5)


def test_rules_that_are_wrong_are_refused():
    model = Linen()
    variables = model.init(KEYS[0], X)
    net = skip(model.apply, [("stem/*", None)])
    for call in (net.init, net.table):
        with pytest.raises(ValueError, match=r"`rules` pattern 'stem/\*' .*group.*head.*shared"):
            call(variables, X)
    for rules in ([("a",)], [5], [(1, None)], [("a", InputNormGate())], {"ab": None}):
        with pytest.raises(ValueError, match="`rules` entry"):
            skip(model.apply, rules)
    with pytest.raises(ValueError, match=r"`implementation` \(='cuda'\)"):
        skip(model.apply, implementation="cuda")
    with pytest.raises(ValueError, match=r"`implementation` \(='cuda'\)"):
        skip(model.apply, [("a", Rule(AlwaysGate(), implementation="cuda"))])
    for gate in (InputNormGate, 0.01, None):
        with pytest.raises(ValueError, match=r"`gate` \(="):
            Rule(gate)
    with pytest.raises(ValueError, match=r"`policy` \(="):
        skip(model.apply, policy=ClosedLoop)


def test_what_init_did_not_make_is_refused():
    """The likeliest slip: `apply` with the network's own variables."""
    model = Linen()
    variables = model.init(KEYS[0], X)
    net = skip(model.apply)
    params, state = net.init(variables, X)
    for wrong in (variables, {"model": variables}, state, None):
        with pytest.raises(ValueError, match=r"`params` \(=.*take them from `init`"):
            net.apply(wrong, state, X)
    with pytest.raises(ValueError, match=r"`state` \(a NoneType\)"):
        net.apply(params, None, X)
    with pytest.raises(ValueError, match=r"`rng` \(=3\)"):
        net.apply(params, state, X, rng=3)
    with pytest.raises(ValueError, match=r"`key` \(=0\)"):
        net.init(variables, X, key=0)
    for fn in (None, variables):
        with pytest.raises(ValueError, match=r"`fn` \(="):
            skip(fn)
    for rules in (None, 5):
        with pytest.raises(ValueError, match=r"`rules` \(="):
            skip(model.apply, rules)


def test_vmap_over_an_ensemble_of_streams():
    """Two sets of weights on two clips, batched by `vmap`, equal each alone."""
    model, net = Linen(), skip(Linen().apply, gate=InputNormGate(1e-2, block=4))
    sets = jax.vmap(lambda key: model.init(key, X))(KEYS[:2])
    first = jax.tree.map(lambda leaf: leaf[0], sets)
    params, state = net.init(first, X)
    stack = functools.partial(jax.tree.map, lambda leaf: jnp.stack([leaf, leaf]))
    both = {"model": sets, "gates": stack(params["gates"])}
    states, apply = stack(state), jax.jit(jax.vmap(net.apply))
    clips = [jnp.stack([frame, 2 * frame]) for frame in clip_of(X, 3)]
    for frames in clips:
        y, states = apply(both, states, frames)
    for k in range(2):
        alone, own = state, {"model": jax.tree.map(lambda leaf, k=k: leaf[k], sets)}
        for frames in clips:
            z, alone = net.apply(own | {"gates": params["gates"]}, alone, frames[k])
        chex.assert_trees_all_close(y[k], z, atol=1e-5)
        masks = {name: layer.fired[k] for name, layer in states.items()}
        chex.assert_trees_all_equal(masks, {name: layer.fired for name, layer in alone.items()})
    assert 0 < float(states["head"].fired.mean()) < 1


def test_frames_without_a_batch_are_refused():
    net = skip(lambda v, x: x["a"])
    for x in ({"a": jnp.ones(())}, {}, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}):
        with pytest.raises(ValueError, match=r"`x` \(shapes .*streams"):
            net.init({}, x)


def test_shapes_suffice_for_the_table():
    model = Linen()
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEYS[0], x)
    table = skip(model.apply).table(variables, x)
    assert names(table) == ["shared", "shared@1", "group", "head"]
    assert table.rows[0].macs == 64 * 64 * 81


def test_gates_alone_are_those_of_init():
    net = skip(lambda v, x: conv(conv(x, A), B), gate=GumbelGate(block=4))
    key = jax.random.key(3)
    params, _ = net.init({}, X, key=key)
    chex.assert_trees_all_equal(net.init_gates({}, X, key=key), params["gates"])
    with pytest.raises(ValueError, match=r"`key` \(=None\)"):
        net.init_gates({}, X)


def test_equal_layers_share_a_trace():
    """A deep network is traced and lowered in the time of its distinct layers."""
    kernels = [B, 0.5 * B, 0.3 * jnp.ones((3, 3, 4, 4)), 0.2 * jnp.ones((1, 1, 4, 4))]
    net = skip(lambda v, x: functools.reduce(conv, v, x), gate=InputNormGate(0.1, block=4))
    x = jnp.asarray(np.concatenate([X, X[..., :1]], axis=-1))
    params, state = net.init(kernels, x)
    traced = jax.make_jaxpr(net.apply)(params, state, x)
    layers = [e.params["jaxpr"] for e in traced.eqns if e.params.get("name") == "skip_conv"]
    assert len(layers) == 4
    assert len({id(layer.jaxpr) for layer in layers}) == 2

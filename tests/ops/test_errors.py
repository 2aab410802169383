"""Bad input: a ValueError that names the argument and its value, and says what would do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import (
    Accumulate,
    AlwaysGate,
    ClosedLoop,
    Conv,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    Previous,
    init_state,
    skip_conv,
)

X = jnp.ones((2, 9, 9, 4))
PARAMS = {"kernel": jnp.ones((3, 3, 4, 6)), "bias": jnp.ones((6,))}


def refuses(match, fn, *args, **kw):
    with pytest.raises(ValueError, match=match):
        fn(*args, **kw)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"strides": 0}, r"`strides` \(=0\)"),
        ({"strides": (1, 2, 3)}, r"`strides` \(=\(1, 2, 3\)\)"),
        ({"strides": 1.5}, r"`strides` \(=1.5\)"),
        ({"strides": (2.5, 2)}, r"`strides` \(=\(2.5, 2\)\)"),
        ({"dilation": -1}, r"`dilation` \(=-1\)"),
        ({"padding": "REFLECT"}, r"`padding` \(='REFLECT'\)"),
        ({"padding": ((1, 1),)}, r"`padding` \(=\(\(1, 1\),\)\)"),
        ({"padding": ((1, 1), (1,))}, r"`padding`"),
        ({"padding": ((1, 1), (1.5, 1))}, r"`padding`"),
        ({"padding": None}, r"`padding` \(=None\)"),
        ({"groups": 3}, r"`groups` \(=3\)"),
        ({"groups": 0}, r"`groups` \(=0\)"),
        ({"groups": 2}, r"`kernel` .*channels"),
        ({"dilation": 9, "padding": "VALID"}, r"`x` .*large enough"),
    ],
)
def test_geometry(change, match):
    refuses(match, Conv.make, X.shape, PARAMS["kernel"].shape, **change)
    refuses(match, init_state, PARAMS, X, **change)
    refuses(match, skip_conv, PARAMS, init_state(PARAMS, X), X, **change)


@pytest.mark.parametrize(
    ("x", "kernel", "match"),
    [
        ((9, 9), (3, 3, 4, 6), r"`x` \(shape \(9, 9\)\).*batch axis"),
        ((9, 9, 4), (3, 3, 4, 6), r"`kernel` \(shape"),
        ((2, 9, 9, 5), (3, 3, 4, 6), r"`kernel` .*takes 4"),
        ((0, 9, 9, 4), (3, 3, 4, 6), r"`x` .*empty"),
        ((2, 9, 9, 4), (0, 3, 4, 6), r"empty"),
        ((2, 1, 1, 1, 1, 4), (1, 1, 1, 1, 4, 6), r"`x` .*1 to 3 spatial axes"),
    ],
)
def test_shapes(x, kernel, match):
    refuses(match, init_state, {"kernel": jnp.ones(kernel)}, jnp.ones(x))


def test_arrays():
    state = init_state(PARAMS, X)
    refuses(r"`x` \(dtype int32\)", skip_conv, PARAMS, state, jnp.ones(X.shape, jnp.int32))
    refuses(
        r"`kernel` \(dtype int32\)", skip_conv, {"kernel": jnp.ones((3, 3, 4, 6), int)}, state, X
    )
    refuses(r"`bias` \(shape \(5,\)\)", skip_conv, PARAMS | {"bias": jnp.ones((5,))}, state, X)
    refuses(r"`params` .*'kernel'", skip_conv, {"weight": PARAMS["kernel"]}, state, X)
    refuses(r"`streams` \(=4\)", init_state, PARAMS, X, streams=4)
    with jax.enable_x64(True):
        wide = X.astype(jnp.float64)
        refuses(r"`kernel` .*float64", skip_conv, PARAMS, init_state(PARAMS, wide), wide)


@pytest.mark.parametrize(
    "make",
    [
        lambda: init_state(PARAMS, jnp.ones((2, 10, 9, 4))),
        lambda: init_state(PARAMS, jnp.ones((1, 9, 9, 4))),
        lambda: init_state(PARAMS, X.astype(jnp.bfloat16)),
        lambda: init_state(PARAMS, X, gate=InputNormGate(block=4)),
        lambda: init_state(PARAMS, X, policy=ClosedLoop()),
        lambda: init_state(PARAMS, X, policy=Accumulate()),
        lambda: init_state(PARAMS, X, strides=2),
        lambda: init_state({"kernel": jnp.ones((3, 3, 4, 5))}, X),
    ],
    ids=["height", "streams", "dtype", "block", "policy", "accumulate", "strides", "channels"],
)
def test_a_state_made_for_something_else(make):
    refuses(r"`state` .*`init_state`", skip_conv, PARAMS, make(), X)


def test_a_state_whose_output_happens_to_fit_is_refused_too():
    """At stride 2 heights 7 and 8, or 1 and 2, have outputs of one size; 1 would broadcast."""
    for small, large in ((7, 8), (1, 2)):
        kw = {"strides": 2, "padding": "SAME"}
        state = init_state(PARAMS, jnp.ones((1, small, small, 4)), **kw)
        refuses(r"`state`", skip_conv, PARAMS, state, jnp.ones((1, large, large, 4)), **kw)


def test_gate_parameters():
    gate = GumbelGate(block=4)
    state = init_state(PARAMS, X, gate=gate)
    refuses(r"`key` \(=None\)", skip_conv, PARAMS, state, X, gate=gate)
    wrong = PARAMS | {"gate": {"threshold": jnp.float32(1)}}
    refuses(r"`params\['gate'\]` .*threshold.*GumbelGate", skip_conv, wrong, state, X, gate=gate)
    conv = Conv.make(X.shape, (5, 5, 4, 6))
    wrong = PARAMS | {"gate": gate.init(jax.random.key(0), conv)}
    refuses(r"`params\['gate'\]`", skip_conv, wrong, state, X, gate=gate)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: InputNormGate(block=0), r"`block` \(=0\)"),
        (lambda: AlwaysGate(block=2.0), r"`block` \(=2.0\)"),
        (lambda: GumbelGate(block=True), r"`block` \(=True\)"),
        (lambda: InputNormGate(-1e-3), r"`threshold` \(=-0.001\)"),
        (lambda: OutputNormGate(float("nan")), r"`threshold` \(=nan\)"),
        (lambda: OutputNormGate(float("inf")), r"`threshold` \(=inf\)"),
        (lambda: InputNormGate(reduction="max"), r"`reduction` \(='max'\)"),
        (lambda: GumbelGate(temperature=0), r"`temperature` \(=0\)"),
        (lambda: GumbelGate(temperature=float("inf")), r"`temperature` \(=inf\)"),
        (lambda: GumbelGate(temperature="2/3"), r"`temperature` \(='2/3'\)"),
        (lambda: GumbelGate(bias_init=float("nan")), r"`bias_init` \(=nan\)"),
        (lambda: GumbelGate(sees="both"), r"`sees` \(='both'\)"),
        (lambda: InputNormGate("0.1"), r"`threshold` \(='0.1'\)"),
        (lambda: InputNormGate(None), r"`threshold` \(=None\)"),
        (lambda: init_state(PARAMS, X, gate=GumbelGate(), policy=Accumulate()), r"`gate` \(="),
    ],
)
def test_gates_and_policies(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("gate", "input_norm"),
        ("gate", InputNormGate),
        ("policy", "previous"),
        ("policy", Previous),
        ("rng", 3),
        ("rng", np.zeros(2)),
    ],
)
def test_names_and_classes_are_no_gates_policies_or_keys(argument, value):
    match = rf"`{argument}` \(="
    refuses(match, skip_conv, PARAMS, init_state(PARAMS, X), X, **{argument: value})
    if argument != "rng":
        refuses(match, init_state, PARAMS, X, **{argument: value})


def test_what_is_no_array_no_mapping_no_state():
    state = init_state(PARAMS, X)
    for x in (None, [[1.0]]):
        refuses(r"`x` \(a ", skip_conv, PARAMS, state, x)
        refuses(r"`x` \(a ", init_state, PARAMS, x)
    for params in (None, PARAMS["kernel"]):
        refuses(r"`params` \(a ", skip_conv, params, state, X)
    for given in (None, {}):
        refuses(r"`state` \(a ", skip_conv, PARAMS, given, X)
    for streams in ("2", 0, 1.5, 3):
        refuses(r"`streams` \(=", init_state, PARAMS, X, streams=streams)


def test_reset_flags():
    state = init_state(PARAMS, X)
    for flags in (jnp.array([True]), jnp.array([1, 0]), jnp.zeros((2, 1), bool)):
        refuses(r"`streams` \(shape", state.reset, flags)
    np.testing.assert_array_equal(
        dataclasses.replace(state, fresh=jnp.zeros((2,), bool)).reset([False, True]).fresh,
        [False, True],
    )


def test_numpy_integers_and_lists_are_integers():
    conv = Conv.make(X.shape, (3, 3, 4, 6), strides=np.int64(2), padding=[np.int32(1), 1])
    assert conv == Conv.make(X.shape, (3, 3, 4, 6), strides=[2, 2], padding=((1, 1), (1, 1)))
    assert Previous() == Previous()
    depthwise = Conv.make(X.shape, (3, 3, 1, 4), groups=np.int64(4))
    assert depthwise == Conv.make(X.shape, (3, 3, 1, 4), groups=4)
    gate = InputNormGate(np.float32(0.5), block=np.int64(4))
    assert gate == InputNormGate(0.5, block=4)
    assert hash(InputNormGate(jnp.float32(0.5))) == hash(InputNormGate(0.5))

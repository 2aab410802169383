"""Every engine's plan keeps the contract; which one `compile_plan` takes, and why."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from skipconv_jax import native, skip
from skipconv_jax.ops import ClosedLoop, GumbelGate, InputNormGate, Keyframe
from skipconv_jax.plans import ENGINES, compile_plan, saved
from skipconv_jax.streaming.guards import Drift, Every, Guard, SceneCut
from skipconv_jax.streaming.runner import Runner
from tests.plans import contract

needs_native = pytest.mark.skipif(not native.available(), reason=native.status())


@pytest.fixture(scope="module")
def plain():
    """The plan in XLA as it is."""
    return contract.made("plain")


@pytest.fixture(scope="module")
def folded():
    """The folded plan."""
    return contract.made("folded")


@pytest.fixture(scope="module")
def native_one():
    """The native plan."""
    return contract.made("native")


class TestPlain(contract.PlanContract):
    """`net.apply`."""

    engine = "plain"

    @pytest.fixture
    def made(self, plain):
        """Compiled once."""
        return plain


class TestFolded(contract.PlanContract):
    """Folded, in XLA."""

    engine = "folded"

    @pytest.fixture
    def made(self, folded):
        """Compiled once."""
        return folded


@needs_native
class TestNative(contract.PlanContract):
    """The CPU engine."""

    engine = "native"

    @pytest.fixture
    def made(self, native_one):
        """Compiled once."""
        return native_one


@pytest.fixture(scope="module")
def loaded_one(native_one, tmp_path_factory):
    """The native plan from its file."""
    path = tmp_path_factory.mktemp("saved") / "net.skc"
    saved.save(native_one.plan, path)
    return dataclasses.replace(native_one, plan=saved.load_plan(path))


@needs_native
class TestLoaded(contract.PlanContract):
    """A saved plan, which has no network any more."""

    engine = "native"

    @pytest.fixture
    def made(self, loaded_one):
        """Compiled once."""
        return loaded_one

    def test_its_table_is_that_of_the_network(self, made, native_one):
        assert made.plan.table == native_one.plan.table
        with pytest.raises(ValueError, match=r"`plan` \(=LoadedPlan\) must be compiled"):
            made.plan.first_layer()


@needs_native
@pytest.mark.parametrize("sees", ["signed", "magnitude"])
def test_trained_gates_of_a_loaded_plan_are_set_as_before(sees, tmp_path):
    """Kernels of gates too, also where a stem of split pixels has its taps moved."""
    net = skip(_focus, gate=GumbelGate(4, sees=sees), policy=ClosedLoop())
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(0, 0.2, (3, 3, 12, 8)), jnp.float32)
    frames = rng.normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    params, _ = net.init(weights, frames[0], key=jax.random.key(0))
    plan = compile_plan(net, params, frames[0], engine="native")
    saved.save(plan, tmp_path / "net.skc")
    loaded = saved.load_plan(tmp_path / "net.skc")
    drawn = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), params["gates"])
    gates = [p.with_gates(drawn) for p in (plan, loaded)]
    jax.tree.map(np.testing.assert_array_equal, *gates)
    assert np.any(np.asarray(gates[0][0][2]) != np.asarray(plan.constants[0][2]))


def _focus(kernel, x):
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return contract.conv(x.reshape(b, h // 2, w // 2, 4 * c), kernel)


@pytest.mark.parametrize("engine", ["plain", "folded", pytest.param("native", marks=needs_native)])
def test_guards_run_on_every_engine(engine, request):
    """Period, cut and drift; stream 1 is cut at frame 3, and the others stay as they are."""
    plan = request.getfixturevalue("native_one" if engine == "native" else engine).plan
    frames = np.repeat(contract.clip()[:1], 6, axis=0)
    frames[3:, 1] = 9 - frames[3:, 1]
    policies = [Every(5), SceneCut(low=-4, high=12), Drift(every=2, bound=float("inf"))]
    runner = Runner(plan, lambda y: y, guard=Guard.make(plan, policies))
    carry, fresh, drift = runner.init(), [], []
    for x in frames:
        carry, seen = runner.step(plan.constants, carry, x)
        fresh.append(np.asarray(seen.fresh))
        drift.append({name: np.asarray(v) for name, v in seen.figures.items()})
        full = np.asarray(seen.macs) == plan.table.macs
        np.testing.assert_array_equal(full, fresh[-1])
    times = np.argwhere(np.stack(fresh)).tolist()
    assert times == [[0, 0], [0, 1], [3, 1], [5, 0]]
    (name,) = drift[0]
    assert name == ("drift/point@1" if engine == "plain" else "drift/output")
    assert drift[5][name].max() < 1e-4
    carry, whole = runner.piece(plan.constants, runner.init(), frames)
    np.testing.assert_array_equal(np.stack(fresh), whole.fresh)


def test_layers_inside_are_seen_by_the_plain_engine_alone(folded):
    with pytest.raises(ValueError, match=r"`layers` of Drift .* must be empty on the folded"):
        Guard.make(folded.plan, [Drift(layers=("stem",))])


def _net(policy=None):
    return skip(contract.network, gate=InputNormGate(0.1, block=4), policy=policy)


def test_engines_by_name():
    net, weights, x = _net(Keyframe()), contract.variables(), contract.clip()[0]
    params, _ = net.init(weights, x)
    assert ENGINES == ("auto", "native", "folded", "plain")
    with pytest.raises(ValueError, match=r"`engine` \(='fast'\) must be one of auto, native"):
        compile_plan(net, params, x, engine="fast")
    assert compile_plan(net, params, x, engine="xla").engine == "plain"


@needs_native
def test_an_engine_that_cannot_run_says_why(monkeypatch):
    net, weights, x = _net(Keyframe()), contract.variables(), contract.clip()[0]
    params, _ = net.init(weights, x)
    with pytest.raises(ValueError, match=r"can't run 'depth' \(no kernel for the policy Keyframe"):
        compile_plan(net, params, x, engine="native")
    plan = compile_plan(net, params, x)
    assert (plan.engine, "no kernel for the policy" in plan.why) == ("plain", True)
    assert compile_plan(_net(), params, x).engine == "native"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"`engine` \(='native'\) can't run here: .*go to the gpu"):
        compile_plan(_net(), params, x, engine="native")
    assert compile_plan(_net(), params, x).engine == "folded"


@pytest.mark.parametrize("engine", ["plain", "folded", pytest.param("native", marks=needs_native)])
def test_a_network_is_traced_once(engine):
    """Whatever start-up does with it: table, plan, guard, state, compiled step."""
    traces = []

    def fn(variables, x):
        traces.append(x.shape)
        return contract.network(variables, x)

    net, weights, x = skip(fn, gate=InputNormGate(0.1, 4)), contract.variables(), contract.clip()[0]
    gates = {n: {"threshold": jnp.float32(0.1)} for n in ("stem", "depth", "point", "point@1")}
    plan = compile_plan(net, {"model": weights, "gates": gates}, x, engine=engine)
    runner = Runner(plan, lambda y: y, (4, 4), Guard.make(plan, [SceneCut(), Drift(every=3)]))
    runner.step(plan.constants, runner.init(), x)
    assert plan.state_bytes() > 0
    assert traces == [x.shape]


@pytest.mark.parametrize("engine", ["folded", pytest.param("native", marks=needs_native)])
def test_an_unused_convolution_is_no_work(engine):
    def fn(variables, x):
        y = contract.conv(x, variables["stem"], 2)
        contract.conv(y, variables["point"])
        return contract.conv(y, variables["point"])

    net, weights, x = skip(fn, gate=InputNormGate(0.1, 4)), contract.variables(), contract.clip()[0]
    params, state = net.init(weights, x)
    plan = compile_plan(net, params, x, engine=engine)
    want, _ = jax.jit(net.apply)(params, state, x)
    y, _, masks = plan.step(plan.init_state(), x)
    contract.close(y, want)
    assert sorted(plan.fired(masks)) == sorted(state) == ["point", "stem"]
    assert [row.name for row in plan.table.rows] == ["stem", "point"]


def test_an_exported_step_survives_the_file():
    """`jax.export` of `net.apply`: parameters and state go in and out as they are."""
    net, weights, frames = _net(), contract.variables(), contract.clip()
    params, state = net.init(weights, frames[0])
    step = jax.jit(net.apply)
    written = export.export(step)(params, state, frames[0]).serialize()
    read = export.deserialize(written)
    ours = state
    for x in frames[:3]:
        want, state = step(params, state, x)
        got, ours = read.call(params, ours, x)
        jax.tree.map(np.testing.assert_array_equal, (got, ours), (want, state))
    assert ours["stem"].fired.min() == 0

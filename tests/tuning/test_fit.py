"""Gates trained without labels: what they learn, resume, what the file holds, and the engine."""

import dataclasses

import jax
import numpy as np
import pytest

from skipconv_jax import skip
from skipconv_jax.ops import ClosedLoop, GumbelGate
from skipconv_jax.tasks.base import squared_error
from skipconv_jax.training.loop import Options
from skipconv_jax.tuning import GatePlan
from skipconv_jax.tuning.fit import Clips, Recipe, fit
from skipconv_jax.tuning.trials import Trials

RECIPE = Recipe(
    betas=(0.2,), steps=60, clip_length=3, batch=2, lr=0.1, block=4, threshold=0.15, seed=1
)


def _network(variables, x):
    """Two channels enter; the second, all noise, is worth a thousandth of the first."""
    return jax.lax.conv_general_dilated(
        x, variables["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.fixture(scope="module")
def variables():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 3))
    return {"k": kernel.at[:, :, 1].multiply(1e-3)}


def _video(seed, frames=24):
    """A square moves in the first channel; the second is noise."""
    rng = np.random.default_rng(seed)
    clip = np.zeros((frames, 16, 16, 2), np.float32)
    for t in range(frames):
        at = (2 * t) % 12
        clip[t, 4:8, at : at + 4, 0] = 1
    clip[..., 1] = 0.3 * rng.normal(size=clip.shape[:-1])
    return clip


def _fit(variables, folder, recipe=RECIPE, policy=None, **options):
    return fit(
        _network, variables, [_video(0)], squared_error, recipe, folder,
        policy=policy or ClosedLoop(), options=Options(log_every=30, **options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(variables, tmp_path_factory):
    return _fit(variables, tmp_path_factory.mktemp("fit"))[0]


def test_noise_that_does_not_matter_is_unlearned(fitted, variables):
    kernel = fitted.gate_plan.params()["k"]["kernel"]
    assert kernel[:, :, 1].mean() < 0.7 * kernel[:, :, 0].mean()
    clip = _video(1)[:, None]
    trials = Trials(skip(_network, fitted.gate_plan), variables, clip, squared_error)
    after = trials(fitted.gate_plan.params())
    untrained = np.full((3, 3, 2, 1), 4 / (0.15 * 18), np.float32)
    before = trials({"k": {"kernel": untrained, "bias": np.array([-4.0], np.float32)}})
    assert before.macs > 0.7 * trials.dense_macs
    assert after.macs < 0.8 * before.macs
    assert after.loss < 0.02


def test_engines_agree_on_trained_gates(fitted, variables):
    clip = _video(2)[:8, None]
    losses = [
        Trials(skip(_network, fitted.gate_plan), variables, clip, squared_error, engine=engine)(
            fitted.gate_plan.params()
        )
        for engine in ("auto", "plain")
    ]
    np.testing.assert_allclose(losses[0].firing, losses[1].firing, atol=1e-6)
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-3, abs=1e-9)


def test_the_file_holds_the_gates(fitted, tmp_path):
    path = tmp_path / "plan.json"
    fitted.gate_plan.save(path)
    again = GatePlan.load(path)
    assert again == fitted.gate_plan
    assert hash(again) == hash(fitted.gate_plan)
    assert again.note("beta") == 0.2
    assert isinstance(again.layers[0][1].gate, GumbelGate)
    text = path.read_text()
    for broken in (
        text.replace('"params"', '"parameters"'),
        text.replace('"gumbel"', '"input_norm"'),
        text.replace('"shape": [\n      1\n', '"shape": [\n      2\n'),
    ):
        assert broken != text
        path.write_text(broken)
        with pytest.raises(ValueError, match="gate plan"):
            GatePlan.load(path)


def test_a_stopped_run_goes_on_to_the_bit(variables, tmp_path):
    short = dataclasses.replace(RECIPE, steps=6)
    whole = _fit(variables, tmp_path / "whole", short)[0]

    class Stop(RuntimeError):
        pass

    drawn = Clips.__next__
    count = 0

    def stopping(self):
        nonlocal count
        count += 1
        if count == 5:
            raise Stop
        return drawn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clips, "__next__", stopping)
        with pytest.raises(Stop):
            _fit(variables, tmp_path / "cut", short, checkpoint_every=2)
    with pytest.raises(ValueError, match="--resume"):
        _fit(variables, tmp_path / "cut", short)
    resumed = _fit(variables, tmp_path / "cut", short, resume=True)[0]
    assert resumed.gate_plan == whole.gate_plan


def test_the_network_is_tuned_along_where_it_is_asked_for(variables, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=3, joint=1e-2, sees="signed", betas=(0.0,))
    found = _fit(variables, tmp_path, recipe)[0]
    assert not np.array_equal(found.variables["k"], variables["k"])
    np.testing.assert_allclose(found.variables["k"], variables["k"], atol=0.1)
    assert found.gate_plan.layers[0][1].gate.sees == "signed"


def test_clips_stay_within_a_part():
    parts = [np.arange(5)[:, None], 100 + np.arange(3)[:, None], 200 + np.arange(1)[:, None]]
    clips = Clips(parts, 3, 4, seed=0)
    seen = {tuple(clip.ravel()) for _ in range(30) for clip in next(clips)["frames"]}
    assert seen == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (100, 101, 102)}
    again = Clips(parts, 3, 4, seed=0)
    again.set_state({"step": 29})
    fresh = Clips(parts, 3, 4, seed=0)
    for _ in range(30):
        last = next(fresh)
    np.testing.assert_array_equal(next(again)["frames"], last["frames"])
    with pytest.raises(ValueError, match="follow each other"):
        Clips(parts, 6, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": ()}, "betas"),
        ({"clip_length": 1}, "clip_length"),
        ({"lr": 0.0}, "lr"),
        ({"threshold": {"other": 1.0}}, "threshold"),
    ],
)
def test_bad_recipes(variables, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        _fit(variables, tmp_path, dataclasses.replace(RECIPE, **change))

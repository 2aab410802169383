"""Training and measuring the networks that the tables compare."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paper.setting import Row, Setting
from skipconv_jax import SkipNet, compress, macs, skip
from skipconv_jax.baselines.cc_image import cc_image
from skipconv_jax.data.pipeline import make_eval_iterator
from skipconv_jax.ops import GumbelGate
from skipconv_jax.streaming.runner import make_streamer
from skipconv_jax.tasks.pose import GROUPS, Pck
from skipconv_jax.training.checkpoints import Checkpoints
from skipconv_jax.training.loop import Options, Phase, run
from skipconv_jax.training.optimizer import optimizer
from skipconv_jax.training.step import LossFn, create_state, dense_loss, gated_loss

Tree = Any
Fn = Callable[..., Any]
STRICT = 0.1
"""Alpha of a second PCK: synthetic clips come close to 100 % of the paper's PCK@.2."""
NORM = 0.1
"""Norm at which gates of magnitudes start: Input-Norm gates of 0.05 to 0.15 keep PCK
(docs/results/policies.md)."""
L0_RATE = 100.0
"""Rate of L0's log a, in rates of the kernels: they travel from 2.5 to below -2.4 to close."""


def train(
    setting: Setting,
    key: str,
    recipe: Any,
    loss_fn: Any,
    variables: Tree,
    gates: Tree,
    seed: int = 0,
    steps: int | None = None,
    beta: float | None = None,
) -> dict[str, Tree]:
    """Trains one network into `<workdir>/<key>`, or takes it from there; returns its weights.

    `beta` travels in the batch, so that the program of a step does not depend on it.
    """
    steps = recipe.steps if steps is None else steps
    if steps == 0:
        return {"model": variables, "gates": gates}
    checkpoints = Checkpoints(setting.workdir / key / "checkpoints")
    done = checkpoints.latest == steps
    weights = checkpoints.weights()[1] if done else {}
    checkpoints.close()
    if done:
        return weights
    setting.check_computes(key)
    opt = optimizer(recipe, steps)

    def batches() -> Any:
        made = setting.experiment.train_batches(setting.train_clips, recipe, 1000 * seed + 1)
        return made if beta is None else _WithBeta(made, beta)

    phase = Phase(key, steps, loss_fn, opt, lambda: create_state(variables, gates, opt), batches)
    options = Options(log_every=50, checkpoint_every=100, resume=True)
    state = run(phase, setting.workdir, seed, options)
    return {"model": state.variables, "gates": state.weights["gates"]}


@dataclasses.dataclass
class _WithBeta:
    """Batches that carry beta, (B, T)."""

    batches: Any
    beta: float

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self.batches)
        return {**batch, "beta": np.full(batch["frames"].shape[:2], self.beta, np.float32)}

    def get_state(self) -> Tree:
        return self.batches.get_state()

    def set_state(self, state: Tree) -> None:
        self.batches.set_state(state)


def _gated_loss(net: SkipNet, table: macs.Table, task: Any) -> LossFn:
    """`gated_loss` with the beta of the batch: one compilation for all betas and seeds."""

    def loss_fn(weights: dict[str, Tree], stats: Tree, batch: Any, rng: jax.Array) -> Any:
        rest = dict(batch)
        beta: Any = rest.pop("beta")[0, 0]
        return gated_loss(net, table, task, beta)(weights, stats, rest, rng)

    return loss_fn


def dense_network(setting: Setting) -> Tree:
    """Variables of the dense network that everything starts from."""
    experiment, recipe = setting.experiment, setting.config.dense
    loss = dense_loss(experiment.forward("train"), experiment.task)
    return train(setting, "dense", recipe, loss, experiment.variables(), {})["model"]


def dense(setting: Setting) -> Row:
    """The row of the dense network."""

    def compute() -> Row:
        net = skip(setting.experiment.predict, [("*", None)])
        return measure(setting, net, {"model": dense_network(setting), "gates": {}})

    return setting.row("dense", compute)


def gated_network(
    setting: Setting,
    *,
    beta: float,
    block: int | None = None,
    length: int | None = None,
    seed: int = 0,
    wrap: Callable[[Fn], Fn] = lambda fn: fn,
    base: Tree = None,
    key: str = "skip",
    make: Callable[..., SkipNet] = skip,
    mode: str = "frozen",
    sees: str = "signed",
) -> tuple[SkipNet, Tree]:
    """A network with trained Gumbel gates: the skipped inference network and its weights.

    Args:
      setting: of the run.
      beta: weight of the gate loss.
      block: side of the gates' blocks.
      length: T in training; the batch is changed so that a step sees as many frames.
      seed: of the run.
      wrap: makes the compressed network of a dense one.
      base: variables to start from; those of the dense network by default.
      key: name of the kind of run.
      make: `skip`, or `cc_image`.
      mode: of batch norm in training, 'frozen' or 'train'.
      sees: what of the residual the gates see; of its 'magnitude' they start as Input-Norm gates.
    """
    experiment = setting.experiment
    recipe = setting.config.gated.copy_and_resolve_references()
    frames = recipe.batch * recipe.clip_length
    recipe.clip_length = length or recipe.clip_length
    recipe.batch = max(frames // recipe.clip_length, 1)
    gate_settings = dict(setting.config.skip.gate)
    block = block or gate_settings["block"]
    if sees == "magnitude":
        gate = GumbelGate(block, bias_init=-4.0, kernel_gain=4 / NORM, sees=sees)
    else:
        gate = GumbelGate(block, bias_init=gate_settings["bias_init"])
    base = dense_network(setting) if base is None else base
    net = make(wrap(experiment.forward(mode)), gate=gate)
    served = make(wrap(experiment.predict), gate=gate)
    frame = experiment.frame()
    params, _ = net.init(base, frame, key=jax.random.key(seed))
    name = f"{key}-b{block}-beta{beta:g}-T{recipe.clip_length}-seed{seed}"
    loss = _gated_loss(net, net.table(base, frame), experiment.task)
    return served, train(setting, name, recipe, loss, base, params["gates"], seed, beta=beta)


def skipped(setting: Setting, beta: float, reset_every: int | None = None, **options: Any) -> Row:
    """The row of a network with trained gates; `options` as for `gated_network`."""
    key, seed = options.get("key", "skip"), options.get("seed", 0)
    block = options.get("block") or setting.config.skip.gate["block"]
    length = options.get("length") or setting.config.gated.clip_length
    reset = setting.config.eval.reset_every if reset_every is None else reset_every
    name = f"{key}-b{block}-beta{beta:g}-T{length}-reset{reset}-seed{seed}"

    def compute() -> Row:
        net, params = gated_network(setting, beta=beta, **options)
        return measure(setting, net, params, reset) | {"beta": beta, "seed": seed}

    return setting.row(name, compute)


def cc(setting: Setting, beta: float, seed: int = 0) -> Row:
    """The row of CC-image.

    Its batch norm trains: zeros where nothing is computed change what each layer sees.
    """
    return skipped(setting, beta, key="cc", seed=seed, make=cc_image, mode="train")


def _subset(setting: Setting) -> dict[str, jax.Array]:
    """Frames of training clips that ranks are chosen on."""
    count = 2 if setting.quick else 32
    clips = setting.train_clips[:: max(len(setting.train_clips) // count, 1)][:count]
    batch = next(
        make_eval_iterator(
            clips,
            batch=len(clips),
            length=2,
            size=setting.experiment.size,
            margin=setting.config.data.margin,
            normalized=False,
        )
    )
    return {name: jnp.asarray(batch[name][:, 0]) for name in ("frames", "joints", "visible")}


def svd_network(setting: Setting, method: str, target: float) -> tuple[Callable[[Fn], Fn], Tree]:
    """An SVD-compressed network at `target` of the cost, fine-tuned: how to wrap, its variables."""
    experiment = setting.experiment
    dense_variables = dense_network(setting)
    kernels, total = compress.find_kernels(experiment.predict, dense_variables, experiment.frame())
    batch = _subset(setting)
    run_loss = jax.jit(
        lambda v: experiment.task.losses(experiment.predict(v, batch["frames"]), batch)["heatmap"]
    )
    candidates = compress.score_candidates(
        kernels,
        dense_variables,
        method,
        lambda v: -float(run_loss(v)),
        ratios=(0.3, 0.6) if setting.quick else compress.search.RATIOS,
        cache=setting.workdir / "ranks" / f"{method}.jsonl",
        label=f"heatmap loss on {len(batch['frames'])} training frames",
        progress=not setting.quick,
    )
    chosen = compress.select(candidates, kernels, total, target)
    made = compress.factorization(kernels, chosen.plan)
    loss = dense_loss(made.wrap(experiment.forward("train")), experiment.task)
    recipe = finetuning(setting)
    start = made.variables(dense_variables)
    # The quick form compiles one training less per method; L0's and the gates' are enough of it.
    steps = 0 if setting.quick else None
    weights = train(setting, f"svd-{method}-{target:g}", recipe, loss, start, {}, steps=steps)
    return made.wrap, weights["model"]


def finetuning(setting: Setting) -> Any:
    """The dense recipe with the gated phase's steps, rate and frames: every row gets as much."""
    recipe = setting.config.dense.copy_and_resolve_references()
    gated = setting.config.gated
    batch = gated.batch * gated.clip_length // recipe.clip_length
    recipe.update({"steps": gated.steps, "batch": batch, "lr": gated.lr, "warmup": 0})
    recipe.gate_lr_scale = gated.gate_lr_scale
    return recipe


def svd(setting: Setting, method: str, target: float) -> Row:
    """The row of an SVD-compressed network."""

    def compute() -> Row:
        wrap, variables = svd_network(setting, method, target)
        net = skip(wrap(setting.experiment.predict), [("*", None)])
        return measure(setting, net, {"model": variables, "gates": {}}) | {"target": target}

    return setting.row(f"svd-{method}-{target:g}", compute)


def svd_skipped(setting: Setting, target: float, beta: float, method: str = "spatial") -> Row:
    """The row of a network compressed by SVD, then gated."""
    key = f"svd{target:g}-skip" if method == "spatial" else f"svd-{method}{target:g}-skip"
    network = functools.partial(svd_network, setting, method, target)
    return _compressed_skipped(setting, key, beta, network) | {"target": target}


def l0_skipped(setting: Setting, weight: float, beta: float) -> Row:
    """The row of a network pruned by L0, then gated."""
    network = functools.partial(l0_network, setting, weight)
    return _compressed_skipped(setting, f"l0{weight:g}-skip", beta, network) | {"weight": weight}


def _compressed_skipped(
    setting: Setting, key: str, beta: float, network: Callable[[], tuple[Callable[[Fn], Fn], Tree]]
) -> Row:
    def compute() -> Row:
        wrap, variables = network()
        net, params = gated_network(setting, beta=beta, wrap=wrap, base=variables, key=key)
        return measure(setting, net, params) | {"beta": beta}

    return setting.row(f"{key}-beta{beta:g}", compute)


def l0_network(setting: Setting, weight: float) -> tuple[Callable[[Fn], Fn], Tree]:
    """An L0-pruned network: trained gates, channels removed, batch norm estimated anew."""
    experiment, variables = setting.experiment, dense_network(setting)
    frame = experiment.frame()
    groups = compress.find_groups(experiment.predict, variables, frame)
    kernels, total = compress.find_kernels(experiment.predict, variables, frame)
    forward = experiment.forward("train")
    loss = compress.l0_loss(forward, experiment.task, groups, kernels, total, weight)
    gates = compress.init_gates(groups)
    recipe = finetuning(setting)
    recipe.gate_lr_scale = L0_RATE
    weights = train(setting, f"l0-{weight:g}", recipe, loss, variables, gates)
    cut, smaller = compress.prune(groups, weights["gates"], weights["model"])
    frames = jnp.asarray(_test_images(setting, compress.batch_norm.IMAGES))
    return cut.wrap, compress.reestimate(cut.wrap(forward), smaller, frames)


def l0(setting: Setting, weight: float) -> Row:
    """The row of an L0-pruned network."""

    def compute() -> Row:
        wrap, variables = l0_network(setting, weight)
        net = skip(wrap(setting.experiment.predict), [("*", None)])
        return measure(setting, net, {"model": variables, "gates": {}}) | {"weight": weight}

    return setting.row(f"l0-{weight:g}", compute)


def held_out_batches(setting: Setting, reset_every: int) -> Any:
    return make_eval_iterator(
        setting.test_clips,
        batch=setting.config.eval.batch,
        length=reset_every or None,
        size=setting.experiment.size,
        margin=setting.config.data.margin,
        normalized=False,
    )


def _test_images(setting: Setting, count: int) -> np.ndarray:
    """Test frames without their labels, as the paper takes them for batch norm."""
    found: list[np.ndarray] = []
    for batch in held_out_batches(setting, 8):
        found.append(batch["frames"][:, 0])
        if sum(len(f) for f in found) >= count:
            break
    return np.concatenate(found)[:count]


def measure(
    setting: Setting, net: SkipNet, params: dict[str, Tree], reset_every: int | None = None
) -> Row:
    """PCK and cost on the test clips, a new reference frame every `reset_every` frames (0: never).

    Returns:
      `pck` and `strict` (PCK@.2 and @.1, means of 15 joints), `groups` (of PCK@.2), `gmac` per
      frame, `gate_gmac`, `dense_gmac`, `firing`.
    """
    experiment, streams = setting.experiment, setting.config.eval.batch
    reset = setting.config.eval.reset_every if reset_every is None else reset_every
    if net not in setting.streamers:
        # Equal networks differ in weights alone: betas, seeds, resets share one compilation.
        table = net.table(params["model"], experiment.frame(streams))
        streamer = make_streamer(net, table, lambda outputs: experiment.task.predict(outputs)[0])
        setting.streamers[net] = (table, streamer)
    table, streamer = setting.streamers[net]
    pck, strict, frames, spent = Pck(), Pck(STRICT), 0, 0.0
    stages = dict.fromkeys(table.stages(), 0.0)
    _, blank = net.init(params["model"], experiment.frame(streams), key=jax.random.key(0))
    for batch in held_out_batches(setting, reset):
        state = jax.tree.map(jnp.copy, blank)  # the streamer donates it
        _, reading = streamer(params, state, np.swapaxes(batch["frames"], 0, 1))
        joints = np.swapaxes(np.asarray(reading.outputs), 0, 1)
        valid = batch["valid"]
        counted = batch["visible"] & valid[..., None]
        for meter in (pck, strict):
            meter.update(joints, batch["joints"], batch["size"], counted, batch["scale"])
        frames += int(valid.sum())
        spent += float(np.asarray(reading.macs, np.float64)[valid.T].sum())
        for stage, share in reading.firing.items():
            stages[stage] += float(np.asarray(share, np.float64)[valid.T].sum())
    result = pck.result()
    return {
        "pck": 100 * result["mean15"],
        "strict": 100 * strict.result()["mean15"],
        "groups": {name: 100 * result[f"group/{name}"] for name in GROUPS},
        "gmac": spent / frames / macs.GIGA,
        "gate_gmac": table.gate_macs / macs.GIGA,
        "dense_gmac": table.macs / macs.GIGA,
        "firing": {stage: total / frames for stage, total in stages.items()},
        "frames": frames,
    }


def seeds_row(setting: Setting, compute: Callable[[int], Row]) -> Row:
    """Mean over the setting's seeds, with the spread (largest minus smallest) of PCK and cost.

    Raises:
      Missing: no seed at all is stored where `stored` is set.
    """
    rows = setting.each(functools.partial(compute, seed) for seed in setting.seeds)
    if not rows:
        return compute(setting.seeds[0])
    first = dict(rows[0])
    for name in ("pck", "strict", "gmac"):
        values = [row[name] for row in rows]
        first[name] = float(np.mean(values))
        if len(values) > 1:
            first[f"{name}_spread"] = float(np.ptp(values))
    first["groups"] = {g: float(np.mean([r["groups"][g] for r in rows])) for g in first["groups"]}
    first["firing"] = {s: float(np.mean([r["firing"][s] for r in rows])) for s in first["firing"]}
    return first | {"seeds": [row["seed"] for row in rows]}


def results_folder(setting: Setting) -> Path:
    """Where results go; made if need be."""
    setting.out.mkdir(parents=True, exist_ok=True)
    return setting.out

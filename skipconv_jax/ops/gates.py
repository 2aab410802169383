"""Gates: which blocks of output positions are worth computing.

A gate is a small frozen dataclass without state. It scores every output position from the residual
(`scores`), the scores are max-pooled over blocks of b x b positions, and `fire` turns pooled scores
into a mask. Pooling before the decision, and one random draw a block, keep every block uniform in
training and in inference (section 3.2.2, "Structured Sparsity").

Thresholds and gate kernels live in a parameter pytree, so that sweeping a threshold compiles
nothing.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from skipconv_jax import checks
from skipconv_jax.ops.geometry import Conv, widen

GateParams = dict[str, jax.Array]

_REDUCTIONS = ("mean", "sum")
_SIGHTS = ("signed", "magnitude")


@runtime_checkable
class Gate(Protocol):
    """What `skip_conv` asks of a gate; write a dataclass with these methods to add one."""

    @property
    def block(self) -> int:
        """Side b of the square blocks of output positions that fire together."""
        ...

    def init(self, key: jax.Array | None, conv: Conv) -> GateParams:
        """Initial parameters for one convolution."""
        ...

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Score of each output position, `(B, *out_spatial)`, from the signed residual."""
        ...

    def fire(self, params: GateParams, scores: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Mask in {0, 1} of the scores' shape and dtype; `rng` given means training."""
        ...

    def macs(self, conv: Conv) -> int:
        """Multiply-accumulates the gate itself spends on one frame."""
        ...


def _check_block(gate: Any) -> None:
    block = checks.positive_integer("block", gate.block, "use 1 for no structure.")
    object.__setattr__(gate, "block", block)


@dataclasses.dataclass(frozen=True)
class NormGate:
    """A gate that compares a norm with a threshold; a subclass has `scores` alone."""

    threshold: float = 1e-2
    block: int = 8
    reduction: str = "mean"

    def __post_init__(self) -> None:
        _check_block(self)
        if self.reduction not in _REDUCTIONS:
            raise ValueError(f"`reduction` (={self.reduction!r}) must be one of {_REDUCTIONS}.")
        if not (checks.is_finite(self.threshold) and self.threshold >= 0):
            raise ValueError(
                f"`threshold` (={self.threshold!r}) must be finite and at least 0; use 0 to "
                "compute every change, or AlwaysGate to compute everything."
            )
        # A gate is compared and hashed, which an array cannot be.
        object.__setattr__(self, "threshold", float(self.threshold))

    def init(self, key: jax.Array | None, conv: Conv) -> GateParams:
        """`{'threshold': ()}`, float32; `key` is not used."""
        del key, conv
        return {"threshold": jnp.asarray(self.threshold, jnp.float32)}

    def fire(self, params: GateParams, scores: jax.Array, rng: jax.Array | None) -> jax.Array:
        """1 where the norm exceeds eps: round(sigmoid(norm - eps)). Not differentiable.

        NaN fires, so that a broken frame shows in the output instead of being skipped.
        """
        del rng
        threshold = jnp.asarray(params["threshold"], scores.dtype)
        return lax.stop_gradient(~(scores <= threshold)).astype(scores.dtype)

    def macs(self, conv: Conv) -> int:
        """0: a norm gate adds and compares, it multiplies nothing."""
        del conv
        return 0


def support_norm(residual: jax.Array, conv: Conv, reduction: str) -> jax.Array:
    """l1 norm of the residual on each kernel support, `(B, *out_spatial)`.

    The sum runs over the window and over all input channels of every group, because a gate answers
    once per output position; the mean divides by the size of the window times Ci, zero padding
    included.
    """
    change = jnp.abs(widen(residual)).sum(axis=-1, keepdims=True)
    one_channel = dataclasses.replace(conv, in_channels=1, out_channels=1, groups=1)
    total = one_channel(change, jnp.ones((*conv.window, 1, 1), change.dtype))[..., 0]
    return total / (math.prod(conv.window) * conv.in_channels) if reduction == "mean" else total


@dataclasses.dataclass(frozen=True)
class InputNormGate(NormGate):
    r"""Input-Norm gate, Eq. 5: g = round(sigmoid(||r_t|| - eps)) on each kernel support.

    The paper writes l1 sums; its published threshold (1e-2, shared by all layers) only makes sense
    for means, so the mean over window and channels is the default.

    Attributes:
      threshold: eps, in units of the activations.
      block: side b of the blocks that fire together.
      reduction: 'mean' (default) or 'sum' (the equation's letter).
    """

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """||r_t|| on the support of every output position, `(B, *out_spatial)`."""
        del params, kernel
        return support_norm(residual, conv, self.reduction)


@dataclasses.dataclass(frozen=True)
class OutputNormGate(NormGate):
    r"""Output-Norm gate, Eq. 7: g = round(sigmoid(||w|| ||r_t|| - eps)).

    Young's inequality (Eq. 6) makes ||w|| ||r_t|| a bound on ||w * r_t|| without the convolution.

    Attributes:
      threshold: eps, in units of the output; published 15e-5 with means.
      block: side b of the blocks that fire together.
      reduction: 'mean' (default) of |w| and |r_t|, or 'sum' of both.
    """

    threshold: float = 15e-5

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """||w|| ||r_t|| on the support of every output position, `(B, *out_spatial)`."""
        del params
        weight = jnp.abs(widen(kernel))
        scale = weight.mean() if self.reduction == "mean" else weight.sum()
        norm = support_norm(residual, conv, self.reduction)
        return scale.astype(norm.dtype) * norm


@dataclasses.dataclass(frozen=True)
class ConvNormGate(NormGate):
    r"""Exact gate, Eq. 4: g = round(sigmoid(||w * r_t|| - eps)), over output channels.

    It needs the convolution it would save: an upper bound for studies, not for speed.

    Attributes:
      threshold: eps, in units of the output.
      block: side b of the blocks that fire together.
      reduction: 'mean' (default) or 'sum' over output channels.
    """

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """||w * r_t|| over channels of every output position, `(B, *out_spatial)`."""
        del params
        change = jnp.abs(conv(residual, kernel))
        return change.mean(axis=-1) if self.reduction == "mean" else change.sum(axis=-1)

    def macs(self, conv: Conv) -> int:
        """The whole convolution."""
        return conv.macs


@dataclasses.dataclass(frozen=True)
class AlwaysGate:
    """Fires everywhere: the network computes as the dense one does.

    Attributes:
      block: side b of the blocks the mask is reported in.
    """

    block: int = 8

    def __post_init__(self) -> None:
        _check_block(self)

    def init(self, key: jax.Array | None, conv: Conv) -> GateParams:
        """No parameters."""
        del key, conv
        return {}

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Ones, `(B, *out_spatial)`."""
        del params, kernel
        return jnp.ones((residual.shape[0], *conv.out_spatial), widen(residual).dtype)

    def fire(self, params: GateParams, scores: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Ones."""
        del params, rng
        return jnp.ones_like(scores)

    def macs(self, conv: Conv) -> int:
        """0."""
        del conv
        return 0


@dataclasses.dataclass(frozen=True)
class GumbelGate:
    r"""Trained gate, Eq. 8: g ~ Bernoulli(sigmoid(f(r_t; phi))), f a one-channel convolution.

    f has the window, stride, padding and dilation of its layer and sees all input channels of the
    residual. With a random key (training) each block draws logistic noise n, the difference
    of two Gumbel variables, and fires where logit + n >= 0, which has probability sigmoid(logit);
    the backward pass is that of sigmoid((logit + n) / temperature) (straight-through). Without a
    key (inference) it fires where logit >= 0.

    Attributes:
      block: side b of the blocks that fire together; logits are max-pooled before the draw.
      bias_init: initial logit of a zero residual; 1.65 starts at 84 % firing.
      temperature: of the relaxation in the backward pass.
      kernel_gain: factor on the initial kernel; 1 is the published Xavier. A residual of root mean
        square q starts with logits that spread by 1.4 kernel_gain q around the bias, whatever the
        layer. Where residuals are small, a larger gain lets gates tell motion from noise at once.
      sees: 'signed' residuals, as published, or their 'magnitude', f(|r_t|; phi). What arrives at a
        position and what leaves it differ in sign, and a signed gate of a 1x1 window can fire on
        one of them only. A magnitude gate's kernel starts at kernel_gain / (window x Ci)
        everywhere, which is the Input-Norm gate of eps = -bias_init / kernel_gain, and learns which
        channels count, and from where on.
    """

    block: int = 8
    bias_init: float = 1.65
    temperature: float = 2 / 3
    kernel_gain: float = 1.0
    sees: str = "signed"

    def __post_init__(self) -> None:
        _check_block(self)
        if not (checks.is_finite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"`temperature` (={self.temperature!r}) must be finite and positive; 2/3 is usual."
            )
        if not (checks.is_finite(self.kernel_gain) and self.kernel_gain > 0):
            raise ValueError(
                f"`kernel_gain` (={self.kernel_gain!r}) must be finite and positive; 1 is usual."
            )
        if self.sees not in _SIGHTS:
            raise ValueError(f"`sees` (={self.sees!r}) must be one of {_SIGHTS}.")
        if not checks.is_finite(self.bias_init):
            raise ValueError(
                f"`bias_init` (={self.bias_init!r}) must be a finite logit; 1.65 fires 84 %."
            )

    def init(self, key: jax.Array | None, conv: Conv) -> GateParams:
        """`{'kernel': (*window, Ci, 1), 'bias': (1,)}`, float32: Xavier-uniform and constant.

        The kernel of a magnitude gate is constant too.

        Raises:
          ValueError: no key.
        """
        if key is None:
            raise ValueError(
                "`key` (=None) must be a jax.random key to initialise a GumbelGate; pass "
                "`key=jax.random.key(0)`."
            )
        checks.key("key", key)
        taps = math.prod(conv.window)
        limit = self.kernel_gain * math.sqrt(6 / (taps * (conv.in_channels + 1)))
        shape = (*conv.window, conv.in_channels, 1)
        kernel = jax.random.uniform(key, shape, jnp.float32, -limit, limit)
        if self.sees == "magnitude":
            kernel = jnp.full(shape, self.kernel_gain / (taps * conv.in_channels), jnp.float32)
        return {"kernel": kernel, "bias": jnp.full((1,), self.bias_init, jnp.float32)}

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Logits f(r_t; phi), `(B, *out_spatial)`."""
        del kernel
        gate_conv = dataclasses.replace(conv, out_channels=1, groups=1)
        residual = widen(residual)
        if self.sees == "magnitude":
            residual = jnp.abs(residual)
        logits = gate_conv(residual, params["kernel"].astype(residual.dtype))[..., 0]
        return logits + params["bias"][0].astype(logits.dtype)

    def fire(self, params: GateParams, scores: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Mask from block logits; gradients flow to the logits only when sampling."""
        del params
        if rng is None:
            # NaN fires, as with norms.
            return lax.stop_gradient(~(scores < 0)).astype(scores.dtype)
        noisy = scores + jax.random.logistic(rng, scores.shape, scores.dtype)
        soft = jax.nn.sigmoid(noisy / self.temperature)
        hard = (noisy >= 0).astype(scores.dtype)
        return hard + (soft - lax.stop_gradient(soft))

    def macs(self, conv: Conv) -> int:
        """window x Ci for every output position."""
        return math.prod(conv.window) * conv.in_channels * math.prod(conv.out_spatial)

"""Draws docs/images/skipping.webp: a street, the blocks that are computed, the cost per frame.

    python docs/picture.py

The small HRNet of this package, weights random, over synthetic traffic; norm gates, policy
closed_loop. It shows where and how much is computed and how far the output is from the dense one;
accuracy is another page's subject (docs/results).
"""

from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from skipconv_jax import ClosedLoop, InputNormGate, macs, skip
from skipconv_jax.data.synthetic_traffic import TrafficScene, render_sequence
from skipconv_jax.models import hrnet_small, init_variables
from skipconv_jax.streaming.runner import firing_map
from skipconv_jax.viz.draw import overlay_firing

SIZE, FRAMES, EPS = (160, 288), 60, 0.01
OUT = Path(__file__).parent / "images" / "skipping.webp"


def frames() -> np.ndarray:
    """`(T, H, W, 3)` uint8."""
    scene = TrafficScene(height=SIZE[0], width=SIZE[1], frames=FRAMES, night=0.0, noise=0.5)
    return render_sequence(scene, seed=3, number=1).frames


def bars(costs: list[float], at: int, width: int, height: int = 56) -> np.ndarray:
    """The costs so far, one bar a frame, under a line at the dense cost."""
    panel = np.full((height, width, 3), 255, np.uint8)
    for t, cost in enumerate(costs[: at + 1]):
        x0, x1 = (round(width * k / FRAMES) for k in (t, t + 1))
        top = round((height - 14) * (1 - cost)) + 12
        cv2.rectangle(panel, (x0, top), (x1 - 2, height), (216, 67, 21), -1)
    cv2.line(panel, (0, 12), (width, 12), (120, 120, 120), 1)
    return panel


def label(panel: np.ndarray, text: str) -> np.ndarray:
    """The panel under a line of text."""
    head = np.full((20, panel.shape[1], 3), 255, np.uint8)
    cv2.putText(head, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([head, panel])


def main() -> None:
    video = frames()
    x = jnp.asarray(video, jnp.float32)[:, None] / 255
    model = hrnet_small()
    variables = init_variables(model, jax.random.key(0), x[0])
    dense = jax.jit(lambda v, x: model.apply(v, x, train=False))
    net = skip(
        lambda v, x: model.apply(v, x, train=False),
        gate=InputNormGate(EPS, block=4),
        policy=ClosedLoop(),
    )
    params, state = net.init(variables, x[0])
    table, step = net.table(variables, x[0]), jax.jit(net.apply, donate_argnums=1)
    costs, errors, maps = [], [], []
    for frame in x:
        y, state = step(params, state, frame)
        want = dense(variables, frame)
        costs.append(float(macs.spent_total(table, state)[0] / table.macs))
        errors.append(float(jnp.linalg.norm(y - want) / jnp.linalg.norm(want)))
        maps.append(np.asarray(firing_map(table, state, SIZE))[0])
    later = costs[1:]
    summary = (
        f"{1 / np.mean(later):.1f}x fewer multiplications, output {100 * np.mean(errors):.1f} % off"
    )
    pages = []
    for t in range(FRAMES):
        left = np.concatenate(
            [label(video[t], "dense: every block, every frame"), bars([1.0] * FRAMES, t, SIZE[1])]
        )
        shown = overlay_firing(video[t], maps[t])
        right = np.concatenate(
            [label(shown, "skipped: the blocks in red"), bars(costs, t, SIZE[1])]
        )
        gap = np.full((left.shape[0], 12, 3), 255, np.uint8)
        pages.append(Image.fromarray(np.concatenate([left, gap, right], 1)).resize((1176, 472)))
    pages[0].save(
        OUT, save_all=True, append_images=pages[1:], duration=80, loop=0, quality=55, method=4
    )
    print(f"{OUT}: {OUT.stat().st_size} bytes; {summary}; frames {np.round(later, 3)[:8]}")


if __name__ == "__main__":
    main()

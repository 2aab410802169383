"""Synthetic articulated-figure clips in JHMDB's folder layout: its twin where there is no data.

    python -m skipconv_jax.data.synthetic_pose --out data/synthetic --clips 120 --frames 24 --seed 0

Clip n depends on the settings, the seed and n alone: a set can be extended, and an interrupted run
continues where it stopped. A clip's folder of images appears last and whole.
"""

import argparse
import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from skipconv_jax.data.draw_figure import LIMBS, draw_figure, random_clothes
from skipconv_jax.data.figure import ACTIONS, random_motion
from skipconv_jax.data.folders import PARTIAL, write_note, write_text
from skipconv_jax.data.scenery import SensorNoise, random_background, random_distractors
from skipconv_jax.data.skeleton import to_matlab
from skipconv_jax.extras import required

with required():
    from rich.progress import track


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the clips look like.

    Attributes:
      height: of a frame in pixels.
      width: of a frame in pixels.
      frames: of a clip.
      limbs: `sided` (colours tell left from right, no flips in training) or `plain`.
      distractors: largest number of moving objects behind the figure.
      noise: largest standard deviation of sensor noise, of 255.
      pan: share of clips with a moving camera.
    """

    height: int = 240
    width: int = 320
    frames: int = 24
    limbs: str = "sided"
    distractors: int = 3
    noise: float = 3.0
    pan: float = 0.2

    def __post_init__(self) -> None:
        if self.height < 32 or self.width < 32:
            raise ValueError(
                f"`height` (={self.height}) and `width` (={self.width}) must be at least 32 pixels."
            )
        if self.frames < 1:
            raise ValueError(f"`frames` (={self.frames}) must be at least 1.")
        if self.limbs not in LIMBS:
            raise ValueError(f"`limbs` (={self.limbs!r}) must be one of {LIMBS}.")
        if self.distractors < 0 or self.noise < 0 or not 0 <= self.pan <= 1:
            raise ValueError(
                f"`distractors` (={self.distractors}) and `noise` (={self.noise}) must be at least "
                f"0, `pan` (={self.pan}) must lie in [0, 1]."
            )


@dataclasses.dataclass(frozen=True)
class SyntheticClip:
    """One rendered clip.

    Attributes:
      name: `<class>/<clip>`.
      frames: `(T, H, W, 3)` uint8, RGB.
      joints: `(T, 15, 2)` float32, 0-based pixels.
      masks: `(T, H, W)` uint8, 1 on the figure.
      height: of the figure in pixels.
      still: `(T,)` bool, where the figure does not move.
    """

    name: str
    frames: np.ndarray
    joints: np.ndarray
    masks: np.ndarray
    height: float
    still: np.ndarray


def clip_name(number: int) -> str:
    """`<class>/<clip>` of clip `number`."""
    action = ACTIONS[number % len(ACTIONS)]
    return f"{action}/synthetic_{action}_{number:05d}"


def render_clip(scene: Scene, seed: int, number: int) -> SyntheticClip:
    """Renders clip `number` of the set with this seed."""
    rng = np.random.default_rng([seed, number])
    name = clip_name(number)
    height, width, frames = scene.height, scene.width, scene.frames
    motion = random_motion(frames, name.partition("/")[0], rng)
    clothes = random_clothes(scene.limbs, rng)
    body = rng.uniform(0.5, 0.78) * height
    camera = _camera_path(frames, rng, width if rng.random() < scene.pan else 0)
    reach = int(np.ceil(np.abs(camera).max())) + 2
    background = random_background(height + 2 * reach, width + 2 * reach, rng)
    count = int(rng.integers(scene.distractors + 1))
    distractors = random_distractors(count, frames, (background.shape[0], background.shape[1]), rng)
    noise = SensorNoise(float(rng.uniform(0.3, 1)) * scene.noise, height, width, rng)
    flat = motion.joints[..., :2] * body - camera[:, None]
    start = _start(flat, height, width, body, rng)
    images = np.empty((frames, height, width, 3), np.uint8)
    masks = np.empty((frames, height, width), np.uint8)
    for t in range(frames):
        world = background.copy() if distractors else background
        for distractor in distractors:
            distractor.draw(world, t)
        shift = np.array([[1, 0, -reach - camera[t, 0]], [0, 1, -reach - camera[t, 1]]])
        image = cv2.warpAffine(world, shift, (width, height), flags=cv2.INTER_LINEAR)
        masks[t] = draw_figure(image, motion, t, start - camera[t], body, clothes)
        images[t] = noise(image)
    joints = (flat + start).astype(np.float32)
    return SyntheticClip(name, images, joints, masks, float(body), motion.bouts == 0)


def _camera_path(frames: int, rng: np.random.Generator, width: int) -> np.ndarray:
    """`(frames, 2)` pixels; zeros for `width` 0, else a slow sway."""
    t = np.arange(frames) / 24
    reach, speed, phase = rng.uniform([[0.02], [0.2], [0.0]], [[0.06], [0.6], [6.0]], (3, 2))
    reach[1] *= 0.3
    sway = np.sin(2 * np.pi * speed * t[:, None] + phase) - np.sin(phase)
    return reach * sway * width


def _start(
    flat: np.ndarray, height: int, width: int, body: float, rng: np.random.Generator
) -> np.ndarray:
    """Where the figure's ground point lies at first: the body stays in the picture if it can."""
    pad = 0.08 * body
    low = pad - flat.min(axis=(0, 1))
    high = np.array([width, height]) - 1 - pad - flat.max(axis=(0, 1))
    return np.where(high > low, rng.uniform(low, np.maximum(high, low)), (low + high) / 2)


def write_clip(out: Path, clip: SyntheticClip) -> None:
    """Writes a clip in JHMDB's layout; its images' folder appears last, complete."""
    partial = out / PARTIAL / clip.name
    shutil.rmtree(partial, ignore_errors=True)
    images = partial / "images"
    images.mkdir(parents=True)
    for t, frame in enumerate(clip.frames, 1):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (images / f"{t:05d}.png").write_bytes(data.tobytes())
    frames, height, width = clip.masks.shape
    scale = clip.height / height
    centred = clip.joints - np.array([width / 2, height / 2], np.float32)
    positions = {
        "pos_img": to_matlab(clip.joints).transpose(2, 1, 0).astype(np.float64),
        # JHMDB's own normalisation: by the frame's height and the puppet's scale.
        "pos_world": (centred / (height * scale)).transpose(2, 1, 0).astype(np.float64),
        "scale": np.full((1, frames), scale),
        "viewpoint": "synthetic",
    }
    scipy.io.savemat(partial / "joint_positions.mat", positions, do_compression=True)
    masks = {"part_mask": np.ascontiguousarray(clip.masks.transpose(1, 2, 0))}
    scipy.io.savemat(partial / "puppet_mask.mat", masks, do_compression=True)
    for kind in ("joint_positions", "puppet_mask"):
        target = out / kind / clip.name / f"{kind}.mat"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / f"{kind}.mat", target)
    target = out / "Rename_Images" / clip.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(images, target)
    shutil.rmtree(partial)


def generate(
    out: Path,
    clips: int,
    scene: Scene = Scene(),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Writes a set of clips with three splits; clips that are already there are kept.

    A quarter of the clips is test data in each split, another quarter in each.

    Args:
      out: folder to write to.
      clips: number of clips.
      scene: what they look like.
      seed: of everything.
      workers: threads; by default as many as there are cores.
      progress: show a progress bar.

    Returns:
      Names of the clips, `<class>/<clip>`.

    Raises:
      ValueError: `clips` is below 1, or `out` holds a set made with other settings.
    """
    if clips < 1:
        raise ValueError(f"`clips` (={clips}) must be at least 1.")
    out = Path(out)
    write_note(
        out,
        {
            "generator": "skipconv_jax.data.synthetic_pose",
            "mirrorable": scene.limbs == "plain",
            "seed": seed,
            "scene": dataclasses.asdict(scene),
        },
    )
    todo = [n for n in range(clips) if not (out / "Rename_Images" / clip_name(n)).is_dir()]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(lambda n: write_clip(out, render_clip(scene, seed, n)), todo)
        for _ in track(done, "Rendering clips", len(todo), disable=not progress):
            pass
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    _write_splits(out, clips)
    return [clip_name(n) for n in range(clips)]


def _write_splits(out: Path, clips: int) -> None:
    for split in (1, 2, 3):
        lines: dict[str, list[str]] = {action: [] for action in ACTIONS}
        for n in range(clips):
            action, _, clip = clip_name(n).partition("/")
            # Clips of one class are every len(ACTIONS)-th: count within the class.
            test = (n // len(ACTIONS)) % 4 == split
            lines[action].append(f"{clip}.avi {2 if test else 1}\n")
        for action, text in lines.items():
            write_text(out / "splits" / f"{action}_test_split{split}.txt", "".join(text))
            write_text(out / "sub_splits" / f"{action}_test_split_{split}.txt", "".join(text))


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m skipconv_jax.data.synthetic_pose",
                                     description=__doc__.splitlines()[0])  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="threads (default: all cores)")
    for field in dataclasses.fields(Scene):
        choices = LIMBS if field.name == "limbs" else None
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default,
                            choices=choices, help="default: %(default)s")  # fmt: skip
    args = parser.parse_args(argv)
    scene = Scene(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Scene)})
    try:
        names = generate(args.out, args.clips, scene, args.seed, args.workers, progress=True)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"{len(names)} clips of {scene.frames} frames in {args.out}")


if __name__ == "__main__":
    main()

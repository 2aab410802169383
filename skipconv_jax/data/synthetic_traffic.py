"""Synthetic traffic in UA-DETRAC's folder layout: its twin where there is no data.

    python -m skipconv_jax.data.synthetic_traffic --out data/traffic --sequences 10 --frames 100

A fixed camera above a road: cars, buses, vans and lorries appear, hide each other, stop at a light
and leave, by day and by night. Sequence n depends on the settings, the seed and n alone; its folder
of images appears last and whole, so that an interrupted run continues where it stopped.
"""

import argparse
import dataclasses
import os
import shutil
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from skipconv_jax.data.draw_traffic import draw_scene, draw_vehicle, far_region
from skipconv_jax.data.folders import PARTIAL, write_note, write_text
from skipconv_jax.data.labelled_videos import clip_boxes, covered
from skipconv_jax.data.scenery import SensorNoise
from skipconv_jax.data.traffic import FPS, Camera, Road
from skipconv_jax.data.ua_detrac_folder import VEHICLES
from skipconv_jax.extras import required

with required():
    from rich.progress import track


@dataclasses.dataclass(frozen=True)
class TrafficScene:
    """What the sequences look like.

    Attributes:
      height: of a frame in pixels.
      width: of a frame in pixels.
      frames: of a sequence.
      night: share of sequences at night.
      shake: largest shift of the camera in pixels, new in every frame; 0 for a fixed one.
      noise: standard deviation of sensor noise, of 255.
      density: vehicles that want to enter each lane per second.
      quality: of the JPEG files.
    """

    height: int = 540
    width: int = 960
    frames: int = 100
    night: float = 0.3
    shake: float = 0.0
    noise: float = 2.0
    density: float = 0.35
    quality: int = 92

    def __post_init__(self) -> None:
        if self.height < 64 or self.width < 64:
            raise ValueError(
                f"`height` (={self.height}) and `width` (={self.width}) must be at least 64 pixels."
            )
        if self.frames < 1:
            raise ValueError(f"`frames` (={self.frames}) must be at least 1.")
        if not 0 <= self.night <= 1:
            raise ValueError(f"`night` (={self.night}) must lie in [0, 1].")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"`quality` (={self.quality}) must lie in [1, 100].")
        for name in ("shake", "noise", "density"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 0.")


@dataclasses.dataclass(frozen=True)
class Target:
    """A vehicle in one frame; `box` is x1, y1, x2, y2, `hidden` and `truncated` are shares."""

    number: int
    kind: int
    box: np.ndarray
    speed: float
    hidden: float
    truncated: float


@dataclasses.dataclass(frozen=True)
class SyntheticSequence:
    """One sequence: frames `(T, H, W, 3)` uint8 RGB, targets of every frame, regions `(K, 4)`."""

    name: str
    part: str
    frames: np.ndarray
    targets: list[list[Target]]
    ignored: np.ndarray
    night: bool


def sequence_place(number: int) -> tuple[str, str]:
    """Part and name of sequence `number`: three of five train, two test."""
    part = "test" if number % 5 in (1, 3) else "train"
    return part, f"MVI_9{number:04d}"


def _camera(height: int, width: int, rng: np.random.Generator) -> Camera:
    return Camera(
        focal=rng.uniform(0.85, 1.1) * width,
        height=rng.uniform(6.5, 9.0),
        horizon=rng.uniform(0.05, 0.2) * height,
        centre=rng.uniform(0.42, 0.58) * width,
        x=rng.uniform(-6.0, 6.0),
    )


def render_sequence(scene: TrafficScene, seed: int, number: int) -> SyntheticSequence:
    """Renders sequence `number` of the set with this seed."""
    rng = np.random.default_rng([seed, number])
    part, name = sequence_place(number)
    height, width = scene.height, scene.width
    camera = _camera(height, width, rng)
    night = bool(rng.random() < scene.night)
    still = draw_scene(height, width, camera, night, rng)
    begin = float(rng.uniform(0.1, 0.6)) * scene.frames / FPS
    road = Road(rng, scene.density, (begin, begin + float(rng.uniform(2, 5))))
    for warm_up in range(14 * FPS):
        road.step(warm_up / FPS - 14)
    noise = SensorNoise((1.6 if night else 1) * scene.noise, height, width, rng)
    jitter = rng.uniform(-scene.shake, scene.shake, (scene.frames, 2))
    ignored = far_region(camera, height, width)
    frames = np.empty((scene.frames, height, width, 3), np.uint8)
    targets = []
    for t in range(scene.frames):
        image, found = _render(still, road, camera, night)
        shift = np.array([[1, 0, jitter[t, 0]], [0, 1, jitter[t, 1]]])
        if scene.shake:
            image = cv2.warpAffine(image, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        move = np.tile(jitter[t], 2)
        found = [dataclasses.replace(f, box=f.box + move) for f in found]
        targets.append([f for f in found if covered(f.box[None], ignored[None])[0] < 0.5])
        frames[t] = noise(image)
        road.step(t / FPS)
    return SyntheticSequence(name, part, frames, targets, ignored[None], night)


def _render(
    still: np.ndarray, road: Road, camera: Camera, night: bool
) -> tuple[np.ndarray, list[Target]]:
    image = still.copy()
    height, width = image.shape[:2]
    owner = np.zeros((height, width), np.int32)
    boxes, drawn = {}, {}
    visible = [v for v in road.vehicles if v.span[1] > 3]
    for vehicle in sorted(visible, key=lambda v: -v.span[0]):
        boxes[vehicle.number] = draw_vehicle(image, owner, vehicle, camera, night)
        drawn[vehicle.number] = int((owner == vehicle.number).sum())
    targets = []
    for vehicle in visible:
        box = boxes[vehicle.number]
        inside = clip_boxes(box, height, width)
        area, kept = _area(box), _area(inside)
        shown = int((owner == vehicle.number).sum())
        hidden = 1 - shown / max(drawn[vehicle.number], 1)
        # Too little of it to see: the people who label would leave it out as well.
        outside = kept < 0.2 * area and kept < 0.01 * height * width
        if outside or hidden > 0.85 or inside[3] - inside[1] < 0.018 * height:
            continue
        # Real boxes reach a little past the image's edges, not metres.
        edge = 0.05 * np.array([width, height])
        limit = np.concatenate([-edge, np.array([width, height]) + edge])
        box = np.concatenate([np.maximum(box[:2], limit[:2]), np.minimum(box[2:], limit[2:])])
        speed = vehicle.speed
        truncated = 1 - kept / area
        targets.append(Target(vehicle.number, vehicle.kind, box, speed, hidden, truncated))
    return image, targets


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def to_xml(sequence: SyntheticSequence) -> bytes:
    """The sequence's annotations as UA-DETRAC writes them."""
    root = ElementTree.Element("sequence", name=sequence.name)
    weather = "night" if sequence.night else "sunny"
    # `sence` is how the real files spell it.
    ElementTree.SubElement(root, "sequence_attribute", camera_state="stable", sence_weather=weather)
    regions = ElementTree.SubElement(root, "ignored_region")
    for region in sequence.ignored:
        ElementTree.SubElement(regions, "box", _sides(region))
    for number, targets in enumerate(sequence.targets, 1):
        if not targets:
            continue
        frame = ElementTree.SubElement(root, "frame", density=str(len(targets)), num=str(number))
        entries = ElementTree.SubElement(frame, "target_list")
        for target in targets:
            entry = ElementTree.SubElement(entries, "target", id=str(target.number))
            ElementTree.SubElement(entry, "box", _sides(target.box))
            ElementTree.SubElement(
                entry,
                "attribute",
                orientation="0",
                speed=f"{target.speed:.3f}",
                truncation_ratio=f"{target.truncated:.3f}",
                vehicle_type=VEHICLES[target.kind],
            )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _sides(box: np.ndarray) -> dict[str, str]:
    left, top, right, bottom = (round(float(v), 2) for v in box)
    return {
        "left": f"{left:g}",
        "top": f"{top:g}",
        "width": f"{right - left:.2f}",
        "height": f"{bottom - top:.2f}",
    }


def write_sequence(out: Path, sequence: SyntheticSequence, quality: int) -> None:
    """Writes a sequence in UA-DETRAC's layout; its images' folder appears last, complete."""
    partial = out / PARTIAL / sequence.name
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for t, frame in enumerate(sequence.frames, 1):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        (partial / f"img{t:05d}.jpg").write_bytes(data.tobytes())
    part = sequence.part.capitalize()
    xml = out / f"DETRAC-{part}-Annotations-XML" / f"{sequence.name}.xml"
    write_text(xml, to_xml(sequence).decode())
    target = out / f"Insight-MVT_Annotation_{part}" / sequence.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, target)


def generate(
    out: Path,
    sequences: int,
    scene: TrafficScene = TrafficScene(),
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Writes a set of sequences; those that are already there are kept.

    Args:
      out: folder to write to.
      sequences: their number; two of five are test data.
      scene: what they look like.
      seed: of everything.
      workers: threads; by default as many as there are cores.
      progress: show a progress bar.

    Returns:
      Names of the sequences.

    Raises:
      ValueError: `sequences` is below 1, or `out` holds a set made with other settings.
    """
    if sequences < 1:
        raise ValueError(f"`sequences` (={sequences}) must be at least 1.")
    out = Path(out)
    write_note(
        out,
        {
            "generator": "skipconv_jax.data.synthetic_traffic",
            "seed": seed,
            "scene": dataclasses.asdict(scene),
        },
    )

    def whole(number: int) -> bool:
        part, name = sequence_place(number)
        return (out / f"Insight-MVT_Annotation_{part.capitalize()}" / name).is_dir()

    def make(number: int) -> None:
        write_sequence(out, render_sequence(scene, seed, number), scene.quality)

    todo = [number for number in range(sequences) if not whole(number)]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for _ in track(
            pool.map(make, todo), "Rendering sequences", len(todo), disable=not progress
        ):
            pass
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return [sequence_place(number)[1] for number in range(sequences)]


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m skipconv_jax.data.synthetic_traffic", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="threads (default: all cores)")
    for field in dataclasses.fields(TrafficScene):
        kind = type(field.default)
        parser.add_argument(
            f"--{field.name}", type=kind, default=field.default, help="default: %(default)s"
        )
    args = parser.parse_args(argv)
    try:
        fields = dataclasses.fields(TrafficScene)
        scene = TrafficScene(**{f.name: getattr(args, f.name) for f in fields})
        names = generate(args.out, args.sequences, scene, args.seed, args.workers, progress=True)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    print(f"{len(names)} sequences of {scene.frames} frames in {args.out}")


if __name__ == "__main__":
    main()

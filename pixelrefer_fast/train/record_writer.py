"""Writes the released training format: JSON files of samples, and scenes of the synthetic world with their media.

Images are PNG, videos Matroska files in FFV1 (lossless, with the time of every frame, readable by FFmpeg, PyAV, OpenCV
and decord), masks compressed run lengths: everything is read back bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelrefer_fast.regions import Region
from pixelrefer_fast.world.marked import scene_region

if TYPE_CHECKING:
    from pixelrefer_fast.world.questions import Question
    from pixelrefer_fast.world.scene import Scene

CLOCK = 1000  # ticks a second of the videos' times
LAYOUTS = ("masks", "annotation")


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write samples as they are produced: one per line if the name ends in .jsonl, else as a JSON list.

    The file appears under its name when it is complete.

    Returns:
        The number of samples.

    Raises:
        ValueError: the file cannot be written.
    """
    path = Path(path)
    lines = path.suffix == ".jsonl"
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(("" if lines else ",\n" if count else "[\n") + json.dumps(record) + ("\n" if lines else ""))
                count += 1
            if not lines:
                file.write("\n]\n" if count else "[]\n")
        part.replace(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def record_json(
    media: str,
    video: bool,
    turns: Sequence[tuple[str, str]],
    objects: Sequence[Region],
    size: tuple[int, int],
    layout: str = "masks",
) -> dict[str, Any]:
    """Make the JSON value of one sample.

    Args:
        media: path of its image or video, relative to the media folder.
        video: whether the media is a video.
        turns: (question, answer) pairs; the questions have a `<region>` tag for each object, in order.
        objects: the marks of each object; in a video by frame.
        size: (height, width) of the media.
        layout: "masks", or "annotation" (VideoRefer's form, videos only).

    Raises:
        ValueError: `layout` is neither, or "annotation" for an image.
    """
    if layout not in LAYOUTS or (layout == "annotation" and not video):
        raise ValueError(f'layout: expected "masks", or "annotation" for a video, got {layout!r}')
    conversations = []
    for number, (question, answer) in enumerate(turns):
        scene_tag = "" if number else "<video>\n" if video else "<image>\n"
        conversations.append({"from": "human", "value": scene_tag + question})
        conversations.append({"from": "gpt", "value": answer})
    marks: list[Any] = []
    for region in objects:
        if not video:
            marks.append(_rle(region.mask(*size)))
            continue
        frames = {str(frame): _rle(region.mask(*size, frame)) for frame in region.frames or ()}
        marks.append({f: {"segmentation": rle} for f, rle in frames.items()} if layout == "annotation" else frames)
    return {
        "video" if video else "image": media,
        "conversations": conversations,
        layout: marks,
        "height": size[0],
        "width": size[1],
    }


def write_world(
    folder: str | Path,
    scenes: Iterable[tuple[Scene, Sequence[Question]]],
    kind: str = "lite",
    layout: str = "masks",
    name: str = "samples.json",
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write scenes with their questions, one sample per question, as data for `Records`.

    Args:
        folder: receives the file `name` and the folders `images` and `videos`; created if needed.
        scenes: scenes, each with its questions.
        kind: how objects in videos are marked: "lite" in all frames that show them, "full" in one.
        layout: how the marks of videos are written: "masks" or "annotation".
        name: name of the file of samples; .jsonl writes one per line.
        progress: called with the number of scenes written.

    Returns:
        The numbers of samples, images and videos.

    Raises:
        ValueError: they cannot be written.
    """
    folder = Path(folder)
    counts = {"images": 0, "videos": 0}

    def records() -> Iterator[dict[str, Any]]:
        for number, (scene, questions) in enumerate(scenes):
            media = f"videos/{number:06d}.mkv" if scene.video else f"images/{number:06d}.png"
            if scene.times is not None:
                write_video(folder / media, scene.frames, scene.times)
            else:
                write_image(folder / media, scene.frames[0])
            counts["videos" if scene.video else "images"] += 1
            regions: dict[int, Region] = {}
            for question in questions:
                for i in question.objects:
                    regions.setdefault(i, scene_region(scene, i, kind))
                own = [regions[i] for i in question.objects]
                turns = [(question.text, question.answer)]
                yield record_json(media, scene.video, turns, own, scene.size, layout if scene.video else "masks")
            if progress is not None:
                progress(number + 1)

    try:
        for sub in ("images", "videos"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        return {"samples": write_records(folder / name, records()), **counts}
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written: {error.strerror or error}") from error


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write one (H, W, 3) uint8 image as PNG."""
    from PIL import Image

    Image.fromarray(pixels).save(path)


def write_video(path: Path, frames: Sequence[np.ndarray], times: Sequence[float]) -> None:
    """Write frames (H, W, 3) uint8 without loss, each with its time in seconds, rounded to a millisecond."""
    import av

    tick = Fraction(1, CLOCK)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = tick
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = round(time * CLOCK), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _rle(mask: np.ndarray) -> dict[str, Any]:
    rle = Region.from_mask(mask).to_json()
    return {"size": rle["size"], "counts": rle["counts"]}

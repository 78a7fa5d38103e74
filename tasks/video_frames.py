"""Frames of a clip, spread evenly over it; a video decoder is an extra."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import TaskError
from tasks.libraries import library

EXTRA = "vision"


def require_decoder() -> None:
    """Make sure that there is a decoder.

    Raises:
        TaskError: the extra is not installed.
    """
    library("av", extra=EXTRA, what="clips")


def require_clips(paths: Iterable[Path]) -> None:
    """Make sure that clips can be decoded, by the first frame of each.

    Raises:
        TaskError: the extra is missing, or a clip cannot be decoded.
    """
    for path in dict.fromkeys(paths):
        with _opened(path) as container:
            _require_some(path, list(itertools.islice(container.decode(video=0), 1)))


def frame_times(num_frames: int, num_wanted: int) -> list[int]:
    """Indices of at most ``num_wanted`` frames of ``num_frames``, evenly spread, first and last among them."""
    if num_frames <= num_wanted:
        return list(range(num_frames))
    spread: list[int] = np.linspace(0, num_frames - 1, num_wanted).round().astype(int).tolist()
    return spread


def read_frames(path: Path, num_wanted: int) -> npt.NDArray[np.uint8]:
    """RGB frames ``[frames, height, width, 3]``, evenly spread over a clip.

    Raises:
        TaskError: the extra is missing, or the clip cannot be decoded.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        # Containers may lie about their number of frames, or not know it: then they are counted.
        num_frames = stream.frames or _count_frames(path)
        wanted = set(frame_times(num_frames, num_wanted))
        decoded = itertools.islice(container.decode(stream), max(wanted, default=-1) + 1)
        frames = [frame.to_ndarray(format="rgb24") for index, frame in enumerate(decoded) if index in wanted]
    _require_some(path, frames)
    return np.stack(frames)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A clip, to be decoded.

    Raises:
        TaskError: the extra is missing, or the clip cannot be opened or, within the context, decoded.
    """
    av = library("av", extra=EXTRA, what="clips")
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise TaskError(f"the clip {path} cannot be decoded ({error}): stage it again") from error


def _count_frames(path: Path) -> int:
    with _opened(path) as container:
        return sum(1 for _ in container.decode(video=0))


def _require_some(path: Path, frames: Sequence[object]) -> None:
    if not frames:
        raise TaskError(f"the clip {path} has no frame that can be decoded: stage it again")


def write_clip(path: Path, frames: npt.NDArray[np.uint8], frames_per_second: int = 2) -> None:
    """Write RGB frames ``[frames, height, width, 3]`` of even size as MPEG-4: small clips for trying things out."""
    av = library("av", extra=EXTRA, what="clips")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=frames_per_second)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)

"""Frames of a clip, spread evenly over it; a video decoder is an extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.errors import TaskError
from tasks.libraries import library

EXTRA = "vision"


def require_decoder() -> None:
    """Make sure that clips can be decoded.

    Raises:
        TaskError: the extra is not installed.
    """
    library("av", extra=EXTRA, what="clips")


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
    av = library("av", extra=EXTRA, what="clips")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # Containers may lie about their number of frames, or not know it: then they are counted.
            num_frames = stream.frames or sum(1 for _ in av.open(str(path)).decode(video=0))
            wanted = set(frame_times(num_frames, num_wanted))
            frames = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(stream))
                if index in wanted
            ]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise TaskError(f"the clip {path} cannot be decoded ({error}): stage it again") from error
    if not frames:
        raise TaskError(f"the clip {path} has no frame that can be decoded: stage it again")
    return np.stack(frames)


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

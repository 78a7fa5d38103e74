"""Clips made up here: a grey dot drifts over a quiet background, and in a few frames a coloured shape shows up.

Nearly all frames are redundant. What is asked is the colour of one of the shapes, so one frame holds the answer and the
others do not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.errors import TaskError
from tasks.task import Split
from tasks.video import ClipQuestion

SIDE = 16
"""Pixels of a frame, in height and width."""
COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 235), "yellow": (235, 215, 40)}
SHAPES = {
    "square": ("11111111", "11111111", "11111111", "11111111", "11111111", "11111111", "11111111", "11111111"),
    "frame": ("11111111", "11111111", "11000011", "11000011", "11000011", "11000011", "11111111", "11111111"),
    "cross": ("00011000", "00011000", "00011000", "11111111", "11111111", "00011000", "00011000", "00011000"),
    "bars": ("11001100", "11001100", "11001100", "11001100", "11001100", "11001100", "11001100", "11001100"),
    "stripes": ("11111111", "11111111", "00000000", "00000000", "11111111", "11111111", "00000000", "00000000"),
    "triangle": ("10000000", "11000000", "11100000", "11110000", "11111000", "11111100", "11111110", "11111111"),
}
"""Eight by eight cells of two pixels each."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A clip, what is asked about it, and which of its frames say anything."""

    frames: npt.NDArray[np.uint8]
    """``[frames, height, width, 3]``"""
    question: ClipQuestion
    is_redundant: npt.NDArray[np.bool_]
    """``[frames]``: shows no shape."""
    shown: tuple[tuple[str, str], ...]
    """Shape and colour of each frame that shows one, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeClips:
    """A task of made-up clips; every clip is a function of the settings, the split and the index."""

    num_frames: int = 48
    num_shapes: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_shapes <= min(len(SHAPES), self.num_frames):
            raise TaskError(
                f"num_shapes is {self.num_shapes}: ask for 1 to {min(len(SHAPES), self.num_frames)}, one for each "
                "frame at most"
            )

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"shapes-{self.num_frames}"

    def clip(self, split: Split, index: int) -> Clip:
        """The clip at ``index`` of a split."""
        stream = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
        return self.draw(np.random.default_rng([self.seed, stream, index]), index)

    def draw(self, rng: np.random.Generator, index: int = 0) -> Clip:
        """A clip from a random stream."""
        frames = _quiet(rng, self.num_frames)
        places = np.sort(rng.permutation(self.num_frames)[: self.num_shapes])
        shapes = [list(SHAPES)[i] for i in rng.permutation(len(SHAPES))[: self.num_shapes]]
        colours = [list(COLOURS)[i] for i in rng.integers(len(COLOURS), size=self.num_shapes)]
        for place, shape, colour in zip(places, shapes, colours, strict=True):
            frames[place][_mask(shape)] = COLOURS[colour]
        asked = int(rng.integers(self.num_shapes))
        question = ClipQuestion(
            task=self.name,
            index=index,
            video=Path(f"{self.name}-{index}"),
            question=f"Which colour does the {shapes[asked]} have?",
            choices=tuple(COLOURS),
            answer=list(COLOURS).index(colours[asked]),
        )
        is_redundant = np.ones(self.num_frames, bool)
        is_redundant[places] = False
        return Clip(frames, question, is_redundant, tuple(zip(shapes, colours, strict=True)))


def _quiet(rng: np.random.Generator, num_frames: int) -> npt.NDArray[np.uint8]:
    """A background that stays as it is, and a dot that drifts over it."""
    background = rng.integers(20, 60, size=(SIDE, SIDE, 3))
    frames = np.repeat(background[None], num_frames, axis=0).astype(np.uint8)
    places = (rng.integers(SIDE, size=2) + np.cumsum(rng.integers(-1, 2, size=(num_frames, 2)), axis=0)) % (SIDE - 1)
    for frame, (row, column) in zip(frames, places, strict=True):
        frame[row : row + 2, column : column + 2] = 150
    return frames


def _mask(shape: str) -> npt.NDArray[np.bool_]:
    cells = np.array([[cell == "1" for cell in row] for row in SHAPES[shape]])
    return cells.repeat(2, axis=0).repeat(2, axis=1)

"""Questions about clips with lettered choices: LongVideoBench and MLVU in their own files, and clips made up here.

LongVideoBench (arXiv 2407.15754) is a list of questions in ``lvb_val.json`` beside ``videos/`` and ``subtitles/``;
MLVU (arXiv 2406.04264) has a list per task, ``json/1_plotQA.json`` and so on, beside ``video/``. Both are gated on the
hub and licensed CC-BY-NC-SA-4.0: they are staged by hand, and checked here before anything starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.errors import TaskError

LETTERS = "ABCDEFGHIJ"

VideoSuite = Literal["longvideobench", "mlvu"]

HUB_IDS: dict[VideoSuite, str] = {"longvideobench": "longvideobench/LongVideoBench", "mlvu": "MLVU/MVLU"}
LICENCE = "CC-BY-NC-SA-4.0"

MLVU_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
"""Those with choices; 8_sub_scene and 9_summary are answered freely and need a judge."""


@dataclass(frozen=True, slots=True)
class Subtitle:
    """What is said in a clip, at a time."""

    second: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipQuestion:
    """One question about one clip."""

    task: str
    index: int
    video: Path
    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""
    subtitles: tuple[Subtitle, ...] = ()

    @property
    def letter(self) -> str:
        """Of the right choice."""
        return LETTERS[self.answer]


def prompt(question: ClipQuestion) -> str:
    """The question as LongVideoBench asks it, to follow the frames."""
    choices = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=False))
    said = "".join(f"{subtitle.text}\n" for subtitle in question.subtitles)
    return (
        f"{said}Question: {question.question}\n{choices}"
        "Answer with the option's letter from the given choices directly.\n"
    )


def is_right(question: ClipQuestion, completion: str) -> bool:
    """Whether the first letter that a completion gives for an answer is the right one."""
    match = re.search(rf"(?<![A-Za-z])([{LETTERS[: len(question.choices)]}])(?![A-Za-z])", completion)
    return match is not None and match[1] == question.letter


def clip_tasks(suite: VideoSuite) -> tuple[str, ...]:
    """Names of a suite's tasks."""
    return ("longvideobench",) if suite == "longvideobench" else tuple(f"mlvu-{task}" for task in MLVU_TASKS)


def read_suite(suite: VideoSuite, root: Path) -> dict[str, tuple[ClipQuestion, ...]]:
    """All questions of a suite that is staged in ``root``, by task; every clip must be there.

    Raises:
        TaskError: it is not staged, or not all of it; its licence and the way to it are told.
    """
    folder = root / suite
    if not folder.is_dir():
        raise TaskError(
            f"{suite} is not staged in {root}: it is gated ({LICENCE}), so ask for access at {HUB_IDS[suite]} on the "
            f"hub, accept its terms, and put its files into {folder} as the hub has them"
        )
    return _long_video_bench(folder) if suite == "longvideobench" else _mlvu(folder)


def _long_video_bench(folder: Path) -> dict[str, tuple[ClipQuestion, ...]]:
    questions: list[ClipQuestion] = []
    for row in _rows(folder / "lvb_val.json"):
        where = f"{folder / 'lvb_val.json'}, question {row.get('id')!r}"
        choices, answer = row.get("candidates"), row.get("correct_choice")
        if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise TaskError(f"{where}: no candidates with a correct_choice among them: stage the validation split")
        questions.append(
            ClipQuestion(
                task="longvideobench",
                index=len(questions),
                video=_clip(folder / "videos", row.get("video_path"), where),
                question=str(row.get("question")),
                choices=tuple(map(str, choices)),
                answer=answer,
                subtitles=_subtitles(folder / "subtitles", row.get("subtitle_path"), where),
            )
        )
    return {"longvideobench": tuple(questions)}


def _mlvu(folder: Path) -> dict[str, tuple[ClipQuestion, ...]]:
    found = {}
    for task in MLVU_TASKS:
        path = folder / "json" / f"{task}.json"
        questions: list[ClipQuestion] = []
        for row in _rows(path):
            where = f"{path}, question {len(questions)}"
            choices, answer = row.get("candidates"), row.get("answer")
            if not isinstance(choices, list) or answer not in choices:
                raise TaskError(f"{where}: the answer {answer!r} is none of its candidates: stage the file again")
            questions.append(
                ClipQuestion(
                    task=f"mlvu-{task}",
                    index=len(questions),
                    video=_clip(folder / "video" / task, row.get("video"), where),
                    question=str(row.get("question")),
                    choices=tuple(map(str, choices)),
                    answer=choices.index(answer),
                )
            )
        found[f"mlvu-{task}"] = tuple(questions)
    return found


def _rows(path: Path) -> Sequence[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TaskError(f"{path} is missing: put it there as the hub has it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TaskError(f"{path} cannot be read ({error}): stage it again") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path} is no list of questions: stage it again")
    return rows


def _clip(folder: Path, name: Any, where: str) -> Path:
    path = folder / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise TaskError(f"{where}: its clip {path} is missing: unpack all videos of the suite there")
    return path


def _subtitles(folder: Path, name: Any, where: str) -> tuple[Subtitle, ...]:
    """Both shapes that the suite has: ``{timestamp: [s, e], text}`` and ``{start: "h:m:s", end, line}``."""
    path = folder / str(name)
    if not isinstance(name, str) or not path.is_file():
        raise TaskError(f"{where}: its subtitles {path} are missing: unpack all of them there")
    subtitles = []
    for row in _rows(path):
        try:
            second = row["timestamp"][0] if "timestamp" in row else _seconds(row["start"])
            subtitles.append(Subtitle(float(second), str(row.get("text", row.get("line")))))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TaskError(f"{path} has subtitles without a time: stage it again") from error
    return tuple(subtitles)


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)

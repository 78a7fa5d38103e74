"""LongVideoBench's and MLVU's files in their own formats, with clips made up for the tests."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.video import MLVU_TASKS
from tasks.video_frames import write_clip
from tasks.video_shapes import ShapeClips


def write_long_video_bench(root: Path, num_questions: int = 3) -> Path:
    """As the hub has it: ``lvb_val.json``, ``videos/`` and ``subtitles/``."""
    folder = root / "longvideobench"
    (folder / "videos").mkdir(parents=True)
    (folder / "subtitles").mkdir()
    rows = []
    for index in range(num_questions):
        clip = ShapeClips(num_frames=8).clip("train", index)
        write_clip(folder / "videos" / f"v{index}.mp4", clip.frames)
        said = [
            [{"timestamp": [0.5, 1.0], "text": "a quiet room"}],
            [{"start": "00:00:01.500", "end": "00:00:02.000", "line": "a dot drifts"}],
        ][index % 2]
        (folder / "subtitles" / f"v{index}_en.json").write_text(json.dumps(said))
        rows.append(
            {
                "id": f"v{index}_0",
                "video_id": f"v{index}",
                "video_path": f"v{index}.mp4",
                "subtitle_path": f"v{index}_en.json",
                "question": clip.question.question,
                "candidates": list(clip.question.choices),
                "correct_choice": clip.question.answer,
                "duration": 4.0,
                "duration_group": 15,
                "starting_timestamp_for_subtitles": 0,
            }
        )
    (folder / "lvb_val.json").write_text(json.dumps(rows))
    return folder


def write_mlvu(root: Path, num_questions: int = 2) -> Path:
    """As the hub has it: ``json/1_plotQA.json`` and so on beside ``video/1_plotQA/``."""
    folder = root / "mlvu"
    (folder / "json").mkdir(parents=True)
    for task in MLVU_TASKS:
        (folder / "video" / task).mkdir(parents=True)
        rows = []
        for index in range(num_questions):
            clip = ShapeClips(num_frames=8).clip("train", index)
            write_clip(folder / "video" / task / f"{index}.mp4", clip.frames)
            rows.append(
                {
                    "video": f"{index}.mp4",
                    "duration": 4.0,
                    "question": clip.question.question,
                    "candidates": list(clip.question.choices),
                    "answer": clip.question.choices[clip.question.answer],
                    "question_type": task.partition("_")[2],
                }
            )
        (folder / "json" / f"{task}.json").write_text(json.dumps(rows))
    return folder

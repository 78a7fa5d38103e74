"""Questions about clips: both suites in their own files, the letter that counts, frames, what is wrong with them."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("av")

from tasks.errors import TaskError
from tasks.video import MLVU_TASKS, Subtitle, clip_tasks, is_right, prompt, read_suite
from tasks.video_frames import frame_times, read_frames, require_clips, require_decoder, write_clip
from tasks.video_shapes import COLOURS, SHAPES, ShapeClips
from tests.tasks.clips import write_long_video_bench, write_mlvu


@pytest.fixture
def staged(tmp_path):
    write_long_video_bench(tmp_path)
    write_mlvu(tmp_path)
    return tmp_path


def test_long_video_bench_is_read_with_both_kinds_of_subtitles(staged):
    questions = read_suite("longvideobench", staged)["longvideobench"]
    assert [question.index for question in questions] == [0, 1, 2]
    assert questions[0].subtitles == (Subtitle(0.5, "a quiet room"),)
    assert questions[1].subtitles == (Subtitle(1.5, "a dot drifts"),)
    assert questions[0].video.is_file()
    assert questions[0].choices == tuple(COLOURS)


def test_mlvu_has_a_task_for_each_of_its_files_with_choices(staged):
    found = read_suite("mlvu", staged)
    assert tuple(found) == clip_tasks("mlvu") == tuple(f"mlvu-{task}" for task in MLVU_TASKS)
    assert all(len(questions) == 2 for questions in found.values())
    question = found["mlvu-2_needle"][0]
    assert question.choices[question.answer] in COLOURS


def test_a_question_is_asked_as_the_suite_asks_it(staged):
    question = read_suite("longvideobench", staged)["longvideobench"][0]
    assert prompt(question) == (
        f"a quiet room\nQuestion: {question.question}\nA. red\nB. green\nC. blue\nD. yellow\n"
        "Answer with the option's letter from the given choices directly.\n"
    )


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("B", True),
        ("(B) because", True),
        ("The answer is B.", True),
        ("A or B", False),
        ("Because", False),
        ("", False),
    ],
)
def test_the_first_letter_alone_counts(completion, right):
    clip = next(
        clip for clip in (ShapeClips().clip("train", index) for index in range(50)) if clip.question.letter == "B"
    )
    assert is_right(clip.question, completion) is right


def test_frames_are_spread_evenly_over_a_clip(tmp_path):
    frames = np.zeros((9, 16, 16, 3), np.uint8) + np.arange(0, 225, 25, dtype=np.uint8)[:, None, None, None]
    write_clip(tmp_path / "grey.mp4", frames)
    read = read_frames(tmp_path / "grey.mp4", 5)
    assert read.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(read.mean(axis=(1, 2, 3)), [0, 50, 100, 150, 200], atol=6)
    assert len(read_frames(tmp_path / "grey.mp4", 100)) == 9


def test_the_first_and_the_last_frame_are_among_those_chosen():
    assert frame_times(100, 4) == [0, 33, 66, 99]
    assert frame_times(3, 8) == [0, 1, 2]


def test_made_up_clips_are_functions_of_split_and_index():
    task = ShapeClips(num_frames=20, num_shapes=3)
    first, again, other = task.clip("train", 0), task.clip("train", 0), task.clip("heldout", 0)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    assert first.is_redundant.sum() == 17
    assert task.name == "shapes-20"


def test_a_shape_stands_out_of_redundant_frames_which_hardly_change():
    clip = ShapeClips(num_frames=30).clip("train", 1)
    change = np.abs(clip.frames[1:].astype(int) - clip.frames[:-1]).mean(axis=(1, 2, 3))
    quiet = clip.is_redundant[1:] & clip.is_redundant[:-1]
    assert change[quiet].max() < 0.25 * change[~quiet].min()


def test_every_answer_is_as_likely_and_every_shape_is_asked_about():
    questions = [ShapeClips(num_frames=8).clip("train", index).question for index in range(300)]
    assert min(np.bincount([question.answer for question in questions])) > 50
    assert {word for question in questions for word in question.question.split() if word in SHAPES} == set(SHAPES)


def test_more_shapes_than_frames_are_refused():
    with pytest.raises(TaskError, match="num_shapes is 4: ask for 1 to 3"):
        ShapeClips(num_frames=3)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_gated_suite_that_is_not_staged_says_how_to_get_it(tmp_path):
    with pytest.raises(TaskError, match=r"gated \(CC-BY-NC-SA-4.0\), so ask for access at longvideobench/"):
        read_suite("longvideobench", tmp_path)


def test_a_missing_file_of_a_suite_is_named(staged):
    (staged / "mlvu" / "json" / "4_count.json").unlink()
    with pytest.raises(TaskError, match=r"4_count.json is missing"):
        read_suite("mlvu", staged)


def test_a_missing_clip_is_named_before_anything_starts(staged):
    (staged / "longvideobench" / "videos" / "v1.mp4").unlink()
    with pytest.raises(TaskError, match=r"question 'v1_0': its clip .*v1.mp4 is missing"):
        read_suite("longvideobench", staged)


def test_a_clip_outside_of_the_suite_is_refused(staged):
    path = staged / "longvideobench" / "lvb_val.json"
    rows = json.loads(path.read_text())
    rows[0]["video_path"] = "../../secret.mp4"
    (staged / "secret.mp4").write_bytes(b"")
    path.write_text(json.dumps(rows))
    with pytest.raises(TaskError, match="is missing"):
        read_suite("longvideobench", staged)


def test_the_test_split_which_has_no_answers_is_refused(staged):
    path = staged / "longvideobench" / "lvb_val.json"
    rows = json.loads(path.read_text())
    del rows[2]["correct_choice"]
    path.write_text(json.dumps(rows))
    with pytest.raises(TaskError, match="stage the validation split"):
        read_suite("longvideobench", staged)


def test_an_answer_that_is_no_candidate_is_named(staged):
    path = staged / "mlvu" / "json" / "3_ego.json"
    rows = json.loads(path.read_text())
    rows[1]["answer"] = "purple"
    path.write_text(json.dumps(rows))
    with pytest.raises(TaskError, match=r"3_ego.json, question 1: the answer 'purple' is none of its candidates"):
        read_suite("mlvu", staged)


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00\x00\x00\x18ftypmp42half"])
def test_a_clip_that_cannot_be_decoded_is_named(content, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"broken.mp4 (cannot be decoded|has no frame)"):
        read_frames(path, 4)
    write_clip(tmp_path / "whole.mp4", ShapeClips(num_frames=4, num_shapes=1).clip("train", 0).frames)
    require_clips([tmp_path / "whole.mp4"])
    with pytest.raises(TaskError, match=r"broken.mp4 (cannot be decoded|has no frame)"):
        require_clips([tmp_path / "whole.mp4", path])


def test_a_missing_decoder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(TaskError, match=r"clips: a package is needed .*pip install 'namm-orchestrator\[vision\]'"):
        require_decoder()

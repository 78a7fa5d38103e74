"""Staging from a hub on loopback, by huggingface_hub itself, and from files that somebody has put there."""

import json
import shutil

import pytest

from tasks.errors import TaskError
from tasks.fetching import fetch
from tasks.registry import SuiteTaskSettings, build_task
from tasks.sources import MANIFEST_NAME, read_manifest
from tasks.suites import SUITES
from tests.tasks import staging
from tests.tasks.hub import COMMIT, Hub, serving

CHOUBUN, LONGBENCH = SUITES["choubun"], SUITES["longbench"]


def whole_rows(suite, task):
    """As many rows as the hub has; the first ones are those of ``staging``."""
    rows = staging.longbench_rows(task)
    number = suite.num_rows[task]
    return [{**rows[i % len(rows)], "_id": f"{task}-{i}"} for i in range(number)]


@pytest.fixture(scope="module")
def choubun_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choubun")
    for task in CHOUBUN.tasks:
        staging.write_parquet(folder / CHOUBUN.file_name(task), whole_rows(CHOUBUN, task))
    return folder


@pytest.fixture(scope="module")
def longbench_members():
    members = {f"data/{task}.jsonl": whole_rows(LONGBENCH, task) for task in LONGBENCH.tasks}
    part = SUITES["longbench_e"]
    return members | {f"data/{task}_e.jsonl": whole_rows(part, task) for task in part.tasks}


@pytest.fixture
def hub(choubun_files):
    with serving(Hub.of(str(CHOUBUN.hub_id), choubun_files)) as hub:
        yield hub


def test_a_suite_is_downloaded_checked_and_staged(hub, tmp_path):
    told = []
    manifest, is_new = fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint, say=told.append)
    assert is_new
    assert (manifest.origin, manifest.id, manifest.revision) == ("hub", "SakanaAI/ChouBun", COMMIT)
    assert {name: facts.rows for name, facts in manifest.files.items()} == {
        CHOUBUN.file_name(task): rows for task, rows in CHOUBUN.num_rows.items()
    }
    assert read_manifest(tmp_path / "choubun") == manifest
    assert sum("file 2 of 4" in line and "MB)" in line for line in told) == 1
    assert sum(line.startswith("checking ") for line in told) == 4
    task = build_task(SuiteTaskSettings(kind="choubun", task="wiki_qa", data=str(tmp_path)))
    assert task.num_examples("train") + task.num_examples("heldout") == 200


def test_what_is_staged_is_not_downloaded_again(hub, tmp_path):
    manifest, _ = fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    hub.asked.clear()
    assert fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint) == (manifest, False)
    assert fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint, revision=COMMIT) == (manifest, False)
    assert hub.asked == []


def test_a_download_that_broke_off_goes_on_where_it_was(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # of 10 MB, longer than our files
    name = CHOUBUN.file_name("wiki_qa")
    hub.break_after[name] = 1000
    manifest, _ = fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    assert manifest.files[name].rows == 200
    assert [line for line in hub.asked if name in line and line.endswith("bytes=1000-")]


def test_an_interrupted_command_goes_on_with_the_files_that_are_missing(hub, tmp_path):
    class InterruptedError(Exception):
        """The user has pressed Ctrl-C."""

    def interrupt(line):
        if "file 3 of 4" in line:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint, say=interrupt)
    assert not (tmp_path / "choubun" / MANIFEST_NAME).exists()
    hub.asked.clear()
    _, is_new = fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    assert is_new
    assert sum(line.startswith("GET /datasets/") for line in hub.asked) == 2


def test_another_revision_than_the_one_staged_is_fetched(hub, tmp_path):
    fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    with pytest.raises(TaskError, match=r"SakanaAI/ChouBun cannot be downloaded"):
        fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint, revision="0" * 40)


def test_a_suite_in_an_archive_is_counted_member_by_member(tmp_path, longbench_members):
    (tmp_path / "hub").mkdir()
    staging.write_archive(tmp_path / "hub/data.zip", longbench_members)
    with serving(Hub.of(str(LONGBENCH.hub_id), tmp_path / "hub")) as hub:
        manifest, _ = fetch(LONGBENCH, tmp_path, endpoint=hub.endpoint)
    assert {name: facts.rows for name, facts in manifest.files.items()} == {"data.zip": 4750 + 3668}
    assert build_task(SuiteTaskSettings(kind="longbench_e", task="lcc", data=str(tmp_path))).num_examples("train") > 0


# --- files that are there already -------------------------------------------------------------------------------------


def test_files_that_somebody_put_there_are_taken_offline(choubun_files, tmp_path):
    shutil.copytree(choubun_files, tmp_path / "choubun")
    manifest, is_new = fetch(CHOUBUN, tmp_path, offline=True, endpoint="http://127.0.0.1:1")
    assert (is_new, manifest.revision) == (True, "unknown")


def test_an_archive_may_lie_unpacked(tmp_path, longbench_members):
    for name, rows in longbench_members.items():
        staging.write_lines(tmp_path / "longbench" / name, rows)
    manifest, _ = fetch(LONGBENCH, tmp_path, offline=True)
    assert len(manifest.files) == 34
    assert build_task(SuiteTaskSettings(kind="longbench", task="trec", data=str(tmp_path))).num_examples("train") > 0


def test_a_file_that_lacks_is_named_offline(choubun_files, tmp_path):
    shutil.copytree(choubun_files, tmp_path / "choubun")
    (tmp_path / "choubun" / CHOUBUN.file_name("edinet_qa")).unlink()
    with pytest.raises(TaskError, match=r"edinet_qa/test-00000-of-00001.parquet is not there: put all files of Sakana"):
        fetch(CHOUBUN, tmp_path, offline=True)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_hub_that_does_not_answer_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(TaskError, match=r"SakanaAI/ChouBun cannot be downloaded .*`--offline` takes files"):
        fetch(CHOUBUN, tmp_path, endpoint="http://127.0.0.1:1")
    assert not (tmp_path / "choubun" / MANIFEST_NAME).exists()


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub, tmp_path):
    hub.corrupt.add(CHOUBUN.file_name("wiki_qa"))
    with pytest.raises(TaskError, match=r"wiki_qa/test-00000-of-00001.parquet is not the file that the hub has"):
        fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    assert not (tmp_path / "choubun" / MANIFEST_NAME).exists()


def test_rows_too_few_are_refused(choubun_files, tmp_path):
    shutil.copytree(choubun_files, tmp_path / "choubun")
    staging.write_parquet(tmp_path / "choubun" / CHOUBUN.file_name("wiki_qa"), whole_rows(CHOUBUN, "wiki_qa")[:-1])
    with pytest.raises(TaskError, match="has 199 rows, but ChouBun has 200 of wiki_qa"):
        fetch(CHOUBUN, tmp_path, offline=True)
    assert read_manifest(tmp_path / "choubun") is None


def test_a_wrong_column_is_refused(choubun_files, tmp_path):
    shutil.copytree(choubun_files, tmp_path / "choubun")
    rows = [
        {("question" if key == "input" else key): value for key, value in row.items()}
        for row in whole_rows(CHOUBUN, "wiki_qa")
    ]
    staging.write_parquet(tmp_path / "choubun" / CHOUBUN.file_name("wiki_qa"), rows)
    with pytest.raises(
        TaskError, match=r"has no column 'input'; ChouBun has input, context, .* this file has question"
    ):
        fetch(CHOUBUN, tmp_path, offline=True)


def test_a_staged_file_that_changed_is_found(hub, tmp_path):
    fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)
    path = tmp_path / "choubun" / CHOUBUN.file_name("wiki_qa")
    data = path.read_bytes()
    path.write_bytes(data[:-5] + b"xxxxx")
    with pytest.raises(
        TaskError, match=r"is not what was staged \(its sha256 differs\): delete it, then fetch it again"
    ):
        fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)


def test_made_up_files_are_not_mixed_with_those_of_the_hub(hub, tmp_path):
    staging.stage(tmp_path, "choubun")
    with pytest.raises(TaskError, match="holds generated files: choose another folder"):
        fetch(CHOUBUN, tmp_path, endpoint=hub.endpoint)


def test_a_suite_that_the_hub_has_not(tmp_path):
    with pytest.raises(TaskError, match="the hub has no files of RULER: `namm tasks generate ruler"):
        fetch(SUITES["ruler"], tmp_path)


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "choubun").mkdir()
    (tmp_path / "choubun" / MANIFEST_NAME).write_text(json.dumps({"origin": "elsewhere"}))
    with pytest.raises(TaskError, match=r"SOURCE.json cannot be read .*delete it and stage the suite again"):
        fetch(CHOUBUN, tmp_path, offline=True)

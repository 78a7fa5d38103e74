"""A run goes on with the examples that it began with, or not at all; workers have the driver's."""

import json

import pytest

from orchestrator.cli import main
from orchestrator.data_record import NAME, describe, keep, recorded, require_same_data
from orchestrator.errors import RunFolderError
from orchestrator.storage import folder_at
from tasks.errors import TaskError
from tasks.identity import data_digest
from tasks.registry import GeneratedTaskSettings, SuiteTaskSettings
from tests.orchestrator.conftest import TINY
from tests.tasks import staging
from workers.evaluator import EvaluatorRecipe
from workers.settings import ModelSettings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def restage(root, word):
    """The same file name with other rows in it."""
    rows = staging.infinitebench_rows("passkey")
    for row in rows:
        row["input"] += word
    staging.write_lines(root / "infinitebench/passkey.jsonl", rows)
    staging.write_source(root, staging.SUITES["infinitebench"])


def passkey(root):
    return SuiteTaskSettings(kind="infinitebench", task="passkey", data=str(root))


def test_a_digest_names_rows_and_settings_but_not_the_place(tmp_path):
    for name in ("one", "two", "other"):
        staging.stage(tmp_path / name, "infinitebench")
    restage(tmp_path / "other", " again")
    one, two, other = (data_digest(passkey(tmp_path / name)) for name in ("one", "two", "other"))
    assert one == two != other
    published = SuiteTaskSettings(kind="infinitebench", task="passkey", data=str(tmp_path / "one"), profile="paper")
    assert data_digest(published) != one
    assert data_digest(GeneratedTaskSettings(kind="facts_prose")) != data_digest(
        GeneratedTaskSettings(kind="facts_code")
    )


def test_what_joins_later_is_added_and_what_was_there_stays(tmp_path):
    folder = folder_at(tmp_path)
    prose, code = (describe([GeneratedTaskSettings(kind=kind)]) for kind in ("facts_prose", "facts_code"))
    keep(folder, prose)
    keep(folder, {**code, "facts_prose-256": {"digest": "other", "source": "other"}})
    assert recorded(folder) == {**prose, **code}
    require_same_data(folder, prose)
    with pytest.raises(RunFolderError, match=r"asked task facts_code-256 from made by .* but there is elsewhere now"):
        require_same_data(folder, {"facts_code-256": {"digest": "0", "source": "elsewhere"}})


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / NAME).write_text("[]")
    with pytest.raises(RunFolderError, match=r"data.json cannot be read"):
        recorded(folder_at(tmp_path))


def test_a_run_whose_suite_was_staged_anew_is_not_gone_on_with(tmp_path, capsys):
    staging.stage(tmp_path / "tasks", "infinitebench")
    task = f"tasks=[{{kind: infinitebench, task: passkey, data: '{tmp_path}/tasks'}}]"
    run = ["evolve", "small", *TINY, task, "fitness.score=graded", "--run", str(tmp_path / "run"), "--quiet"]
    main(run)  # the small Llama is no help here: what counts is that the run has begun
    capsys.readouterr()
    (source,) = json.loads((tmp_path / "run" / NAME).read_text()).values()
    assert f"{tmp_path}/tasks/infinitebench/passkey.jsonl (generated, sha256 " in source["source"]
    restage(tmp_path / "tasks", " again")
    assert main(run) == 2
    told = capsys.readouterr().err
    assert "asked task infinitebench-passkey from" in told
    assert "stage the former files again, or start a new run folder" in told


def test_a_worker_with_other_files_than_the_driver_is_not_built(tmp_path):
    staging.stage(tmp_path, "infinitebench")
    settings = passkey(tmp_path)
    recipe = EvaluatorRecipe(
        model=ModelSettings(path_or_id="small-llama"),
        tasks=(settings,),
        digests={settings.name: data_digest(settings)},
    )
    assert recipe.build().tasks[settings.name].num_examples("train") > 0
    restage(tmp_path, " again")
    with pytest.raises(
        TaskError, match=r"this machine has other examples than the driver, .*stage the same files every"
    ):
        recipe.build()

"""``namm status``: where a run stands at this moment, from its folder alone."""

import json
import shutil

import pytest

from orchestrator.cli import main
from orchestrator.history import read_journal
from tests.orchestrator.disk import journal_files, last_attempt
from tests.orchestrator.test_cli_inspect import change_opening, young_run  # noqa: F401 - a fixture
from workers.unit import FULL_CACHE_PASS


def told(capsys, folder, *options):
    """The JSON document about a run."""
    assert main(["status", str(folder), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def put_units(folder, generation, count, *, memory_name="namm", split="train"):
    """Files with the names of scored units: a status does not open them."""
    (folder / "units").mkdir(exist_ok=True)
    for number in range(count):
        unit = f"{memory_name}_facts_prose-256_{split}_e{number:06d}-{number:06d}x1_c0000-0000"
        (folder / "units" / f"g{generation:06d}_{unit}.parquet").touch()


def close(folder):
    """What a driver writes when it ends in good order."""
    with last_attempt(folder).open("a") as journal:
        journal.write(json.dumps({"kind": "closed", "at_ms": 0}) + "\n")


def changed_setting(folder, section, **values):
    """Let the driver have opened the run with other settings of a section."""
    config = read_journal(folder).attempts[-1].config
    change_opening(folder, config={**config, section: {**config[section], **values}})


@pytest.fixture
def alive(young_run):  # noqa: F811
    """A run in its second generation."""
    whole = last_attempt(young_run).read_text()
    last_attempt(young_run).write_text(whole[: whole.rindex("\n") + 1])
    return young_run


def test_a_run_at_work_tells_how_far_it_is(alive, capsys):
    put_units(alive, 1, 1)
    put_units(alive, 0, 2)  # of another generation
    document = told(capsys, alive)
    assert (document["state"], document["part"]) == ("at work", "generation")
    assert (document["generations_done"], document["generations"]) == (1, 2)
    assert (document["units_done"], document["units_total"]) == (1, 2)
    assert (document["workers"], document["deaths"], document["retries"]) == (1, 0, 0)
    (record,) = read_journal(alive).generations
    assert document["units_per_second"] == record.metrics["cluster/units_per_second"]
    assert document["seconds_left"] == pytest.approx(sum(record.seconds.values()) / 2)


def test_people_read_it_on_a_few_lines(alive, capsys):
    assert main(["status", str(alive)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 6
    for part in (
        "1 of 2; the last one ended",
        "generation 2: 0 of 2 units",
        "is at work",
        "0 lost and 0 units sent again",
    ):
        assert part in out


def test_the_pass_before_the_first_generation_is_told(alive, capsys):
    opening = last_attempt(alive).read_text().splitlines(keepends=True)[0]
    last_attempt(alive).write_text(opening)
    put_units(alive, FULL_CACHE_PASS, 1, memory_name="full")
    document = told(capsys, alive)
    assert (document["part"], document["units_done"], document["units_total"]) == ("full cache", 1, 4)
    assert document["workers"] is document["seconds_left"] is None
    (alive / "tables" / "units").mkdir(parents=True)
    (alive / "tables" / "units" / "generation=-00001.parquet").touch()
    assert told(capsys, alive)["part"] == "generation"


def test_a_finished_run_says_so(finished_run, capsys):
    document = told(capsys, finished_run.folder)
    assert (document["state"], document["part"], document["driver"]) == ("finished", "done", None)
    assert document["seconds_left"] == 0


@pytest.mark.parametrize(
    ("section", "values"),
    [("search", {"generations": 2}), ("evaluation", {"lengths": [320]})],
    ids=["extended", "evaluated anew"],
)
def test_the_summary_of_a_former_end_finishes_no_run(section, values, finished_run, tmp_path, capsys):
    """The evaluation of the new end was interrupted, and the summary of the former one lies there."""
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    former = json.loads((folder / "summary.json").read_text())
    if section == "search":
        (folder / "summary.json").write_text(json.dumps(former | {"generations": 1}))
    changed_setting(folder, section, **values)
    put_units(folder, 2, 3, split="heldout")
    document = told(capsys, folder)
    assert (document["state"], document["part"], document["units_done"]) == ("stopped", "evaluation", 3)


def test_a_summary_of_before_does_not_tell_how_it_was_evaluated(finished_run, tmp_path, capsys):
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    former = json.loads((folder / "summary.json").read_text())
    del former["evaluation"]
    (folder / "summary.json").write_text(json.dumps(former))
    assert told(capsys, folder)["state"] == "finished"
    for content in ("", "[]"):
        (folder / "summary.json").write_text(content)
        assert told(capsys, folder)["state"] == "stopped"


def test_units_of_an_interrupted_evaluation_are_not_those_of_the_generation_that_follows(alive, capsys):
    """The run was to end with its first generation, and goes on."""
    put_units(alive, 1, 2, split="heldout")
    put_units(alive, 1, 2, memory_name="one-head-l0h1")
    assert told(capsys, alive)["units_done"] == 0
    put_units(alive, 1, 1)
    assert told(capsys, alive)["units_done"] == 1


def test_only_the_tasks_of_the_stage_are_counted(alive, capsys):
    stages = [{"from_generation": 1, "adds": ["facts_code-256"]}]
    change_opening(alive, config=read_journal(alive).attempts[-1].config | {"stages": stages})
    put_units(alive, FULL_CACHE_PASS, 1, memory_name="full")
    document = told(capsys, alive)
    assert (document["part"], document["units_done"], document["units_total"]) == ("full cache", 1, 2)  # one joins
    for path in (alive / "units").iterdir():
        path.unlink()
    assert told(capsys, alive)["units_total"] == 2
    stages[0]["from_generation"] = 2
    change_opening(alive, config=read_journal(alive).attempts[-1].config | {"stages": stages})
    assert told(capsys, alive)["units_total"] == 1


@pytest.mark.parametrize(
    ("change", "state"),
    [({"pid": 2**22 + 1}, "dead"), ({"host": "elsewhere"}, "out of sight"), (None, "stopped")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_became_of_the_driver_is_told(change, state, alive, capsys):
    if change is None:
        close(alive)
    else:
        change_opening(alive, **change)
    assert told(capsys, alive)["state"] == state
    assert main(["status", str(alive)]) == 0
    assert ("resume" in capsys.readouterr().out) == (state != "out of sight"), "who may be alive is not to be resumed"


def test_losses_of_all_drivers_are_added_up(alive, capsys):
    """Each driver counts from 0; what a replaced one still wrote does not count."""
    first = last_attempt(alive)
    opening, generation = (json.loads(line) for line in first.read_text().splitlines())
    generation["metrics"] |= {"cluster/deaths": 2.0, "cluster/retries": 3.0}
    void = {**generation, "generation": 1, "metrics": {**generation["metrics"], "cluster/deaths": 100.0}}
    first.write_text("".join(json.dumps(line) + "\n" for line in (opening, generation, void)))
    again = {**generation, "generation": 1, "metrics": {**generation["metrics"], "cluster/deaths": 1.0}}
    second = first.with_name("attempt-000002-0123456789ab.jsonl")
    opened = {**opening, "attempt": 2, "after": first.name, "inherits": 1}
    second.write_text("".join(json.dumps(line) + "\n" for line in (opened, again)))
    document = told(capsys, alive)
    assert (document["deaths"], document["retries"]) == (2 + 1, 3 + 3)
    assert (document["part"], document["state"]) == ("evaluation", "at work")


def test_nothing_is_written(alive, capsys):
    put_units(alive, 1, 1)
    before = sorted(alive.rglob("*")), journal_files(alive)
    told(capsys, alive)
    assert (sorted(alive.rglob("*")), journal_files(alive)) == before


def test_a_folder_without_a_run_is_told_in_one_line(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"namm: error: {tmp_path} is no run folder: it holds no journal; name the folder that a run made\n"
    )

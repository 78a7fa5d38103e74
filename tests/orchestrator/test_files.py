"""What is found out about a file before there is anything to write into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InputError, StorageError
from orchestrator.files import require_output
from tests.orchestrator.test_store import unprivileged


def test_an_output_that_can_be_written_is_not_touched(tmp_path: Path) -> None:
    require_output(tmp_path / "new" / "table.csv", (".csv", ".md"))
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its name must end in one of \.csv, \.md"):
        require_output(tmp_path / "table.xls", (".csv", ".md"))
    with pytest.raises(InputError, match=r"is a folder: name a file"):
        require_output(tmp_path, (".csv",))


@pytest.mark.parametrize("name", ["table.csv", "new/table.csv"])
@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only folder", "closed folder"])
def test_an_output_without_permission_is_found_out_before_there_are_results(
    mode: int, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(mode)
    with unprivileged(), pytest.raises(StorageError, match=r"^cannot write .*allow this user to write there"):
        require_output(folder / name, (".csv",))
    folder.chmod(0o755)


def test_a_read_only_folder_is_found_out_before_there_are_results() -> None:
    with unprivileged(), pytest.raises(StorageError, match=r"^cannot write /: / may not be written"):
        require_output(Path("/table.csv"), (".csv",))


def test_a_name_that_is_too_long_once_it_is_written_is_found_out_before(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"File name too long; .*choose a shorter name"):
        require_output(tmp_path / f"{'a' * 240}.csv", (".csv",))

"""SQL over a run's tables, by DuckDB: the tables of ``schemas.py``, what the journal knows, and ``views.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import schemas
from orchestrator.analysis.journal_tables import JOURNAL_TABLES
from orchestrator.analysis.views import VIEWS
from orchestrator.errors import InputError, RunFolderError
from orchestrator.history import read_journal
from orchestrator.storage import Folder, LocalFolder, Place, folder_at
from orchestrator.store import TABLES, Store, damaged, without_covered

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXTRA = "pip install 'namm-orchestrator[analysis]'"


@dataclass(frozen=True, slots=True)
class Rows:
    """What a query found."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def records(self) -> list[dict[str, Any]]:
        """A dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Database:
    """The tables of a run, to be asked in SQL."""

    def __init__(self, connection: DuckDBPyConnection) -> None:
        self._connection = connection

    def ask(self, sql: str) -> Rows:
        """What a query finds.

        Raises:
            InputError: DuckDB does not understand it, or it asks for other files.
        """
        import duckdb

        try:
            cursor = self._connection.execute(sql) if sql.strip() else None
            if cursor is None:  # also of nothing but comments
                raise InputError("the query cannot be answered: it is empty; without one, tables and views are listed")
            columns = tuple(str(column[0]) for column in cursor.description or ())
            return Rows(columns, tuple(cursor.fetchall()))
        except duckdb.Error as error:
            raise InputError(f"the query cannot be answered: {error}") from error

    def names(self) -> list[str]:
        """Tables and views, in alphabetical order."""
        return sorted(str(row[0]) for row in self.ask("SELECT table_name FROM information_schema.tables").rows)


def is_installed() -> bool:
    """Whether DuckDB is there, which comes with an extra."""
    from importlib.util import find_spec

    return find_spec("duckdb") is not None


@contextmanager
def database(place: Place, threads: int | None = None) -> Iterator[Database]:
    """Open the tables of a run folder; nothing is written, and files outside it cannot be read.

    Args:
        place: path or address of the run folder; the tables of an object store are copied first.
        threads: most that DuckDB may use; None for one per core.

    Raises:
        InputError: DuckDB is not installed.
        RunFolderError: there is no run, or its tables were written by another version.
    """
    if not is_installed():
        raise InputError(f"queries need DuckDB, which is not installed: {EXTRA}")
    import duckdb

    folder = folder_at(place)
    contents = read_journal(folder)
    with ExitStack() as stack:
        local = stack.enter_context(_tables_on_disk(folder))
        connection = stack.enter_context(duckdb.connect(config={} if threads is None else {"threads": threads}))
        for name in schemas.PARTITIONED:
            files = without_covered(str(path) for path in (local / name).glob("*.parquet"))
            _add_files(connection, name, [Path(file) for file in files])
        for path in sorted(local.glob("*.parquet")):
            if path.stem not in JOURNAL_TABLES:
                _add_files(connection, path.stem, [path])
        for name, make in JOURNAL_TABLES.items():  # the journal may be ahead of what was written of it
            _add_table(connection, name, make(contents))
        for name in schemas.ONCE.keys() - JOURNAL_TABLES.keys():
            if not (local / f"{name}.parquet").exists():
                _add_table(connection, name, schemas.empty(name))
        _add_views(connection)
        connection.execute(f"SET allowed_directories = ['{_quoted(local)}']")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield Database(connection)


@contextmanager
def database_of(tables: Mapping[str, pa.Table]) -> Iterator[Database]:
    """The same for tables at hand, by name; all others are empty."""
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        for name in (*schemas.PARTITIONED, *schemas.ONCE):
            _add_table(connection, name, tables.get(name, schemas.empty(name)))
        _add_views(connection)
        yield Database(connection)


def _add_views(connection: DuckDBPyConnection) -> None:
    for name, view in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {view.sql}")


@contextmanager
def _tables_on_disk(folder: Folder) -> Iterator[Path]:
    import tempfile

    if isinstance(folder, LocalFolder):
        yield folder.path.resolve() / TABLES
        return
    store = folder.within(TABLES)
    with tempfile.TemporaryDirectory() as copied:
        for under in ("", *schemas.PARTITIONED):
            (Path(copied) / under).mkdir(exist_ok=True)
            for name in store.names(under):
                (Path(copied) / name).write_bytes(store.read(name))
        yield Path(copied)


def _add_files(connection: DuckDBPyConnection, name: str, files: Sequence[Path]) -> None:
    if not files:
        _add_table(connection, name, schemas.empty(name))
        return
    for file in files:
        try:
            version = schemas.version_of(pq.read_schema(file).metadata)
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(str(file), error) from error
        if version != str(schemas.SCHEMA_VERSION):
            raise RunFolderError(
                f"{file} has schema version {version}, this program reads {schemas.SCHEMA_VERSION}: "
                "query it with the program that wrote it"
            )
    listed = ", ".join(f"'{_quoted(file)}'" for file in files)
    view = name.replace('"', '""')  # a file of somebody else's may bear any name
    connection.execute(f'CREATE VIEW "{view}" AS SELECT * FROM read_parquet([{listed}])')


def _add_table(connection: DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("arriving", table)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM arriving")
    connection.unregister("arriving")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def write_journal_tables(store: Store, place: Place) -> None:
    """What only the journal knows as tables too, for readers of Parquet who do not come through here."""
    contents = read_journal(place)
    for name, make in JOURNAL_TABLES.items():
        store.write_table(name, make(contents))

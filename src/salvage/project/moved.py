"""MLflow's store in a project that was moved: it names artifacts by the folder that the project had; this mends it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from salvage.errors import SalvageError

RUNS = "mlruns"  # where MLflow puts artifacts, beside its database
NAMED = (  # where the database names them
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("trace_tags", "value"),
)


def follow(uri: str, folder: Path) -> None:
    """Have the store of a project name the artifacts that lie in the project's folder by where they are now.

    A store elsewhere, and artifacts that were kept elsewhere from the start, are left alone.

    Parameters
    ----------
    uri : str
        Of the store.
    folder : Path
        The project's, absolute.

    Raises
    ------
    SalvageError
        Where artifacts are neither here nor where they were, naming the path that is gone.
    """
    file = Path(folder, uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or file.parent != folder or not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=30)) as database:
            _mend(database, folder)
    except sqlite3.Error:  # no store of MLflow's, or one in use: MLflow says what is wrong with it
        return


def _mend(database: sqlite3.Connection, folder: Path) -> None:
    known = database.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
    for number, location in known:
        here, there = folder / RUNS / str(number), Path(str(location))
        if there == here or there.parts[-2:] != here.parts[-2:]:
            continue
        old = there.parents[1]
        if not here.exists() and old.exists():
            continue
        if (
            not here.exists()
            and database.execute("SELECT 1 FROM logged_models WHERE experiment_id = ?", (number,)).fetchone()
        ):
            raise SalvageError(
                f"the models of earlier runs were kept in {there}, which is gone; bring it back, "
                f"or put its {RUNS} folder here ({folder / RUNS})"
            )
        _rename(database, str(there), str(here))
    database.commit()


def _rename(database: sqlite3.Connection, old: str, new: str) -> None:
    """Put one folder's name in place of another's wherever a path begins with it."""
    for table, column in NAMED:
        columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        if column in columns:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (names of ours)
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )

"""What people are told when MLflow's store is at fault, without a store; the real faults are in test_tracking.py."""

from __future__ import annotations

import pytest

from salvage.project.store_faults import LONGEST, sentence

DOWN = (
    "API request to http://u:secret@h:5/api failed with exception HTTPConnectionPool(host='h', port=5): Max retries "
    "exceeded with url: /api (Caused by NewConnectionError('Failed to establish: [Errno 111] Connection refused'))"
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (DOWN, "the tracking server at http://h:5 cannot be reached (Connection refused); start it, or correct"),
        (
            "Cannot set a deleted experiment 'x' as the active experiment. You can restore the experiment.",
            "MLflow at http://h:5: Cannot set a deleted experiment 'x' as the active experiment; restore it (mlflow",
        ),
        ("Detected out-of-date database schema (found a, but expected b). Take a backup", "mlflow db upgrade http://h"),
        ("The filesystem tracking backend (e.g., './mlruns') is in maintenance mode. X", "mlflow migrate-filestore"),
        ("API request to endpoint /a failed with error code 401 != 200. Response body", "MLFLOW_TRACKING_USERNAME"),
        ("PERMISSION_DENIED: Permission denied", "MLFLOW_TRACKING_TOKEN"),
        ("Run with id=abc not found", "correct or unset MLFLOW_RUN_ID"),
        ("No Experiment with id=7 exists", "correct or unset MLFLOW_EXPERIMENT_ID"),
        ("(sqlite3.OperationalError) database is locked\n[SQL: x]", "another program is writing it"),
        ("(sqlite3.DatabaseError) file is not a database\n[SQL: x]", "file is not a database; that file is no store"),
        ("something that nobody knows. And more", "something that nobody knows; correct MLFLOW_TRACKING_URI"),
        ("", "MLflow at http://h:5: ValueError; correct MLFLOW_TRACKING_URI"),
    ],
)
def test_case_27_each_fault_has_mlflows_first_sentence_and_what_to_do(said: str, told: str) -> None:
    found = sentence(ValueError(said), "http://u:secret@h:5")
    assert told in found
    assert "secret" not in found and "\n" not in found and len(found) < LONGEST + 200


def test_case_27_a_missing_driver_is_named() -> None:
    told = sentence(ModuleNotFoundError("No module named 'psycopg2'"), "postgresql://u:secret@h/x")
    assert told.startswith("MLflow at postgresql://h/x: No module named 'psycopg2'; install the driver")

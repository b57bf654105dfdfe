"""A model served by MLflow over HTTP, in a process that sees neither this repository nor its folder."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served(store: Path, name: str) -> Iterator[int]:
    """Serve a registered model's champion from a store's folder, and yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    command = f"models serve -m models:/{name}@champion -h 127.0.0.1 -p {number} --env-manager local".split()
    alone = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    log = store / f"{name}.log"
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=store,
            env=alone,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        _wait(number, server, log)
        yield number
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def environment() -> dict[str, str]:
    """Return the environment of a command that runs in a store's folder."""
    source = str(Path(__file__).parents[1] / "src")
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    return {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "PYTHONPATH": source, "PATH": path}


def _wait(number: int, server: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", number, timeout=5)
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def post(number: int, body: str, kind: str = "application/json") -> tuple[int, Any]:
    """Send a request and return the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", number, timeout=20)
    connection.request("POST", "/invocations", body, {"Content-Type": kind})
    response = connection.getresponse()
    return response.status, json.loads(response.read())

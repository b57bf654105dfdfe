"""Pictures of a run's last screen, of the report and of a trace, for docs/: `make screenshots`, with Chromium."""

from __future__ import annotations

import argparse
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
from browser import Page

EXPERIMENT = "salvage"
START = 120.0  # seconds that MLflow's server may take to come up
DRAWER = "[...document.querySelectorAll('[role=dialog]')].find(e => e.innerText.includes('Spans'))"


def report(page: Page, folder: Path, out: Path) -> None:
    """Take the top of the report: on a desktop in light colours, on a phone in dark ones."""
    if not (folder / "index.html").exists():
        raise SystemExit(f"{folder / 'index.html'} is missing; run salvage report first")
    with browser.served(folder) as address:
        for name, width, height, dark in (("report", 1280, 1250, False), ("report-phone", 360, 1100, True)):
            page.look(width, height, dark=dark)
            page.open(f"{address}/index.html")
            page.screenshot(out / f"{name}.png")


def story(page: Page, out: Path) -> None:
    """Take the last screen of the run in this folder, as terminals of 80 and of 120 columns show it."""
    from rich.console import Console

    from salvage.pipeline import story as telling
    from salvage.project import tracking

    tracking.connect()
    figures = telling.saved()
    for width in (80, 120):
        console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
        console.print(telling.story(figures, min(width, telling.WIDEST)), width=min(width, telling.WIDEST))
        with tempfile.TemporaryDirectory() as folder:
            console.save_svg(str(Path(folder) / "story.svg"), title="make run")
            with browser.served(Path(folder)) as address:
                page.look(14 * width, 1000)
                page.open(f"{address}/story.svg")
                page.screenshot(out / f"story-{width}.png")


def trace(page: Page, store: str, out: Path) -> None:
    """Take the newest trace of a failure (else the newest), with the span in which both models scored it."""
    experiment, trace_id, scored = newest(store)
    with mlflow_server(store) as address:
        page.look(1440, 640)
        page.open(f"{address}/#/experiments/{experiment}/traces?selectedEvaluationId={trace_id}")
        page.wait(DRAWER)
        page.wait(f"{DRAWER}.innerText.includes('Inputs / Outputs')")
        if scored:
            page.ask(f"[...{DRAWER}.querySelectorAll('*')].find(e => e.innerText === 'score').click()")
            page.wait(f"{DRAWER}.innerText.includes('concentration')")
        page.settle()
        page.screenshot(out / "trace.png", DRAWER)


def newest(store: str) -> tuple[str, str, bool]:
    """Return the experiment's id, the id of the trace to show, and whether a failure was scored in it."""
    import mlflow

    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    traces = client.search_traces(locations=[experiment.experiment_id], max_results=50) if experiment else []
    if not experiment or not traces:
        raise SystemExit(f"{store} has no traces of the experiment {EXPERIMENT}; run salvage rescue first")
    failed = [one for one in traces if any(span.name == "score" for span in one.data.spans)]
    return experiment.experiment_id, (failed or traces)[0].info.trace_id, bool(failed)


@contextmanager
def mlflow_server(store: str) -> Iterator[str]:
    """Start MLflow's pages on a free port of this machine, yield their address, and end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1"]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it starts others, and all of them have to end
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()  # noqa: S310 (this machine)
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("MLflow's server did not start; try mlflow ui by hand") from None
            time.sleep(0.5)


def main() -> None:
    """Take them all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="*", help="story, report, trace; all where none is named")
    parser.add_argument("--store", default=os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    parser.add_argument("--report", type=Path, default=Path("report"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    program = browser.find()
    if program is None:
        sys.exit(f"screenshots: none of {', '.join(browser.NAMES)} is on PATH; install Chromium")
    with browser.browser(program) as page:
        if not given.pictures or "story" in given.pictures:
            story(page, given.out)
        if not given.pictures or "report" in given.pictures:
            report(page, given.report, given.out)
        if not given.pictures or "trace" in given.pictures:
            trace(page, given.store, given.out)


if __name__ == "__main__":
    main()

"""Times the served router: `make serve` in one shell, `python benchmarks/serve.py [URL]` in another.

Prints p50 and p95 of one-row requests over one kept-alive connection, and the time of one request of 10,000 rows.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

ONE_ROW = 500
MANY = 10_000


def request(connection: http.client.HTTPConnection, rows: list[dict[str, Any]]) -> float:
    """Send the rows and return the seconds until the answer is read."""
    body = json.dumps({"dataframe_records": rows})
    start = time.perf_counter()
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
        raise SystemExit(f"HTTP {response.status}: {answer.decode()}")
    return seconds


def main(url: str = "http://127.0.0.1:5001") -> None:
    """Measure, after a few requests to warm up."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "127.0.0.1", where.port)
    names = ("spread", "concentration", "logit_dispersion")
    drawn = np.random.default_rng(0).normal(size=(MANY, len(names)))
    rows = [dict(zip(names, values, strict=True)) for values in drawn.tolist()]
    for row in rows[:20]:
        request(connection, [row])
    single = 1000 * np.array([request(connection, [row]) for row in rows[:ONE_ROW]])
    print(
        f"one row: p50 {np.percentile(single, 50):.2f} ms, p95 {np.percentile(single, 95):.2f} ms ({ONE_ROW} requests)"
    )
    many = min(request(connection, rows) for _ in range(5))
    print(f"{MANY} rows in one request: {1000 * many:.0f} ms (best of 5)")


if __name__ == "__main__":
    main(*sys.argv[1:])

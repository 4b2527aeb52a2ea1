"""What `import eventlane` costs, and what it brings along."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.measuring import Benchmark, Result, Settings, now_s, plain

__all__ = ["BENCHMARKS", "UNWANTED", "imported_by"]

RUNS_PER_REPEAT = 3
TARGET_S = 0.1
UNWANTED = (
    *("sqlite3", "eventlane.brokers.embedded", "confluent_kafka", "rstream", "psycopg"),
    *("starlette", "uvicorn", "jinja2", "fastavro", "pydantic", "attr", "rich", "aiohttp"),
    "opentelemetry",
)
"""Backends and extras: imported when they are used."""


def imported_by(code: str) -> set[str]:
    """The modules that a new interpreter has after some code, and not without it."""
    report = "; import sys, json; print(json.dumps(sorted(sys.modules)))"
    found = [
        subprocess.run(  # noqa: S603 - this interpreter, and code from this file
            [sys.executable, "-c", first + report], capture_output=True, check=True, text=True
        ).stdout
        for first in (code, "pass")
    ]
    return set(json.loads(found[0])) - set(json.loads(found[1]))


def seconds_of(code: str, environment: Mapping[str, str]) -> float:
    start_s = now_s()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603 - as above
    return now_s() - start_s


async def run(settings: Settings) -> list[Result]:
    with_it_s: list[float] = []
    without_s: list[float] = []
    # Compiled once, as an installed package is, also where nothing may be written beside a source.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(settings.directory)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for turn in range(-1, RUNS_PER_REPEAT * settings.repeats):
        seconds = [seconds_of(code, environment) for code in ("import eventlane", "pass")]
        if turn >= 0:
            with_it_s.append(seconds[0])
            without_s.append(seconds[1])
    modules = imported_by("import eventlane")
    unwanted = sorted(name for name in UNWANTED if name in modules)
    own = sum(name.partition(".")[0] == "eventlane" for name in modules)
    third = sorted(
        {name.partition(".")[0] for name in modules} - {"eventlane"} - sys.stdlib_module_names
    )
    return [
        plain(
            "import",
            [a - b for a, b in zip(with_it_s, without_s, strict=True)],
            unit="s more",
            baseline="a bare interpreter, s",
            baseline_values=without_s,
            target=f"<= {TARGET_S}",
            note=f"{len(modules)} modules: {own} of eventlane, of others {', '.join(third)}; "
            f"backends and extras among them: {', '.join(unwanted) or 'none'}.",
        )
    ]


BENCHMARKS = [Benchmark(name="import", rows=("import",), run=run)]

"""The demonstration from outside: real processes, and reports that balance in spite of kills."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.orders.__main__ import main
from examples.orders.recompute import Expected, recompute
from examples.orders.run import open_run
from examples.orders.smtp_server import embedded_smtp_server

ORDERS = 2_000
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def expected() -> Expected:
    return recompute(ORDERS)


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.orders", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def headless(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run it to its end and return the report."""
    file = directory / "report.json"
    done = demo("--headless", "--data", str(directory), "--report", str(file), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def assert_as_recomputed(report: dict[str, Any], expected: Expected) -> None:
    """With enough stock for all, before `--recover`."""
    assert report["input"] == {"lines": expected.lines, "orders": expected.orders}
    assert report["published"] == expected.orders
    inventory = report["groups"]["inventory"]
    assert inventory["done"] == report["inventory"]["orders_applied"] == expected.orders_applied
    assert inventory["parked"] == expected.parked
    assert report["inventory"]["units"] == expected.units
    assert report["inventory"]["dead_by_kind"] == {
        "InvalidQuantity": expected.invalid_quantity,
        "UnknownProduct": expected.unknown_product,
        "OutOfStock": 0,
    }
    assert report["groups"]["notification"]["done"] == expected.orders
    assert report["notification"]["orders_mailed"] == expected.orders
    assert report["analytics"] == {
        "orders": expected.orders,
        "revenue": expected.revenue,
        "log_orders": expected.orders,
        "log_revenue": expected.revenue,
    }


def assert_as_recovered(report: dict[str, Any], expected: Expected) -> None:
    """With enough stock for all, after `--recover`."""
    inventory = report["groups"]["inventory"]
    assert inventory["done"] == report["inventory"]["orders_applied"]
    assert inventory["done"] == expected.recovered_orders_applied
    assert inventory["archived"] == expected.recovered_archived
    assert inventory["dead"] == inventory["parked"] == 0
    assert report["inventory"]["units"] == expected.recovered_units
    assert report["recovered"]["replayed"] == expected.recovered_replayed
    assert report["recovered"]["resolved"] == expected.recovered_replayed
    assert report["recovered"]["archived"] == expected.recovered_archived


def test_a_run_reports_what_the_raw_data_says_and_recovers_in_its_directory(
    tmp_path: Path, expected: Expected
) -> None:
    report = headless(tmp_path, "--orders", str(ORDERS), "--stock-share", "1.0")
    assert_as_recomputed(report, expected)
    assert report["notification"]["mails_accepted"] == expected.orders
    assert 0 < report["rss_mb_max"] < 400

    recovered = headless(tmp_path, "--recover")
    assert_as_recovered(recovered, expected)


def test_stock_that_runs_out_comes_back_by_recovery(tmp_path: Path, expected: Expected) -> None:
    report = headless(tmp_path, "--orders", str(ORDERS), "--stock-share", "0.9", "--recover")
    inventory = report["groups"]["inventory"]
    assert report["recovered"]["replayed"] > expected.recovered_replayed
    assert inventory["done"] == expected.recovered_orders_applied
    assert inventory["archived"] == expected.recovered_archived
    assert inventory["dead"] == inventory["parked"] == 0


@pytest.mark.parametrize("applied_before_kill", [1, 700])
def test_a_killed_run_goes_on_and_its_report_balances(
    tmp_path: Path, expected: Expected, applied_before_kill: int
) -> None:
    arguments = ["--headless", "--data", str(tmp_path), "--orders", str(ORDERS)]
    with subprocess.Popen(
        [sys.executable, "-m", "examples.orders", *arguments, "--stock-share", "1.0"],
        stdout=subprocess.DEVNULL,
    ) as process:
        while applied(tmp_path) < applied_before_kill:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        process.send_signal(signal.SIGKILL)
    assert_as_recomputed(headless(tmp_path), expected)


def applied(directory: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{directory}/inventory.db?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        (count,) = connection.execute("SELECT COUNT(*) FROM applied").fetchone()
        return int(count)
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def test_ctrl_c_stops_a_run_cleanly_and_says_how_to_continue(
    tmp_path: Path, expected: Expected
) -> None:
    arguments = ["--headless", "--data", str(tmp_path), "--orders", str(ORDERS)]
    with subprocess.Popen(
        [sys.executable, "-m", "examples.orders", *arguments, "--stock-share", "1.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while applied(tmp_path) < 100:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert f'make demo ARGS="--headless --data {tmp_path}"' in output
    assert_as_recomputed(headless(tmp_path), expected)


def test_a_watched_run_shows_its_addresses_and_stops_with_ctrl_c(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "examples.orders", "--data", str(tmp_path), "--orders", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while applied(tmp_path) < 40:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert "Traceback" not in output
    assert "http://127.0.0.1:" in output
    assert f'make demo ARGS="--data {tmp_path}"' in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orders", "0"], "expected a number from 1 to 155848, or all, got '0'"),
        (["--broker", "redis://localhost"], "expected embedded:DIR"),
        (["--stock-share", "-1"], "expected a number of 0 or more"),
        (["--smtp", "localhost"], "expected HOST:PORT"),
        (["--workers", "2"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_options_that_contradict_the_directory_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path, orders=20, stock_share=None, seed=None):
        pass
    assert main(["--headless", "--data", str(tmp_path), "--orders", "21"]) == 3
    assert "expected --orders 20" in capsys.readouterr().err


def test_a_new_run_on_the_log_of_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headless(tmp_path / "old", "--orders", "20")
    broker = f"embedded:{tmp_path}/old"
    arguments = ["--headless", "--data", str(tmp_path / "new"), "--broker", broker]
    for _ in range(2):
        assert main([*arguments, "--orders", "20"]) == 3
        assert "expected an empty log for a new run" in capsys.readouterr().err


def test_a_log_elsewhere_and_a_foreign_mail_server_are_used(tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        async with embedded_smtp_server(tmp_path / "foreign.db", seed=1, fault_share=0.2) as server:
            return await asyncio.to_thread(
                headless,
                tmp_path / "data",
                *("--orders", "100", "--smtp", str(server)),
                *("--broker", f"embedded:{tmp_path}/log"),
            )

    report = asyncio.run(run())
    assert report["notification"] == {"mails_accepted": 100, "orders_mailed": 100}
    assert (tmp_path / "log" / "eventlane.db").exists()
    assert not (tmp_path / "data" / "eventlane.db").exists()

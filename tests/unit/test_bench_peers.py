"""The comparison with peers measures what it says. The peers are not in this environment."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.peers.side_by_side import OURS, PEERS, Rates, rates_of, results_of, show

FOUND = {
    OURS.name: [Rates(500.0, 400.0), Rates(600.0, 300.0), Rates(700.0, 500.0)],
    **{peer.name: [Rates(50.0, 10.0)] * 3 for peer in PEERS},
}


async def test_one_process_publishes_and_another_one_handles_all(tmp_path: Path) -> None:
    rates = await rates_of(OURS, tmp_path, 200)
    assert 0 < rates.end_to_end < 10_000_000
    assert rates.publish > 0


def test_a_peer_is_compared_within_each_round() -> None:
    publish, end_to_end, *_ = results_of(FOUND)
    assert (publish.row.value, publish.row.baseline_value, publish.row.ratio) == (600, 50, 12)
    assert (end_to_end.row.ratio, end_to_end.spread) == (40, (30, 50))
    assert end_to_end.row.target == ">= 20"
    assert end_to_end.is_reached


def test_each_peer_has_two_rows_of_its_own() -> None:
    names = [each.row.name for each in results_of(FOUND)]
    assert len(set(names)) == len(names) == 2 * len(PEERS)


def test_the_table_and_its_legend_fit_140_columns() -> None:
    shown = io.StringIO()
    show(Console(file=shown, width=140), FOUND)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 140
    for peer in (OURS, *PEERS):
        assert sum(line.startswith(f"{peer.name}: {peer.settings}") for line in lines) == 1
    assert "…" not in shown.getvalue()


def test_the_peers_are_all_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--peers", "--only", "import"])
    assert "leave one of them out" in capsys.readouterr().err

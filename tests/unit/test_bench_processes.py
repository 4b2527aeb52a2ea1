"""The benchmark of wake-ups runs, and compares like with like."""

from benchmarks.__main__ import run


def test_a_wake_up_is_compared_with_that_of_two_straight_processes() -> None:
    results = {each.row.name: each.row for each in run(["wake"], repeats=1, scale=0.01)}
    assert set(results) == {"wake_p50", "wake_p99"}
    for row in results.values():
        assert row.value > 0
        assert row.baseline_value > 0
        assert row.ratio is not None
    assert results["wake_p50"].value <= results["wake_p99"].value

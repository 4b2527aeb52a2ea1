"""A run's directory keeps its parameters, and is used by one process at a time."""

from decimal import Decimal
from pathlib import Path

import pytest

from examples.orders.run import Run, RunRefused, open_run

EXPECTED = Run(orders=100, lines=890, stock_share=Decimal("0.9"), seed=3)


def begin(path: Path) -> Run:
    with open_run(path, orders=100, stock_share=Decimal("0.9"), seed=3) as run:
        return run


def test_a_run_that_continues_keeps_its_parameters(tmp_path: Path) -> None:
    begun = begin(tmp_path / "new")
    with open_run(tmp_path / "new", orders=None, stock_share=None, seed=None) as continued:
        assert continued == begun
    with open_run(tmp_path / "new", orders=100, stock_share=None, seed=3) as repeated:
        assert repeated == begun


def test_a_new_run_has_5000_orders_and_stock_for_97_percent(tmp_path: Path) -> None:
    with open_run(tmp_path, orders=None, stock_share=None, seed=None) as run:
        assert (run.orders, run.stock_share) == (5_000, Decimal("0.97"))


@pytest.mark.parametrize(
    ("option", "orders", "stock_share", "seed"),
    [
        ("--orders 100", 101, None, None),
        ("--stock-share 0.9", None, Decimal(1), None),
        ("--seed 3", None, None, 4),
    ],
)
def test_parameters_that_contradict_the_run_are_refused(
    tmp_path: Path, option: str, orders: int | None, stock_share: Decimal | None, seed: int | None
) -> None:
    begin(tmp_path)
    with (
        pytest.raises(RunRefused, match=f"expected {option}, with which the run"),
        open_run(tmp_path, orders=orders, stock_share=stock_share, seed=seed),
    ):
        pass


def test_a_second_process_in_the_directory_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, orders=100, stock_share=None, seed=None),
        pytest.raises(RunRefused, match="no other process uses, but process"),
        open_run(tmp_path, orders=None, stock_share=None, seed=None),
    ):
        pass

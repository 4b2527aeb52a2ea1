"""The reference says what the code says."""

import eventlane
import eventlane.testing
from docs.build_reference import pages

HOW = "run `.venv/bin/python docs/build_reference.py`"


def test_the_reference_is_up_to_date() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text("utf-8") != text]
    assert not stale, f"{stale} differ from the docstrings: {HOW}"


def test_every_public_name_has_an_entry() -> None:
    [api] = [text for path, text in pages().items() if path.name == "api.md"]
    headings = {line.removeprefix("### ") for line in api.splitlines() if line.startswith("### ")}
    assert {*eventlane.__all__, *eventlane.testing.__all__} <= headings


def test_every_method_of_the_app_has_an_entry_wherever_it_is_defined() -> None:
    [api] = [text for path, text in pages().items() if path.name == "api.md"]
    methods = [name for name in dir(eventlane.App) if not name.startswith("_")]
    assert len(methods) > 20
    assert not [name for name in methods if f"#### App.{name}\n" not in api]

"""The reference says what the code says."""

import eventlane
import eventlane.testing
from docs.build_reference import REFERENCE, class_node, pages, string_of
from eventlane.testing.verdict import Kind

HOW = "run `.venv/bin/python docs/build_reference.py`"


def test_the_reference_is_up_to_date() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text("utf-8") != text]
    assert not stale, f"{stale} differ from the docstrings: {HOW}"


def test_every_public_name_has_an_entry() -> None:
    [api] = [text for path, text in pages().items() if path.name == "api.md"]
    headings = {line.removeprefix("### ") for line in api.splitlines() if line.startswith("### ")}
    assert {*eventlane.__all__, *eventlane.testing.__all__} <= headings


def test_every_kind_of_anomaly_is_on_the_page_about_the_checker() -> None:
    page = (REFERENCE.parent / "howto" / "checking.md").read_text("utf-8")
    texts = [" ".join(text.split()) for text in map(string_of, class_node(Kind).body) if text]
    assert [line for line in page.splitlines() if line.startswith("| ")][1:] == [
        f"| {kind} | {text} |" for kind, text in zip(Kind, texts[1:], strict=True)
    ]


def test_every_command_says_what_it_prints_as_json() -> None:
    [cli] = [text for path, text in pages().items() if path.name == "cli.md"]
    for section in cli.split("\n## eventlane ")[1:]:
        assert section.startswith("run\n") or "With `--json`: " in section, section


def test_every_method_of_the_app_has_an_entry_wherever_it_is_defined() -> None:
    [api] = [text for path, text in pages().items() if path.name == "api.md"]
    methods = [name for name in dir(eventlane.App) if not name.startswith("_")]
    assert len(methods) > 20
    assert not [name for name in methods if f"#### App.{name}\n" not in api]

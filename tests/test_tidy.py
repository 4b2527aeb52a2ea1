"""The house style, kept by a machine: the rules of tidy.py, and that each of them can fail."""

import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import eventlane
from tests import tidy
from tests.sources import File, Finding
from tests.tidy import Rule

ROOT = Path(__file__).parent.parent


@cache
def repository() -> list[File]:
    """The text files that are, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    files = []
    for name in sorted(set(listed) - {""}):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            files.append(File(name, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a picture
    return files


def keeps(rule: Rule) -> None:
    findings = sorted(set(rule(repository())))
    if findings:
        pytest.fail("\n" + "\n".join(map(str, findings)), pytrace=False)


def test_imports_point_down_only() -> None:
    keeps(tidy.imports_point_down)


def test_imports_form_no_cycle() -> None:
    keeps(tidy.imports_form_no_cycle)


def test_examples_console_and_cli_use_the_public_api_only() -> None:
    keeps(tidy.people_use_the_public_api)


def test_all_is_there_and_true() -> None:
    keeps(tidy.all_is_true)


def test_all_of_eventlane_is_what_can_be_imported() -> None:
    namespace: dict[str, object] = {}
    exec("from eventlane import *", namespace)
    assert set(eventlane.__all__) == namespace.keys() - {"__builtins__"}


def test_the_public_api_is_documented() -> None:
    keeps(tidy.public_api_is_documented)


def test_names_of_quantities_end_in_their_unit() -> None:
    keeps(tidy.names_end_in_their_unit)


def test_time_sleep_random_environment_and_print_stay_in_their_homes() -> None:
    keeps(tidy.calls_stay_in_their_homes)


def test_everything_is_caught_in_few_places() -> None:
    keeps(tidy.everything_is_caught_in_few_places)


def test_modules_are_named_for_what_they_are() -> None:
    keeps(tidy.modules_are_named_for_what_they_are)


def test_no_marks_of_unfinished_work() -> None:
    keeps(tidy.no_marks_of_unfinished_work)


def test_no_file_is_too_long() -> None:
    keeps(tidy.no_file_is_too_long)


def test_ignores_have_a_code_and_a_reason() -> None:
    keeps(tidy.ignores_have_code_and_reason)


def test_nothing_refers_to_places_outside_the_project() -> None:
    keeps(tidy.nothing_refers_elsewhere)


def test_the_file_map_of_the_design_is_complete() -> None:
    keeps(tidy.the_file_map_is_complete)


SURFACE = '__all__ = ["App"]\n'


def files(**texts: str) -> list[File]:
    return [File(path, text) for path, text in texts.items()]


def source(name: str, text: str) -> list[File]:
    return [File(f"src/eventlane/{name}.py", text)]


def public(text: str) -> list[File]:
    surface = File("src/eventlane/__init__.py", "from .app import App\n" + SURFACE)
    return [surface, File("src/eventlane/app.py", SURFACE + text)]


TODAY = "from datetime import datetime, UTC\n"
DOCUMENTED = 'class App:\n    """An app."""\n'
RAISES = "        if x:\n            raise ValueError\n"

BAD: dict[str, tuple[Rule, list[File]]] = {
    "imports a higher level": (
        tidy.imports_point_down,
        source("clock", "from eventlane.app import App"),
    ),
    "imports a higher level within a function": (
        tidy.imports_point_down,
        source("serde/json", "def f() -> None:\n    import eventlane.dispatch"),
    ),
    "imports a higher level by a relative name": (
        tidy.imports_point_down,
        source("serde/json", "from ..app import App"),
    ),
    "imports the public surface from within": (
        tidy.imports_point_down,
        source("app", "from eventlane import Retry"),
    ),
    "imports another backend": (
        tidy.imports_point_down,
        source("brokers/kafka", "from eventlane.brokers.rabbitmq import Stream"),
    ),
    "has no level": (tidy.imports_point_down, source("utils", "")),
    "a cycle under TYPE_CHECKING": (
        tidy.imports_form_no_cycle,
        source("lanes", "if TYPE_CHECKING:\n    from eventlane.retry import decide")
        + source("retry", "from eventlane.lanes import Lane"),
    ),
    "a cycle of three": (
        tidy.imports_form_no_cycle,
        source("lanes", "from eventlane import retry")
        + source("retry", "def f() -> None:\n    from eventlane.event import Topic")
        + source("event", "import eventlane.lanes"),
    ),
    "an example reaches within": (
        tidy.people_use_the_public_api,
        files(**{"examples/orders/a.py": "from eventlane.lanes import Lane"}),
    ),
    "an example takes what is not public": (
        tidy.people_use_the_public_api,
        [*public(""), File("examples/a.py", "from eventlane import App, Lane")],
    ),
    "the console reaches within": (
        tidy.people_use_the_public_api,
        source("console/pages", "import eventlane.store.sqlite"),
    ),
    "no __all__": (tidy.all_is_true, source("app", "class App: ...")),
    "__all__ lacks a name": (tidy.all_is_true, source("app", "__all__ = []\nLIMIT = 3")),
    "__all__ has a name too many": (tidy.all_is_true, source("app", '__all__ = ["App"]')),
    "the surface imports what it does not state": (
        tidy.all_is_true,
        source("__init__", SURFACE + "from .app import App, Lane"),
    ),
    "a class without docstring": (tidy.public_api_is_documented, public("class App: ...")),
    "a method without docstring": (
        tidy.public_api_is_documented,
        public(DOCUMENTED + "    def run(self) -> None: ..."),
    ),
    "raises without saying so": (
        tidy.public_api_is_documented,
        public(DOCUMENTED + f'    def run(self) -> None:\n        """Run."""\n{RAISES}'),
    ),
    "a parameter without unit": (
        tidy.names_end_in_their_unit,
        source("app", "def f(timeout: float | None) -> None: ..."),
    ),
    "a field without unit": (
        tidy.names_end_in_their_unit,
        source("config", "class Limits:\n    drain_timeout_max: float = 3"),
    ),
    "a unit spelt otherwise": (
        tidy.names_end_in_their_unit,
        source("app", "class App:\n    async def f(self, *, delay_seconds: int) -> None: ..."),
    ),
    "the time of day": (
        tidy.calls_stay_in_their_homes,
        source("app", "import time\nx = time.time()"),
    ),
    "the time by another name": (
        tidy.calls_stay_in_their_homes,
        source("app", "from time import monotonic as now\nx = now()"),
    ),
    "the date": (tidy.calls_stay_in_their_homes, source("app", TODAY + "x = datetime.now(UTC)")),
    "a sleep": (
        tidy.calls_stay_in_their_homes,
        source("app", "import asyncio\nx = asyncio.sleep(1)"),
    ),
    "a sleep in a test": (
        tidy.calls_stay_in_their_homes,
        files(**{"tests/unit/test_a.py": "from asyncio import sleep\nx = sleep(1)"}),
    ),
    "chance": (
        tidy.calls_stay_in_their_homes,
        source("app", "import random\nx = random.random()"),
    ),
    "the environment": (
        tidy.calls_stay_in_their_homes,
        source("app", "from os import environ\nx = environ['HOME']"),
    ),
    "a print": (tidy.calls_stay_in_their_homes, source("app", "print(1)")),
    "catches everything": (
        tidy.everything_is_caught_in_few_places,
        source("app", "try:\n    f()\nexcept (OSError, Exception):\n    g()"),
    ),
    "catches everything without a word": (
        tidy.everything_is_caught_in_few_places,
        source("app", "try:\n    f()\nexcept:\n    g()"),
    ),
    "catches everything once more than allowed": (
        tidy.everything_is_caught_in_few_places,
        source("dispatch", "try:\n    f()\nexcept Exception:\n    g()\n" * 4),
    ),
    "a drawer for everything": (
        tidy.modules_are_named_for_what_they_are,
        source("brokers/utils", ""),
    ),
    "a mark": (tidy.no_marks_of_unfinished_work, source("app", "# TO" + "DO: later")),
    "a long file": (tidy.no_file_is_too_long, source("app", "x = 1\n" * 601)),
    "ignores everything": (
        tidy.ignores_have_code_and_reason,
        source("app", "x = 1  # type: " + "ignore\n"),
    ),
    "ignores without a reason": (
        tidy.ignores_have_code_and_reason,
        source("app", "x = 1  # pyright: " + "ignore[reportAny]\n"),
    ),
    "suppresses a lint without a reason": (
        tidy.ignores_have_code_and_reason,
        source("app", "x = 1  # no" + "qa: E501\n"),
    ),
    "ignores a file": (
        tidy.ignores_have_code_and_reason,
        source("app", "# mypy: ignore-errors\n"),
    ),
    "a path of one machine": (
        tidy.nothing_refers_elsewhere,
        files(**{"README.md": "see /work" + "/main"}),
    ),
    "a package registry": (
        tidy.nothing_refers_elsewhere,
        files(**{"requirements/dev.txt": "--index-url https://py" + "pi.org/simple"}),
    ),
    "no design": (tidy.the_file_map_is_complete, source("app", SURFACE)),
    "the map lacks a file": (
        tidy.the_file_map_is_complete,
        source("app", SURFACE) + files(**{"DESIGN.md": "nothing"}),
    ),
    "the map names a file that is not": (
        tidy.the_file_map_is_complete,
        files(**{"DESIGN.md": "`src/eventlane/gone.py`"}),
    ),
}


def test_every_rule_has_a_case_that_it_fails() -> None:
    rules = {r for r in vars(tidy).values() if is_rule(r)}
    assert rules == {rule for rule, _ in BAD.values()}


def is_rule(value: object) -> bool:
    return getattr(value, "__annotations__", {}).get("return") == Iterator[Finding] and (
        value.__annotations__.keys() == {"files", "return"}
    )


@pytest.mark.parametrize("name", BAD)
def test_the_rule_can_fail(name: str) -> None:
    rule, wrong = BAD[name]
    assert list(rule(wrong))


GOOD: dict[str, tuple[Rule, list[File]]] = {
    "imports lower levels and its own": (
        tidy.imports_point_down,
        source("lanes", "import eventlane.errors\nfrom eventlane.retry import decide\nimport os"),
    ),
    "the command line uses the surface": (
        tidy.imports_point_down,
        source("cli/main", "from eventlane import App\nfrom eventlane.testing import prove"),
    ),
    "two modules import one": (
        tidy.imports_form_no_cycle,
        source("lanes", "import eventlane.event")
        + source("retry", "import eventlane.event, eventlane.lanes")
        + source("event", ""),
    ),
    "an example uses what is public": (
        tidy.people_use_the_public_api,
        [
            *public(""),
            File("examples/a.py", "from eventlane import App\nfrom eventlane.testing import x"),
        ],
    ),
    "an example uses what has a module's name": (
        tidy.people_use_the_public_api,
        [
            File("src/eventlane/__init__.py", '__all__ = ["event"]'),
            *source("event", ""),
            File("examples/a.py", "from eventlane import event"),
        ],
    ),
    "a module of private names": (
        tidy.all_is_true,
        source("app", 'T = TypeVar("T")\n_x = 1\ndef _f() -> None: ...'),
    ),
    "__all__ is true": (tidy.all_is_true, public("class App: ...")),
    "raises and says so": (
        tidy.public_api_is_documented,
        public(
            DOCUMENTED
            + '    def run(self) -> None:\n        """Run.\n\n        Raises:\n            E."""\n'
            + RAISES
        ),
    ),
    "units where they belong": (
        tidy.names_end_in_their_unit,
        source(
            "config",
            "class Batch:\n    size: int\n    linger_s: float\n    age: timedelta\n"
            "    rate_per_s: float\n    size_bytes_max: int",
        ),
    ),
    "time at home": (tidy.calls_stay_in_their_homes, source("clock", "import time\ntime.time()")),
    "a benchmark takes the time": (
        tidy.calls_stay_in_their_homes,
        files(**{"benchmarks/a.py": "import time\nprint(time.perf_counter())"}),
    ),
    "names that only look alike": (
        tidy.calls_stay_in_their_homes,
        source("app", "def f(clock: C, random: R) -> None:\n    clock.time.sleep(random.x)"),
    ),
    "catches once where allowed": (
        tidy.everything_is_caught_in_few_places,
        source("dispatch", "try:\n    f()\nexcept Exception:\n    g()\n"),
    ),
    "cleans up and raises again": (
        tidy.everything_is_caught_in_few_places,
        source("app", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    ),
    "ignores with code and reason": (
        tidy.ignores_have_code_and_reason,
        source(
            "app",
            "x = 1  # type: {0}[misc]  # pyright: {0}[reportAny]  # msgspec has no type\n".format(
                "ignore"
            ),
        ),
    ),
    "the map is complete": (
        tidy.the_file_map_is_complete,
        source("app", SURFACE)
        + source("__init__", "")
        + files(**{"DESIGN.md": "`src/eventlane/app.py` in `src/eventlane`"}),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_rule_lets_good_code_pass(name: str) -> None:
    rule, right = GOOD[name]
    assert [str(f) for f in rule(right)] == []

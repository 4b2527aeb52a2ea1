"""The rules of the house that a machine can keep; test_tidy.py applies them to the repository.

A rule is a function from the files to its findings. The tables come first: they are what changes
when the project grows. Every exception in them has its reason beside it.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tests.sources import (
    File,
    Finding,
    Function,
    definitions_of,
    dotted_names,
    has_decorator,
    imported_names,
    imports_of,
    is_or_below,
    modules_of,
    numbers_in,
    own_nodes,
    public_names,
    python_files,
    stated_all,
    top_level,
)

# A module imports from lower levels, or from its own level where that makes no cycle. A name
# stands for the module or for everything in that package; the longest one that fits counts.
LEVELS = (
    ("errors", "clock", "wording"),
    ("config", "message", "outcome"),
    (
        *("account", "breaker", "broker", "budget", "directory", "event", "failure"),
        *("handler", "lane", "lanes", "ledger", "metrics", "notice", "query", "replay", "retry"),
        "rate",
        *(
            "schedule",
            "settlement",
            "sharing",
            "span",
            "subscription",
            "suspects",
            "topic",
            "views",
        ),
    ),
    ("brokers", "middleware", "serde", "store"),
    (
        *("admission", "advancing", "batching", "conclude", "deadletter", "dispatch", "feeding"),
        *(
            "guard",
            "holding",
            "limiting",
            "listing",
            "quarantine",
            "routing",
            "settling",
            "telemetry",
            "workers",
        ),
    ),
    (
        *("background", "editing", "handling", "idle", "inspecting", "lifecycle", "operating"),
        *("doctor", "operation", "publishing", "reading", "topics"),
    ),
    ("app", "health", "scraping", "supervisor", "testing", "vitals", "worker"),
    ("",),  # eventlane itself: the public surface
    ("__main__", "cli", "console"),
)
# Backends stand side by side: what two of them share belongs below them.
BACKENDS = ("brokers.embedded", "brokers.kafka", "brokers.rabbitmq")

# Who may import what of eventlane. That these have to make do with the public API is how we
# notice that it is insufficient.
PUBLIC_API = ("eventlane", "eventlane.testing")
PUBLIC_API_ONLY = {
    "examples/": PUBLIC_API,
    "src/eventlane/console/": (*PUBLIC_API, "eventlane.console"),
    # `eventlane console` starts the console, `eventlane prove overtake` goes through the ordeal,
    # `eventlane run` supervises workers.
    "src/eventlane/cli/": (
        *(*PUBLIC_API, "eventlane.cli", "eventlane.console"),
        *("eventlane.health", "eventlane.supervisor", "eventlane.worker"),
        *("eventlane.testing.checker", "eventlane.testing.overtaking"),
        "eventlane.wording",  # what is mistyped is answered as the API answers it
    ),
}


@dataclass(frozen=True, kw_only=True)
class Ban:
    """Calls that belong into few places."""

    calls: str
    """A pattern for the full dotted name."""
    within: tuple[str, ...]
    homes: tuple[str, ...]
    instead: str


BANS = (
    Ban(
        calls=r"time\.(time|monotonic|perf_counter)(_ns)?|datetime\.(datetime|date)\.(now|utcnow|today)",
        within=("src/",),
        homes=("src/eventlane/clock.py", "src/eventlane/testing/clock.py"),
        instead="take a Clock and ask it, so that a test can set the time",
    ),
    Ban(
        calls=r"(asyncio|time|anyio)\.sleep",
        within=("src/",),
        homes=("src/eventlane/clock.py", "src/eventlane/testing/clock.py"),
        instead="wait for the event itself, or let the clock call back",
    ),
    Ban(
        calls=r"(asyncio|time|anyio)\.sleep",
        within=("tests/",),
        homes=(),
        instead="advance the clock, or wait for what the test waits for",
    ),
    Ban(
        calls=r"random\..+",
        within=("src/",),
        homes=(
            "src/eventlane/conclude.py",  # draws the jitter that retry.decide takes as an argument
            "src/eventlane/testing/",  # seeded, so that a failure can be repeated
        ),
        instead="take the random source, or the drawn number, as an argument",
    ),
    Ban(
        calls=r"os\.(environb?|getenv|putenv)(\..*)?",
        within=("src/", "examples/"),
        homes=("src/eventlane/cli/",),
        instead="take an argument; only the command line reads the environment",
    ),
    Ban(
        calls="print",
        within=("src/",),
        homes=("src/eventlane/cli/",),
        instead="return it, or log it",
    ),
)

# Where everything may be caught: the file, how often, and why.
CATCH_ALL = {
    "src/eventlane/cli/loading.py": (1, "a user's module may raise anything: it is told where"),
    "src/eventlane/dispatch.py": (
        2,
        "a handler's exception becomes an outcome here, and for lists below (one, decoding)",
    ),
    "src/eventlane/listing.py": (1, "a handler's exception becomes outcomes: of a list"),
    "src/eventlane/routing.py": (1, "passed on, once the breakers have been told"),
    "src/eventlane/conclude.py": (
        1,
        "an object's own __repr__ may raise, and must not end a group",
    ),
    "src/eventlane/background.py": (1, "handed to the thread that waits, which raises it"),
    "src/eventlane/testing/simulation/loop.py": (
        2,
        "what a thread raises is handed to who waits for it; a dead process is taken apart",
    ),
    "src/eventlane/brokers/embedded/writer.py": (
        2,
        "the thread must outlive what a caller's change raises: it is handed to the caller",
    ),
    "src/eventlane/brokers/embedded/checkup.py": (
        1,
        "what a damaged file has may make anything raise anything: it is a finding",
    ),
    "src/eventlane/publishing.py": (
        1,
        "the source of the events may raise anything; its caller must learn what is durable",
    ),
    "src/eventlane/retry.py": (1, "an exception's own __str__ may raise, and must not end a group"),
    "src/eventlane/serde/json.py": (
        3,
        "a type's own code runs there (__post_init__, validators, __eq__) and can raise anything",
    ),
    "src/eventlane/serde/unwritable.py": (1, "the same, while the wrong field is looked for"),
}

# A quantity's name ends in its unit (`timeout_s`, `segment_bytes_max`).
QUANTITIES = re.compile(
    "age|backoff|budget|deadline|delay|duration|elapsed|heartbeat|interval|latency|lease|length|"
    "linger|now|patience|pause|period|rate|retention|size|stall|time|timeout|timestamp|ttl|uptime|"
    "wait"
)
MISSPELT_UNITS = re.compile(
    "hours|kb|mb|micros|microseconds|millis|milliseconds|mins|minutes|msecs?|nanos|nanoseconds|"
    "secs?|seconds?"
)
QUALIFIERS = re.compile("max|min|total|mean|p50|p99|default")
UNITLESS = {
    "Batch.size": "counts events; its name is a contract (docs: Batch)",
}

NAMELESS = re.compile("_?(utils?|helpers?|base|common|misc|internal|managers?|shared|tools)")

LINES_MAX = 600

# Written so that this file keeps the rules that it states.
MARKS = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
ELSEWHERE = re.compile(
    r"\.\./sha[r]ed|/wor[k]/|/far[m]/|/roo[t]/"
    r"|pypi\.or[g]|pythonhosted\.or[g]|npmjs\.(or[g]|com)|yarnpkg\.co[m]|crates\.i[o]|deb\.debian\.or[g]"
    r"|repo1?\.maven(\.apache)?\.or[g]|proxy\.golang\.or[g]|rubygems\.or[g]"
)
IGNORES = re.compile(
    r"(?:type|pyright): ?ignore(\[[\w\-, ]+\])?|noqa(: ?[A-Z]+\d+(?:,? ?[A-Z]+\d+)*)?"
)
IGNORE_FILE = re.compile(
    r"# *(mypy: *(ignore-errors|disable)|pyright: *(basic|standard|off)|ruff: *noqa)"
)


Rule = Callable[[list[File]], Iterator[Finding]]


def level_of(module: str) -> int | None:
    """The height of a module in LEVELS, None if it has no place there."""
    inner = module.removeprefix("eventlane").removeprefix(".")
    fits = [
        (len(name), height)
        for height, names in enumerate(LEVELS)
        for name in names
        if inner == name or (name and inner.startswith(f"{name}."))
    ]
    return max(fits)[1] if fits else None


def imports_point_down(files: list[File]) -> Iterator[Finding]:
    modules = modules_of(files)
    for file in files:
        if file.module is None:
            continue
        own = level_of(file.module)
        if own is None:
            yield file.at(1, f"{file.module} has no level: give it one in LEVELS (tests/tidy.py)")
            continue
        for found in imports_of(file, modules):
            if not is_or_below(found.module, "eventlane"):
                continue
            theirs = level_of(found.module)
            if theirs is not None and theirs > own:
                yield file.at(
                    found.line,
                    f"{file.module} (level {own}) imports {found.module} (level {theirs}): imports "
                    "point down only; move what both need below, or pass it in",
                )
            mine = next((b for b in BACKENDS if is_or_below(file.module, f"eventlane.{b}")), None)
            other = next((b for b in BACKENDS if is_or_below(found.module, f"eventlane.{b}")), None)
            if mine and other and mine != other:
                yield file.at(
                    found.line,
                    f"{mine} imports {other}: backends never import each other; what they share "
                    "belongs below them",
                )


def imports_form_no_cycle(files: list[File]) -> Iterator[Finding]:
    modules = modules_of(files)
    edges: dict[str, dict[str, int]] = {}
    paths: dict[str, str] = {}
    for file in files:
        if file.module:
            paths[file.module] = file.path
            edges[file.module] = {
                i.module: i.line for i in imports_of(file, modules) if i.module in modules
            }
    # From each module the shortest way back to itself: each cycle is reported once, where its
    # first module (by name) stands.
    for start in sorted(edges):
        ways = [[start]]
        seen: set[str] = set()
        while ways:
            way = ways.pop(0)
            if start in edges[way[-1]]:
                if min(way) == start:
                    line = edges[start].get(way[1] if len(way) > 1 else start, 1)
                    yield Finding(
                        paths[start],
                        line,
                        f"a cycle of imports: {' -> '.join([*way, start])} (TYPE_CHECKING and "
                        "function-local ones count); move what both need to a module below",
                    )
                break
            for onward in sorted(edges[way[-1]].keys() - seen):
                seen.add(onward)
                ways.append([*way, onward])


def people_use_the_public_api(files: list[File]) -> Iterator[Finding]:
    modules = modules_of(files)
    surface = public_names(files)
    for file in python_files(files, *PUBLIC_API_ONLY):
        allowed = next(v for k, v in PUBLIC_API_ONLY.items() if file.path.startswith(k))
        inner = allowed[len(PUBLIC_API) :]
        for found in imports_of(file, modules, surface):
            if not is_or_below(found.module, "eventlane"):
                continue
            public = found.module in PUBLIC_API or any(is_or_below(found.module, i) for i in inner)
            if not public:
                yield file.at(
                    found.line,
                    f"imports {found.module}, which is not public: {' and '.join(allowed)} are; if "
                    "that does not do, it is the public API that lacks something",
                )
            elif found.module == "eventlane" and found.name and found.name not in surface:
                yield file.at(
                    found.line, f"imports {found.name}, which eventlane.__all__ does not have"
                )


def all_is_true(files: list[File]) -> Iterator[Finding]:
    """That it is sorted, ruff sees to (RUF022)."""
    for file in python_files(files, "src/eventlane/"):
        if file.path.endswith("_cases.py"):  # conformance.py takes every case that there is
            continue
        defined = definitions_of(file)
        public = {n: line for n, line in defined.items() if not n.startswith("_")}
        if file.path == "src/eventlane/__init__.py":
            public |= {n: ln for n, ln in imported_names(file).items() if not n.startswith("_")}
        stated = stated_all(file)
        if stated is None:
            if public:
                yield file.at(1, f"has no literal __all__, but public names: {sorted(public)}")
            continue
        line, names = stated
        known = {*defined, *imported_names(file)}
        for name in names:
            if name not in known:
                yield file.at(line, f"__all__ names {name}, which is not here")
        for name, where in public.items():
            if name not in names:
                yield file.at(where, f"{name} is not in __all__: add it, or start it with _")


def public_api_is_documented(files: list[File]) -> Iterator[Finding]:
    surface = public_names(files)
    for file in python_files(files, "src/eventlane/"):
        stated = stated_all(file)
        here = surface & frozenset(stated[1] if stated else ())
        for node in top_level(file.tree.body):
            if not isinstance(node, Function | ast.ClassDef) or node.name not in here:
                continue
            if isinstance(node, ast.ClassDef):
                if ast.get_docstring(node) is None:
                    yield file.at(node.lineno, f"{node.name} has no docstring")
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield from undocumented(file, inner, f"{node.name}.{inner.name}")
            else:
                yield from undocumented(file, node, node.name)


def undocumented(file: File, function: Function, name: str) -> Iterator[Finding]:
    if has_decorator(function, "overload") or has_decorator(function, "setter"):
        return
    docstring = ast.get_docstring(function)
    raises = any(isinstance(n, ast.Raise) and n.exc is not None for n in own_nodes(function))
    if docstring is None:
        yield file.at(function.lineno, f"{name} is public and has no docstring")
    elif raises and not re.search(r"^Raises:$", docstring, re.MULTILINE):
        yield file.at(
            function.lineno,
            f"{name} raises, but its docstring has no `Raises:` that says when and what happened",
        )


def lacks_unit(name: str) -> bool:
    words = name.strip("_").lower().split("_")
    while len(words) > 1 and QUALIFIERS.fullmatch(words[-1]):
        words.pop()
    return any(bare.fullmatch(words[-1]) for bare in (QUANTITIES, MISSPELT_UNITS))


def names_end_in_their_unit(files: list[File]) -> Iterator[Finding]:
    for file in python_files(files, "src/", "examples/", "benchmarks/"):
        for owner, name, line in numbers_in(file.tree, ""):
            full = f"{owner}.{name}" if owner else name
            if lacks_unit(name) and full not in UNITLESS:
                yield file.at(
                    line,
                    f"{full} is a number without its unit: end it in _s, _ms, _bytes ... (before "
                    "_max and _min), in just these spellings; a count says what it counts",
                )


def calls_stay_in_their_homes(files: list[File]) -> Iterator[Finding]:
    for file in python_files(files):
        bans = [b for b in BANS if file.path.startswith(b.within)]
        bans = [b for b in bans if not (b.homes and file.path.startswith(b.homes))]
        for line, name in dotted_names(file) if bans else ():
            for ban in bans:
                if re.fullmatch(ban.calls, name):
                    homes = f" (its home: {', '.join(ban.homes)})" if ban.homes else ""
                    yield file.at(line, f"{name} is banned here: {ban.instead}{homes}")


def everything_is_caught_in_few_places(files: list[File]) -> Iterator[Finding]:
    """Cleaning up and raising again is not catching; a bare `except:` is always too much."""
    for file in python_files(files, "src/", "examples/"):
        caught = sorted(
            node.lineno
            for node in ast.walk(file.tree)
            if isinstance(node, ast.ExceptHandler) and takes_everything(node)
        )
        allowed, _ = CATCH_ALL.get(file.path, (0, ""))
        for line in caught[allowed:]:
            yield file.at(
                line,
                "catches everything: name the exceptions; where it has to be everything, add the "
                "file to CATCH_ALL (tests/tidy.py) with the reason",
            )


def takes_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    return bool({"Exception", "BaseException"} & set(re.findall(r"\w+", ast.unparse(handler.type))))


def modules_are_named_for_what_they_are(files: list[File]) -> Iterator[Finding]:
    for file in python_files(files):
        for part in PurePosixPath(file.path).with_suffix("").parts:
            if NAMELESS.fullmatch(part):
                yield file.at(
                    1, f"{part!r} names no idea: call it what it is, or put it where it belongs"
                )


def no_marks_of_unfinished_work(files: list[File]) -> Iterator[Finding]:
    for file in files:
        for line, text in enumerate(file.text.splitlines(), 1):
            if not file.is_vendored and (mark := MARKS.search(text)):
                yield file.at(line, f"{mark[0]}: do it now, or open an issue")


def no_file_is_too_long(files: list[File]) -> Iterator[Finding]:
    for file in python_files(files, "src/"):
        if (count := len(file.text.splitlines())) > LINES_MAX:
            yield file.at(
                count,
                f"{count} lines, expected at most {LINES_MAX}: an idea is hiding in it, which "
                "wants a file of its own",
            )


def ignores_have_code_and_reason(files: list[File]) -> Iterator[Finding]:
    for file in python_files(files):
        for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
            if token.type != tokenize.COMMENT:
                continue
            line = token.start[0]
            if IGNORE_FILE.match(token.string):
                yield file.at(line, "silences a whole file: ignore the line, with reason")
                continue
            found = [
                m
                for m in IGNORES.finditer(token.string)
                if token.string[: m.start()].rstrip().endswith("#")
            ]
            if any(not (m[1] or m[2]) for m in found):
                yield file.at(line, "ignores everything: name the code, `ignore[code]`")
            elif found and len(re.findall(r"\w+", IGNORES.sub("", token.string))) < 2:
                yield file.at(
                    line, "ignores without a reason: add it, `# type: ignore[code]  # why`"
                )


def nothing_refers_elsewhere(files: list[File]) -> Iterator[Finding]:
    for file in files:
        for line, text in enumerate(file.text.splitlines(), 1):
            if found := ELSEWHERE.search(text):
                yield file.at(
                    line,
                    f"{found[0]!r} is a place outside the project (a path of one machine, or a "
                    "package registry): the project stands alone",
                )


def the_file_map_is_complete(files: list[File]) -> Iterator[Finding]:
    design = next((f for f in files if f.path == "DESIGN.md"), None)
    if design is None:
        yield Finding("DESIGN.md", 1, "is missing: it has the map of src/eventlane, file by file")
        return
    paths = {f.path for f in files}
    named: dict[str, int] = {}
    for line, text in enumerate(design.text.splitlines(), 1):
        for path in re.findall(r"\b(?:src|tests|examples|benchmarks|services)/[\w/.\-]*\w", text):
            named.setdefault(path, line)
    for path, line in named.items():
        if path not in paths and not any(p.startswith(f"{path}/") for p in paths):
            yield design.at(line, f"names {path}, which does not exist")
    for file in python_files(files, "src/eventlane/"):
        is_empty = file.path.endswith("/__init__.py") and not definitions_of(file)
        if file.path not in named and not is_empty:
            yield design.at(1, f"its file map lacks `{file.path}`: one line, its idea")

"""Write docs/reference/api.md, limits.md and cli.md from what the code says of itself.

Run it at the root of the repository after a change: `.venv/bin/python docs/build_reference.py`.
A test compares.
"""

import argparse
import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import eventlane
import eventlane.testing
from eventlane.cli import parser

__all__ = ["pages"]

REFERENCE = Path(__file__).parent / "reference"

SECTIONS = {
    "The app": ["App"],
    "Events": ["event", "Topic", "Message", "Position"],
    "Handlers": ["Context", "Batch", "Handler", "Middleware"],
    "Outcomes": ["Outcome", "Done", "RetryLater", "Dead", "Skipped", "Pause"],
    "Retry": ["Retry", "Dependency"],
    "Dead letters": [
        "DeadLetter",
        "Attempt",
        "Query",
        "FailureSummary",
        "LetterEvent",
        "DeadLettered",
    ],
    "Operations": ["Operation", "OperationStatus", "Plan", "OrderConflict", "LeftOut"],
    "Looking at a key or an event": [
        *("LaneView", "LaneFront", "Trace", "TracedEvent", "GroupTrace"),
    ],
    "Groups": ["ResetPlan", "PartitionReset", "RemovalPlan"],
    "The account": ["Status", "GroupStatus", "PartitionStatus", "TopicStatus"],
    "A check-up": ["Finding"],
    "Bounds and time": ["Limits", "Clock"],
}
"""What belongs together; errors, tests and what is new here follow."""

SHORT = {
    "eventlane.event": ["Key"],
    "eventlane.failure": ["LetterState", "Stage", "Disposition"],
    "eventlane.outcome": ["LaneOnDead"],
    "eventlane.retry": ["Rule", "Errors"],
}
"""Short names that signatures use."""

GIVEN = {
    *("Attempt", "Context", "DeadLetter", "DeadLettered", "FailureSummary", "Finding"),
    "GroupStatus",
    *("GroupTrace", "LaneFront", "LaneView", "LeftOut", "LetterEvent", "Message", "Operation"),
    *(
        "OperationStatus",
        "OrderConflict",
        "PartitionReset",
        "PartitionStatus",
        "Plan",
        "Position",
        "RemovalPlan",
    ),
    *("ResetPlan", "Status", "TopicStatus", "Trace", "TracedEvent"),
}
"""What users are given and never make: how it is made is not shown."""

INNER = {"Context": {"lane", "chunk", "event", "index", "origin", "published", "record", "trouble"}}
"""Fields that the dispatcher uses."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = tuple[str, ast.expr | None, ast.expr | None, str]
"""A field: name, annotation, default, docstring."""

WIDTH = 88


def pages() -> dict[Path, str]:
    """The text of each page."""
    return {
        REFERENCE / "api.md": api_page(),
        REFERENCE / "limits.md": limits_page(),
        REFERENCE / "cli.md": cli_page(),
    }


def api_page() -> str:
    """All public names, in sections."""
    names = list(eventlane.__all__)
    errors = [each for each in names if is_error(getattr(eventlane, each))]
    sections = {title: [n for n in of if n in names] for title, of in SECTIONS.items()}
    placed = {name for of in sections.values() for name in of}
    sections["Errors"] = errors
    sections["More"] = [each for each in names if each not in placed and each not in errors]
    parts = [
        "# API reference",
        (
            "Made from the docstrings by `docs/build_reference.py`; do not edit it here. "
            "Everything on this page is imported from `eventlane`, the last section from "
            "`eventlane.testing`. Names that are not on it may change without notice."
        ),
        contents({**sections, "Testing": list(eventlane.testing.__all__)}),
    ]
    for title, of in sections.items():
        if of:
            parts.append(f"## {title}")
            if title == "Errors":
                parts.append(error_tree())
            parts += [entry(eventlane, name) for name in of]
    parts.append("## Testing")
    parts += [entry(eventlane.testing, name) for name in eventlane.testing.__all__]
    parts += ["## Short names in signatures", code("\n".join(short_names()))]
    return "\n\n".join(parts) + "\n"


def limits_page() -> str:
    """The fields of `Limits` as a table."""
    fields = list(fields_of(class_node(eventlane.Limits)))
    rows = [
        f"| `{name}` | `{number(default)}` | {one_line(text)} |"
        for name, _, default, text in fields
    ]
    return "\n".join(
        [
            "# Limits",
            "",
            "Made from `Limits` by `docs/build_reference.py`; do not edit it here.",
            "",
            (
                f"{one_line(inspect.getdoc(eventlane.Limits) or '')} Give them to the app: "
                "`App(url, limits=Limits(drain_s=10))`. The unit is the end of the name: `_s` "
                "seconds, `_bytes` bytes; what else ends in `_max` counts what it says."
            ),
            "",
            "| field | default | what it bounds |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


# --- the command line -------------------------------------------------------------------------

COMMON = ("--help", "--json", "--broker", "--app", "--reason", "--actor")
"""Options that are told once."""

_GROUPS = "an object with a `GroupStatus` for each group"
_OPERATION = "an `OperationStatus`, with `left_out`, a list of `LeftOut`"
PRINTED = {
    "status": "a `Status`",
    "lag": (
        "an object with `open`, `parked`, `retained_bytes`, `members` and `partitions` (a list of "
        "`PartitionStatus`) for each group"
    ),
    "doctor": "a list of `Finding`",
    "topics": "an object with a `TopicStatus` for each topic",
    "failures list": "a list of `DeadLetter`; with `--by-cause` of `FailureSummary`",
    "failures show": "a `DeadLetter`, with `changes`, a list of `LetterEvent`",
    "replay": f"{_OPERATION}; with `--dry-run` a `Plan`",
    **dict.fromkeys(("archive", "restore"), _OPERATION),
    "ops list": "a list of `OperationStatus`",
    **dict.fromkeys(("ops show", "ops pause", "ops resume", "ops cancel"), _OPERATION),
    **dict.fromkeys(
        ("groups list", "groups pause", "groups resume", "groups rename", "groups forget"), _GROUPS
    ),
    "groups reset": "a `ResetPlan`",
    "groups remove": "a `RemovalPlan`",
    "backup": "an object with `directory` and `size_bytes`",
    "tail": "a `Message` on each line",
    "trace": "a `Trace`",
    "lane": "a list of `LaneView`",
    "prove overtake": "an object with `clean`, the figures, `checked` and the `verdict`",
}
"""What each command prints with `--json`."""


def cli_page() -> str:
    """All commands."""
    top = parser()
    parts = [
        "# Command line",
        "Made from the commands by `docs/build_reference.py`; do not edit it here.",
        (
            "- **Where the broker is**: `--broker embedded:DIR`, before or after the command, or "
            "`EVENTLANE_BROKER` in the environment, or `--app module:app`, which takes it from an "
            "app. A broker that is not there is not made.\n"
            "- **`--json`** prints what the [API](api.md) has, under its names: times in ISO 8601, "
            'bytes as text, or as `{"base64": …}` where they are none. A refusal is one line on '
            'standard output, `{"error": "NotFound", "message": "…"}`, beside the words on '
            "standard error; if something was to be confirmed, with `plan`, which says what would "
            "be done.\n"
            "- **`--reason`** is kept with every change, and asked for at a terminal; `--actor` is "
            "the login and host by default.\n"
            "- **Exit codes**: 0 done, 1 failed, 2 usage, 3 refused, 4 partly done: see "
            "[exit codes](exit-codes.md)."
        ),
    ]
    for name, text, command in commands_of(top, ""):
        shown = [each for each in command._actions if shows(each)]  # noqa: SLF001  # no public way
        words = [argument(each, in_usage=True) for each in shown]
        rows = [
            f"| `{argument(each)}` | {one_line(each.help % vars(each))} |"
            for each in shown
            if each.help
        ]
        parts += [
            f"## eventlane {name}",
            f"{text[0].upper()}{text[1:].rstrip('.')}.",
            code(" ".join(("eventlane", name, *words))),
        ]
        if rows:
            parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
        if "--json" in command.format_help():
            parts.append(f"With `--json`: {PRINTED[name]}.")
    return "\n\n".join(parts) + "\n"


def commands_of(
    parent: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """The commands that do something: name, help, parser."""
    for action in parent._actions:  # noqa: SLF001  # no public way
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # the same
            continue
        helps = {each.dest: each.help or "" for each in action._choices_actions}  # noqa: SLF001  # the same
        for name, command in action.choices.items():
            below = list(commands_of(command, f"{prefix}{name} "))
            text = command.description or helps[name]
            yield from below or [(f"{prefix}{name}", text, command)]


def shows(action: argparse.Action) -> bool:
    """Whether an argument is the command's own."""
    return action.help != argparse.SUPPRESS and not set(action.option_strings) & set(COMMON)


def argument(action: argparse.Action, *, in_usage: bool = False) -> str:
    """An argument as it is typed."""
    value = "" if action.nargs == 0 or action.metavar is None else str(action.metavar)
    if action.nargs != 0 and not value:
        value = "|".join(action.choices or ()) or action.dest.upper()
    word = " ".join(filter(None, (", ".join(action.option_strings), value)))
    if not in_usage:
        return word.replace("|", "\\|")
    word = word.replace(", ", "|")
    if action.nargs == "*":
        return f"[{word} …]"
    return word if action.required else f"[{word}]"


# --- one name ---------------------------------------------------------------------------------


def entry(package: ModuleType, name: str) -> str:
    """A name with everything that there is to know about it."""
    found = getattr(package, name)
    heading = f"### {name}"
    if inspect.isclass(found) and is_error(found):
        return "\n\n".join([heading, *error_parts(found)])
    if inspect.isclass(found):
        return "\n\n".join([heading, *class_parts(found)])
    if inspect.isfunction(found):
        node = function_node(found)
        return "\n\n".join([heading, code(signature(node, name)), prose(inspect.getdoc(found))])
    return "\n\n".join([heading, *alias_parts(package, name)])


def class_parts(cls: type) -> Iterator[str]:
    """A class: how it is made, what it is, its fields, its methods."""
    node = class_node(cls)
    init = next((each for each in functions_of(node) if each.name == "__init__"), None)
    fields = [each for each in fields_of(node) if each[0] not in INNER.get(cls.__name__, ())]
    is_protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    if cls.__name__ not in GIVEN and not is_protocol:
        if init is not None:
            yield code(signature(init, cls.__name__, without_result=True))
        else:
            yield code(field_signature(node, cls.__name__, fields))
    yield prose(inspect.getdoc(cls))
    properties = [f for f in functions_of(node) if is_decorated(f, "property")]
    is_given = cls.__name__ in GIVEN
    if is_given:
        fields = [(name, annotation, None, text) for name, annotation, _, text in fields]
    rows = [
        # What the signature shows already is repeated only where there is more to say.
        *field_rows([each for each in fields if is_given or each[3]]),
        *(
            row(each.name, each.returns, None, ast.get_docstring(each) or "")
            for each in properties
            if not each.name.startswith("_")
        ),
    ]
    if init is not None:
        rows += field_rows(list(set_fields_of(init)))
    if rows:
        yield "\n".join(["| field | type | |", "|---|---|---|", *rows])
    for each in (method for part in parts_of(cls) for method in methods_of(class_node(part))):
        yield f"#### {cls.__name__}.{each.name}"
        yield code(signature(each, each.name, without_self=True))
        yield prose(ast.get_docstring(each))


def error_parts(cls: type) -> Iterator[str]:
    """An exception: what it is, and what it carries."""
    node = class_node(cls)
    yield f"A kind of `{cls.__bases__[0].__name__}`. {prose(inspect.getdoc(cls))}"
    rows = [row for init in functions_of(node) for row in field_rows(list(set_fields_of(init)))]
    if rows:
        yield "\n".join(["| field | type | |", "|---|---|---|", *rows])


def alias_parts(package: ModuleType, name: str) -> Iterator[str]:
    """A type alias, as the module that defines it says."""
    source = ast.parse(inspect.getsource(package))
    module = next(
        node.module
        for node in source.body
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names)
    )
    body = ast.parse(inspect.getsource(importlib.import_module(module or ""))).body
    for index, node in enumerate(body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            yield code(ast.unparse(node))
            text = string_of(body[index + 1]) if index + 1 < len(body) else ""
            if text:
                yield prose(text)


def short_names() -> Iterator[str]:
    """What `Key` and its like stand for."""
    for module, names in SHORT.items():
        body = ast.parse(inspect.getsource(importlib.import_module(module))).body
        for node in body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
                yield ast.unparse(node).replace("'", '"')


def error_tree() -> str:
    """The tree that errors.py opens with."""
    text = inspect.getdoc(inspect.getmodule(eventlane.EventlaneError)) or ""
    return f"```text\n{text.partition(chr(10) * 2)[2].strip()}\n```"


# --- source -----------------------------------------------------------------------------------


@functools.cache
def class_node(cls: type) -> ast.ClassDef:
    """The definition of a class."""
    module = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return node
    raise LookupError(cls.__name__)


def function_node(function: object) -> Function:
    """The definition of a function."""
    unwrapped = inspect.unwrap(function)  # type: ignore[arg-type]  # it is a function
    node = ast.parse(textwrap.dedent(inspect.getsource(unwrapped))).body[0]
    assert isinstance(node, Function)
    return node


def functions_of(node: ast.ClassDef) -> list[Function]:
    """The functions of a class; of an overloaded one only the last."""
    found = [each for each in node.body if isinstance(each, Function)]
    return [each for each in found if not is_decorated(each, "overload")]


def parts_of(cls: type) -> Iterator[type]:
    """A class, and those that it is put together from and that are no public names themselves."""
    yield cls
    for base in cls.__bases__:
        if base.__module__.startswith("eventlane.") and base.__name__ not in eventlane.__all__:
            yield from reversed(list(parts_of(base)))  # what it stands on comes first


def methods_of(node: ast.ClassDef) -> list[Function]:
    """What users call."""
    return [
        each
        for each in functions_of(node)
        if not each.name.startswith("_") and not is_decorated(each, "property")
    ]


def fields_of(node: ast.ClassDef) -> Iterator[Documented]:
    """The public fields of a class, with what follows each as a string."""
    for index, each in enumerate(node.body):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            name = each.target.id
            if name.startswith("_"):
                continue
            after = node.body[index + 1] if index + 1 < len(node.body) else None
            yield name, each.annotation, each.value, string_of(after)


def set_fields_of(init: Function) -> Iterator[Documented]:
    """What `__init__` sets and documents."""
    types = {each.arg: each.annotation for each in (*init.args.args, *init.args.kwonlyargs)}
    for index, each in enumerate(init.body[:-1]):
        text = string_of(init.body[index + 1])
        target = (
            each.targets[0]
            if isinstance(each, ast.Assign)
            else each.target
            if isinstance(each, ast.AnnAssign)
            else None
        )
        if not text or not isinstance(target, ast.Attribute) or target.attr.startswith("_"):
            continue
        annotation = each.annotation if isinstance(each, ast.AnnAssign) else types.get(target.attr)
        yield target.attr, annotation, None, text


def string_of(node: ast.stmt | None) -> str:
    """The text of a statement that is only a string."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return inspect.cleandoc(str(node.value.value))
    return ""


def is_decorated(node: Function, name: str) -> bool:
    """Whether a decorator of that name stands above it."""
    return any(ast.unparse(each) == name for each in node.decorator_list)


def is_error(found: object) -> bool:
    """Whether it is an exception class."""
    return inspect.isclass(found) and issubclass(found, BaseException)


# --- text -------------------------------------------------------------------------------------


def contents(sections: dict[str, list[str]]) -> str:
    """A line for each section, with links."""
    return "\n".join(
        f"- {title}: " + ", ".join(f"[{name}](#{name.lower()})" for name in names)
        for title, names in sections.items()
        if names
    )


def code(text: str) -> str:
    """A block that shows a signature: no program, so it is not marked as one."""
    return f"```text\n{text}\n```"


def signature(
    node: Function, name: str, *, without_self: bool = False, without_result: bool = False
) -> str:
    """The call as it is declared, one argument a line where it is long."""
    arguments = ast.unparse(node.args)
    if without_self or arguments.startswith("self"):
        arguments = re.sub(r"^self(, /)?(, )?", "", arguments)
    result = "" if without_result or node.returns is None else f" -> {ast.unparse(node.returns)}"
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    manager = any("contextmanager" in ast.unparse(each) for each in node.decorator_list)
    if manager:
        prefix, result = "async with ", ""
    return laid_out(f"{prefix}{name}", split_arguments(arguments), result.replace("'", ""))


def field_signature(node: ast.ClassDef, name: str, fields: Sequence[Documented]) -> str:
    """How a class with fields is called."""
    decorators = " ".join(ast.unparse(each) for each in (*node.decorator_list, *node.keywords))
    keyword_only = "kw_only=True" in decorators
    arguments = ["*"] if keyword_only and fields else []
    marks_the_rest = any(
        isinstance(each, ast.AnnAssign) and ast.unparse(each.annotation) == "KW_ONLY"
        for each in node.body
    )
    for index, (field, annotation, default, _) in enumerate(fields):
        if marks_the_rest and index == 1:
            arguments.append("*")
        argument = f"{field}: {ast.unparse(annotation)}" if annotation else field
        if default is not None:
            argument += f" = {shown_default(default)}"
        arguments.append(argument.replace("'", '"'))
    return laid_out(name, arguments, "")


def laid_out(head: str, arguments: Sequence[str], result: str) -> str:
    """On one line where it fits."""
    line = f"{head}({', '.join(arguments)}){result}"
    if len(line) <= WIDTH:
        return line
    inner = "".join(f"    {each},\n" for each in arguments)
    return f"{head}(\n{inner}){result}"


def split_arguments(text: str) -> list[str]:
    """Arguments apart, at the commas that are not within brackets."""
    parts: list[str] = []
    depth = 0
    current = ""
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "=" and depth == 0 and ":" in current:
            current += " = "  # as it is written beside an annotation
            continue
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [each.replace("'", '"') for each in (*parts, current.strip()) if each]


def shown_default(default: ast.expr) -> str:
    """A default as a reader would write it."""
    text = ast.unparse(default)
    found = re.fullmatch(r"msgspec\.field\(default=(.*)\)", text)
    return found[1] if found else text


def number(default: ast.expr | None) -> str:
    """A default; a large number with thousands marked."""
    value = ast.literal_eval(default) if default is not None else ""
    return f"{value:_}" if isinstance(value, int) else str(value)


def field_rows(fields: Sequence[Documented]) -> list[str]:
    """A line of a table for each field."""
    return [row(name, annotation, default, text) for name, annotation, default, text in fields]


def row(name: str, annotation: ast.expr | None, default: ast.expr | None, text: str) -> str:
    """A line of a table."""
    kind = ast.unparse(annotation).replace("|", "\\|").replace("'", "") if annotation else ""
    shown = f" = {shown_default(default)}" if default is not None else ""
    return f"| `{name}` | `{kind}{shown}` | {one_line(text)} |"


def one_line(text: str) -> str:
    """A docstring in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


_TITLES = {
    "Args": "Arguments",
    "Raises": "Raises",
    "Returns": "Returns",
    "Durability": "Durability",
    "Cancellation": "Cancellation",
}


def prose(text: str | None) -> str:
    """A docstring as Markdown: sections become bold words, their entries lists."""
    out: list[str] = []
    section = ""
    for line in (text or "").splitlines():
        heading = re.fullmatch(r"(\w+):", line)
        if heading and heading[1] in _TITLES:
            section = heading[1]
            out += [f"**{_TITLES[section]}**", ""]
        elif section in ("Args", "Raises") and (item := re.match(r"    (\*{0,2}\w+): (.*)", line)):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            inner = line.strip()
            out.append(f"  {inner}" if section in ("Args", "Raises") else inner)
        else:
            section = "" if line and not line.startswith(" ") else section
            out.append(line)
    return "\n".join(out).strip()


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")

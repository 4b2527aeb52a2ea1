"""Documents as sequences of blocks, and a reader who does what they say.

A document is followed from top to bottom in a directory of its own. What a block is for is said by
an HTML comment on the line above its fence, which a rendered page does not show:

    <!-- file: NAME -->             the block is saved under that name. Where the repository has a
                                    file of that name, the block must be that file.
    <!-- continues -->              a python block that goes on where the one before it ended.
    <!-- output -->                 what the block before it printed.
    <!-- interleaved -->            a console block whose groups print at the same time: lines that
                                    begin with the same word keep their order, others need not.
    <!-- not executed: REASON -->   it is not.

A python block without one of these is run. In a console block each `$ command` is run, and what
follows the command must be what it prints; a line `…` stands for any lines. `$ export NAME=VALUE`
holds for the rest of the document. `await` may stand at the top, as in `python -m asyncio`.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

__all__ = ["ROOT", "Block", "Difference", "blocks_of", "follow", "normalised", "relative_links"]

ROOT = Path(__file__).parent.parent.parent

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z ]+)(?:: (?P<detail>[^>]+?))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_MARKS = {None, "file", "continues", "output", "interleaved", "not executed"}
_COMMAND_S_MAX = 30.0
_BETWEEN = "\x1e"
"""Separates what the blocks of one program print."""

_PROGRAMS = {
    "python": [],
    # As the entry point does it, which is there only where the package is installed.
    "eventlane": ["-c", "import sys; from eventlane.cli import main; sys.exit(main())"],
}

# What runs python blocks that continue each other: one program, one event loop.
_PROGRAM = """
import ast, asyncio, inspect, json, sys, types

module = sys.modules["document"] = types.ModuleType("document")
with asyncio.Runner() as runner:
    for name, text in json.load(sys.stdin):
        code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(code, vars(module)))
        else:
            exec(code, vars(module))
        print("\\x1e", end="", flush=True)
"""


class Difference(AssertionError):
    """A document does not say what happens."""


@dataclass
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str
    mark: str | None
    detail: str
    is_executed: bool = False
    printed: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    """The blocks of a document, by its path within the repository.

    Raises:
        Difference: A mark is none that there is.
    """
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks: list[Block] = []
    for found in _BLOCK.finditer(text):
        block = Block(
            document=document,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            text=found["text"],
            mark=found["mark"],
            detail=found["detail"] or "",
        )
        if block.mark not in _MARKS:
            raise Difference(f"{block}: there is no mark {block.mark!r}")
        blocks.append(block)
    return blocks


def relative_links(document: str) -> list[str]:
    """Where a document links to within the repository, without the part after #."""
    text = _BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    found = [(a or b).partition("#")[0] for a, b in links]
    return [each for each in found if each and "://" not in each and not each.startswith("mailto:")]


def follow(blocks: list[Block], directory: Path) -> None:
    """Do what a document says, in an empty directory.

    Raises:
        Difference: Something else happens than it says.
    """
    exported: dict[str, str] = {}
    for index, block in enumerate(blocks):
        if block.mark == "not executed" or block.is_executed:
            continue
        if block.mark == "file":
            _save(block, directory)
        elif block.mark == "output":
            before = blocks[index - 1]
            if not before.is_executed or before.language != "python":
                raise Difference(f"{block}: there is no program whose output it could be")
            _compare(block, block.text, before.printed, directory)
        elif block.language == "python":
            if block.mark == "continues":
                raise Difference(f"{block}: there is nothing that it could continue")
            later = [b for b in blocks[index + 1 :] if b.language == "python"]
            chain = [block]
            for each in later:
                if each.mark != "continues":
                    break
                chain.append(each)
            _run_program(chain, directory)
        elif block.language == "console":
            _run_session(block, directory, exported)


def _save(block: Block, directory: Path) -> None:
    ours = ROOT / block.detail
    if ours.is_file() and ours.read_text(encoding="utf-8") != block.text:
        raise Difference(f"{block}: is not {block.detail} as the repository has it")
    path = directory / block.detail
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    block.is_executed = block.language != "python"


def _run_program(chain: list[Block], directory: Path) -> None:
    # Blank lines first, so that a traceback has the document's own lines.
    parts = [(str(each.document), "\n" * each.line + each.text) for each in chain]
    ended = _run([sys.executable, "-c", _PROGRAM], directory, given=_json(parts))
    if ended.returncode:
        raise Difference(f"{chain[0]}: ended with {ended.returncode}:\n{ended.stderr}")
    for each, printed in zip(chain, ended.stdout.split(_BETWEEN), strict=False):
        each.printed = printed
        each.is_executed = True


def _run_session(block: Block, directory: Path, exported: dict[str, str]) -> None:
    if not block.text.startswith("$ "):
        raise Difference(f"{block}: expected a first line `$ command`")
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        if command.startswith("export "):
            name, _, exported[name] = command.removeprefix("export ").partition("=")
            continue
        ended = _run(_arguments(command, block), directory, exported=exported)
        printed = ended.stdout
        if ended.returncode < 0:
            printed += "Killed\n"  # which the shell says
        elif ended.returncode and not expected:
            raise Difference(f"{block}: {command!r} ended with {ended.returncode}:\n{printed}")
        _compare(block, expected, printed, directory)
    block.is_executed = True


def _arguments(command: str, block: Block) -> list[str]:
    program, *arguments = shlex.split(command, comments=True)
    if program not in _PROGRAMS:
        raise Difference(f"{block}: runs {program!r}, expected {' or '.join(_PROGRAMS)}; mark it")
    return [sys.executable, *_PROGRAMS[program], *arguments]


def _run(
    arguments: list[str],
    directory: Path,
    *,
    given: str = "",
    exported: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=directory,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if not given else subprocess.PIPE,
        text=True,
        timeout=_COMMAND_S_MAX,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{directory}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",  # what is logged stays where it happens
            "NO_COLOR": "1",
            "COLUMNS": "80",
            # The plugin that this repository uses warns where nobody has said it.
            "PYTEST_ADDOPTS": "-o asyncio_default_fixture_loop_scope=function",
            **exported,
        },
    )


def _json(parts: list[tuple[str, str]]) -> str:
    import json  # noqa: PLC0415  # beside the program that reads it

    return json.dumps(parts)


def _compare(block: Block, expected: str, printed: str, directory: Path) -> None:
    said, found = normalised(expected, directory), normalised(printed, directory)
    if block.mark == "interleaved":
        said, found = _by_first_word(said), _by_first_word(found)
    if not re.fullmatch(re.escape(said).replace("…", ".*"), found, re.DOTALL):
        raise Difference(f"{block}: says\n\n{expected}\nand what is printed is\n\n{printed}")


def _by_first_word(text: str) -> str:
    return "\n".join(sorted(text.splitlines(), key=lambda line: line.partition(" ")[0]))


_VOLATILE = (
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "<time>"),
    (r"\b\d\d:\d\d:\d\d\b", "<time>"),
    (r"\b(127\.0\.0\.1|localhost):\d+", "<address>"),
    (r"\bin \d+\.\d+s\b", "in <duration>"),
    (r"\b\d+ (s|min|h|d) ago\b", "<ago>"),
    (r"\bpid \d+", "pid <pid>"),
    (r'File "[^"]*/([^/"]+)", line \d+', r'File "\1", line <line>'),
    (r"\.{3,} +\[100%\]", "... [100%]"),
)


def normalised(text: str, directory: Path) -> str:
    """The text without what differs from run to run: ids, times, ports, temporary paths.

    Nor how wide the columns of a table are, which times may be in.
    """
    text = text.replace(str(directory), "<directory>")
    for pattern, stands_for in _VOLATILE:
        text = re.sub(pattern, stands_for, text)
    text = re.sub(r"(?<=\S) {2,}", "  ", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())

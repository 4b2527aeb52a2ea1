"""The repository's files as the rules of tidy.py read them."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """One text file of the repository."""

    path: str
    """From the root, with slashes."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> str | None:
        """The dotted name of a module below src, else None."""
        if not (self.path.startswith("src/eventlane/") and self.path.endswith(".py")):
            return None
        name = self.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")

    @property
    def package(self) -> str:
        """What a relative import starts from."""
        parts = PurePosixPath(self.path.removeprefix("src/")).parent.parts
        return ".".join(parts)

    def at(self, line: int, message: str) -> "Finding":
        return Finding(self.path, line, message)

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")

    @property
    def is_vendored(self) -> bool:
        return "/static/" in self.path


@dataclass(frozen=True, order=True)
class Finding:
    """What breaks a rule, where, and what to do instead."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Import:
    line: int
    module: str
    """The module that it reaches; of `from x import y` it is x.y where that is a module."""
    name: str | None
    """The y of `from x import y`, where that is no module."""


def imports_of(
    file: File, modules: frozenset[str], surface: frozenset[str] = frozenset()
) -> Iterator[Import]:
    """Every import, wherever it stands: under TYPE_CHECKING and in functions, too.

    A name of the surface hides a module that is called the same: `from eventlane import event`.
    """
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = file.package.split(".")
                above = parts[: len(parts) - node.level + 1]
                source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                if full in modules and not (source == "eventlane" and alias.name in surface):
                    yield Import(node.lineno, full, None)
                else:
                    yield Import(node.lineno, source, alias.name)


def is_or_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def modules_of(files: Iterable[File]) -> frozenset[str]:
    return frozenset(f.module for f in files if f.module)


def names_in(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from names_in(element)


def top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, those under `if` and `try` included."""
    for node in body:
        if isinstance(node, ast.If):
            yield from top_level([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [n for h in node.handlers for n in h.body]
            yield from top_level([*node.body, *handlers, *node.orelse, *node.finalbody])
        else:
            yield node


def is_private_to_typing(value: ast.expr | None) -> bool:
    """Type variables and loggers carry public-looking names by custom."""
    return isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in {
        "ParamSpec",
        "TypeVar",
        "TypeVarTuple",
        "getLogger",
    }


def definitions_of(file: File) -> dict[str, int]:
    """The names that a module defines itself, with their lines."""
    names: dict[str, int] = {}
    for node in top_level(file.tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node.lineno
        elif isinstance(node, ast.Assign) and not is_private_to_typing(node.value):
            names |= {name: node.lineno for t in node.targets for name in names_in(t)}
        elif isinstance(node, ast.AnnAssign) and not is_private_to_typing(node.value):
            names |= dict.fromkeys(names_in(node.target), node.lineno)
    return names


def imported_names(file: File) -> dict[str, int]:
    return {
        (alias.asname or alias.name): node.lineno
        for node in top_level(file.tree.body)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def stated_all(file: File) -> tuple[int, list[str]] | None:
    for node in file.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            assert isinstance(node, ast.Assign)
            try:
                return node.lineno, list(ast.literal_eval(node.value))
            except ValueError:
                return None
    return None


def public_names(files: Iterable[File]) -> frozenset[str]:
    """What eventlane.__all__ says."""
    root = next((f for f in files if f.path == "src/eventlane/__init__.py"), None)
    stated = stated_all(root) if root else None
    return frozenset(stated[1]) if stated else frozenset()


def python_files(files: Iterable[File], *prefixes: str) -> Iterator[File]:
    return (f for f in files if f.is_python and f.path.startswith(prefixes or ("",)))


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function, without those of functions and classes within."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def has_decorator(node: Function, name: str) -> bool:
    return any(ast.unparse(d).split(".")[-1] == name for d in node.decorator_list)


def is_number(annotation: ast.expr | None) -> bool:
    """Whether an annotation is int or float, optional or not."""
    if annotation is None:
        return False
    words = set(re.findall(r"[\w.]+", ast.unparse(annotation)))
    return bool(words & {"int", "float"}) and words <= {"int", "float", "None", "Optional"}


def numbers_in(tree: ast.AST, owner: str) -> Iterator[tuple[str, str, int]]:
    """Parameters and fields that are numbers: (class or function, name, line)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                match field:
                    case ast.AnnAssign(target=ast.Name(id=name)) if is_number(field.annotation):
                        yield node.name, name, field.lineno
            yield from numbers_in(node, node.name)
        elif isinstance(node, Function):
            arguments = node.args
            for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                if is_number(a.annotation):
                    yield owner or node.name, a.arg, a.lineno
            yield from numbers_in(node, owner)
        else:
            yield from numbers_in(node, owner)


def dotted_names(file: File) -> Iterator[tuple[int, str]]:
    """Every name as it is used, by its full dotted name: `from time import time as t` undone."""
    aliases: dict[str, str] = {}
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            aliases |= {
                (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0])
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(file.tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and isinstance(node, ast.Attribute):
            if inner.id in aliases:
                yield node.lineno, ".".join([aliases[inner.id], *reversed(parts)])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.lineno, aliases.get(node.id, node.id)

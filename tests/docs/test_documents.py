"""The documents say what happens: every block is run, and every output is compared."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.documents import ROOT, Block, Difference, blocks_of, follow, relative_links

DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]

NOT_EXECUTED = {
    "README.md": 3,  # what make and `prove` do has tests of its own
    "docs/howto/fastapi.md": 1,  # a server that runs until it is stopped
}
"""How many blocks of a document are not executed; each says why where it stands."""

WORDS = {
    r"re-?drive[sn]?|re-?queue[sd]?": "replay",
    r"consumer groups?": "group",
    r"topic partitions?": "partition",
    r"poison (?:pills?|messages?)": "a failing event",
    r"dead.letter(?:ed|ing)": "becomes a dead letter",
    r"ack(?:s|ed|nowledges?)? the (?:event|message)": "settle",
    r"blazing\w*|seamless\w*|effortless\w*|powerful|robust|simply|just works|modern|elegant\w*": "",
}
"""One word per idea, and none that only praises."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_says_is_what_happens(document: str, tmp_path: Path) -> None:
    blocks = blocks_of(document)
    follow(blocks, tmp_path)
    files = [block for block in blocks if block.mark == "file" and block.language == "python"]
    for each in files:
        each.is_executed = is_used(each, blocks)
    left = [b for b in blocks if b.language in ("python", "console") and not b.is_executed]
    skipped = [block for block in left if block.mark == "not executed"]
    assert left == skipped, "neither run nor marked: " + ", ".join(map(str, left))
    assert all(block.detail for block in skipped), "no reason is given"
    assert len(skipped) == NOT_EXECUTED.get(document, 0), [str(block) for block in skipped]


def is_used(file: Block, blocks: list[Block]) -> bool:
    """Whether a command of the document runs this file, or runs one that imports it."""
    module = file.detail.removesuffix(".py").replace("/", ".")
    commands = [
        line
        for block in blocks
        if block.language == "console" and block.mark != "not executed" and block.line > file.line
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]
    if any(file.detail in line or re.search(rf"\b{module}\b", line) for line in commands):
        return True
    if any("pytest" in line for line in commands) and Path(file.detail).name.startswith("test_"):
        return True
    importers = [b for b in blocks if b is not file and module in imports_of(b)]
    return any(b.is_executed or (b.mark == "file" and is_used(b, blocks)) for b in importers)


def imports_of(block: Block) -> set[str]:
    if block.language != "python":
        return set()
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree = compile(block.text, str(block), "exec", flags)
    assert isinstance(tree, ast.Module)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    here = (ROOT / document).parent
    lost = [link for link in relative_links(document) if not (here / link).exists()]
    assert not lost


@pytest.mark.parametrize("document", DOCUMENTS)
def test_one_word_is_used_per_idea(document: str) -> None:
    prose = re.sub(r"`[^`\n]*`", "", (ROOT / document).read_text(encoding="utf-8"))
    found = [
        f"{match[0]!r}: expected {instead or 'nothing, it only praises'}"
        for word, instead in WORDS.items()
        for match in re.finditer(rf"\b(?:{word})\b", prose, re.IGNORECASE)
    ]
    assert not found


def test_every_document_is_in_the_index() -> None:
    linked = {str(Path("docs") / link) for link in relative_links("docs/README.md")}
    assert {each for each in DOCUMENTS[1:] if each != "docs/README.md"} <= linked


# --- the reader itself ------------------------------------------------------------------------


def document(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    monkeypatch.setattr("tests.docs.documents.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    return blocks_of("page.md")


def test_an_output_that_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "```python\nx = 1\nprint(x)\n```\n\n<!-- output -->\n```text\n2\n```\n"
    with pytest.raises(Difference, match=r"page\.md:7: says"):
        follow(document(tmp_path, text, monkeypatch), tmp_path)


def test_a_block_that_continues_another_sees_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "```python\nx = 1\n```\n\n<!-- continues -->\n```python\nprint(x)\n```\n\n"
        "<!-- output -->\n```text\n1\n```\n"
    )
    blocks = document(tmp_path, text, monkeypatch)
    follow(blocks, tmp_path)
    assert [block.printed for block in blocks] == ["", "1\n", ""]


def test_a_command_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '```console\n$ python -c "raise SystemExit(3)"\n```\n'
    with pytest.raises(Difference, match="ended with 3"):
        follow(document(tmp_path, text, monkeypatch), tmp_path)


def test_a_file_that_is_not_the_repositorys_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text("x = 1\n")
    text = "<!-- file: shop.py -->\n```python\nx = 2\n```\n"
    with pytest.raises(Difference, match="as the repository has it"):
        follow(document(tmp_path, text, monkeypatch), tmp_path / "elsewhere")


def test_what_is_exported_holds_for_the_rest_of_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = 'python -c "import os; print(os.environ.get(chr(72) + chr(73)))"'
    text = (
        f"```console\n$ {program}\nNone\n$ export HI=there\n```\n\n"
        f"```console\n$ {program}\nthere\n```\n"
    )
    follow(document(tmp_path, text, monkeypatch), tmp_path)

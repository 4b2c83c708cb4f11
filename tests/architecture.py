"""The import graph of our source files, and the size of the house.

`python -m tests.architecture [root]` prints the size of the checkout at `root`, else of this one.

The graph is read from the syntax trees of the files; no file is imported. It has one arrow for each
import statement that names a file of ours, wherever in a file the statement stands.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Our packages, and the folder below the root that each one is imported from.
PACKAGES = {"abmll": ".", "model_store": ".", "lab": ".", "service": ".", "abmll_client": "client"}

Statement = ast.Import | ast.ImportFrom


class When(Enum):
    """When an import statement runs."""

    AT_IMPORT = "when the file is imported"
    ON_CALL = "when a function of the file is called"
    NEVER = "never: it is under TYPE_CHECKING"


@dataclass(frozen=True, order=True)
class Import:
    """File `source` imports file `target`.

    Both are dotted names; a package's is that of its `__init__.py`.
    """

    source: str
    target: str
    when: When = When.AT_IMPORT

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


def source_files(root: Path = ROOT) -> dict[str, Path]:
    """Map the dotted name of every Python file of our packages to its path."""
    files = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder / package).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_imports(files: Mapping[str, Path]) -> list[Import]:
    """Return the imports among `files`, sorted; two files appear once for each `When`."""
    found: set[Import] = set()
    for name, path in files.items():
        for statement, when in import_statements(ast.parse(path.read_text(encoding="utf-8"))):
            targets = _targets(statement, room(name, files), files)
            found |= {Import(name, target, when) for target in targets if target != name}
    return sorted(found, key=lambda edge: (edge.source, edge.target, edge.when.name))


def import_statements(tree: ast.AST, when: When = When.AT_IMPORT) -> Iterator[tuple[Statement, When]]:
    """Yield every import statement below `tree`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Statement):
            yield node, when
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_statements(node, When.ON_CALL)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_statements(ast.Module(node.body, []), When.NEVER)
            yield from import_statements(ast.Module(node.orelse, []), when)
        else:
            yield from import_statements(node, when)


def _targets(statement: Statement, package: str, files: Mapping[str, Path]) -> set[str]:
    """Return the files that `statement`, in a file of `package`, names.

    `from a.b import c` names the file a.b.c where there is one, else the file a.b.
    """
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names} & set(files)
    parts = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
    base = ".".join([*parts, *([statement.module] if statement.module else [])])
    named = {f"{base}.{alias.name}" for alias in statement.names}
    return {name if name in files else base for name in named} & set(files)


def room(name: str, files: Mapping[str, Path]) -> str:
    """Return the dotted name of the folder that holds the file `name`."""
    return name if files[name].name == "__init__.py" else name.rpartition(".")[0]


def reached(imports: Iterable[Import]) -> dict[str, set[str]]:
    """Map every file that imports others to all files that it needs, directly or through others."""
    targets: dict[str, set[str]] = {}
    for edge in imports:
        targets.setdefault(edge.source, set()).add(edge.target)
    return {name: _reached(name, targets) for name in targets}


def _reached(start: str, targets: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = targets.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def circles(imports: Iterable[Import]) -> list[list[str]]:
    """Return the groups of files that import each other in a circle.

    A group has two or more files, each of which reaches all others of the group.
    """
    needs = reached(imports)
    groups = {
        frozenset(other for other in found if name in needs.get(other, ()))
        for name, found in needs.items()
        if name in found
    }
    return sorted(sorted(group) for group in groups)


@dataclass(frozen=True)
class Size:
    """What is counted of a checkout.

    `lines` are those that are not empty. `rooms` are folders that hold Python files. `imports` are
    pairs of files of which the first imports the second, `arrows` are such pairs of rooms.
    `needed_files` is the mean, over files, of how many others a file needs, directly or through
    others. `circles` are as in `circles`. All imports count, whenever they run.
    """

    lines: int
    files: int
    rooms: int
    files_in_the_fullest_room: int
    imports: int
    arrows: int
    needed_files: float
    circles: int


def measure(root: Path = ROOT) -> Size:
    """Count the source of our packages below `root`."""
    files = source_files(root)
    edges = {(edge.source, edge.target) for edge in read_imports(files)}
    arrows = {(room(source, files), room(target, files)) for source, target in edges}
    rooms = Counter(room(name, files) for name in files)
    texts = (path.read_text(encoding="utf-8") for path in files.values())
    return Size(
        lines=sum(sum(bool(line.strip()) for line in text.splitlines()) for text in texts),
        files=len(files),
        rooms=len(rooms),
        files_in_the_fullest_room=max(rooms.values()),
        imports=len(edges),
        arrows=sum(source != target for source, target in arrows),
        needed_files=sum(map(len, reached(Import(*edge) for edge in edges).values())) / len(files),
        circles=len(circles(Import(*edge) for edge in edges)),
    )


if __name__ == "__main__":
    size = measure(*map(Path, sys.argv[1:]))
    for field in fields(size):
        print(f"{field.name.replace('_', ' '):28}{getattr(size, field.name):8.5g}")

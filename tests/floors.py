"""The floors of the package and who may import whom, as code.

`breaches` reads sources and returns one line for each broken rule.
"""

import ast
import sys
from collections.abc import Iterator, Mapping

PACKAGE = "clara_jax"

FLOORS = {
    "errors": 0,
    "shapes": 0,
    "config": 0,
    "documents": 1,
    "files": 1,
    "lance_files": 2,
    "native": 2,
    "places": 3,
    "commands": 2,
    "sharding": 1,
    "text": 1,
    "model": 2,
    "checkpoint": 2,
    "distributed": 2,
    "clara": 3,
    "data": 4,
    "search": 4,
    "convert": 4,
    "generate": 4,
    "evaluate": 5,
    "loading": 5,
    "stages": 6,
    "testing": 7,
    "train": 7,
    "quickstart": 8,
    "pipeline": 8,
    "plan": 8,
    "answer": 8,
    "compress": 8,
}
"""Floor of each room: a folder or a file directly under the package."""

NEIGHBOURS = {("config", "errors")}
"""Imports allowed on one floor: the one error is for everybody."""

FLAX_ROOMS = {"model", "clara"}
FOREIGN = {"torch", "tensorflow"}
"""Never imported, though dependencies may look for them."""


def breaches(sources: Mapping[str, str]) -> list[str]:
    """Broken rules in `sources`, a mapping from module names to their text.

    A package's ``__init__`` goes by the package's name.
    """
    found = []
    edges: dict[str, set[str]] = {module: set() for module in sources}
    for module, text in sorted(sources.items()):
        for line, target in _imports(module, text, sources):
            root = target.split(".")[0]
            if root == PACKAGE:
                edges[module].add(target)
                broken = _internal(module, target)
            else:
                broken = _external(module, root)
            if broken:
                found.append(f"{module}:{line}: {broken}")
    return found + [" -> ".join(cycle) + ": a cycle" for cycle in _cycles(edges)]


def room(module: str) -> str:
    """The folder or file under the package that `module` is or lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _imports(
    module: str, text: str, known: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                yield node.lineno, f"{PACKAGE}.{module}.relative"
                continue
            for alias in node.names:
                if (base, alias.name) == (PACKAGE, "__version__"):
                    continue
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known else base


def _internal(module: str, target: str) -> str:
    if target.endswith(".relative"):
        return "relative import; write the full name"
    mine, theirs = room(module), room(target)
    if module.endswith(".__main__"):
        return ""
    if target.endswith(".__main__"):
        return f"imports {target}, which is a command"
    if mine == theirs:
        return ""
    if not theirs:
        return f"imports {PACKAGE} itself, which lists everything; import the room"
    for name in (mine, theirs):
        if name and name not in FLOORS:
            return f"'{name}' has no floor yet: give it one in tests/floors.py"
    if not mine or (mine, theirs) in NEIGHBOURS:
        return ""
    if FLOORS[theirs] >= FLOORS[mine]:
        return (
            f"imports {target}: floor {FLOORS[mine]} may not know floor "
            f"{FLOORS[theirs]}"
        )
    return ""


def _external(module: str, root: str) -> str:
    if root in FOREIGN:
        return f"imports {root}"
    if root == "flax" and room(module) not in FLAX_ROOMS:
        return "imports flax, which only model/ and clara/ may"
    if root in ("tests", "configs"):
        return f"imports {root}, which is not part of the package"
    if room(module) in ("errors", "config") and root not in sys.stdlib_module_names:
        return f"imports {root}: settings and errors need nothing installed"
    return ""


def _cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    done: set[str] = set()
    cycles = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(edges.get(module, ())):
            visit(target, [*path, module])
        done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return cycles

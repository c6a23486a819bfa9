"""How the package is built, in numbers: files, functions, names and imports, read from the source with `ast`.

    python -m benchmarks.structure [FOLDER] [--against FOLDER]

1. A folder is a checkout; its package is ``mechunlearn/``. Tests, benchmarks and documents are not counted.
2. A function's length is the number of its lines from ``def`` on, without its docstring.
3. A filler name is a word such as ``found`` that says nothing about the value it is bound to. A function
   binds one as a parameter or by assignment; what a nested function binds counts for the nested function.
   The operand of a special method (``__eq__(self, other)``) is Python's own convention and does not count.
4. An import arrow leads from one top-level part of the package to another, however many files follow it.
   Imports within functions count, imports for type checking alone do not.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

PACKAGE = "mechunlearn"
FILLERS = frozenset(
    "found kept asked said given theirs whole own place told taken made other wanted known seen put".split()
)


def measure(checkout: Path) -> dict[str, str]:
    """Measure one checkout.

    Args:
        checkout: the folder that holds the package.

    Returns:
        Every figure as text, by its name.
    """
    root = checkout / PACKAGE
    entries = [path for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    entries = [path for path in entries if path.name != "__init__.py"]
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    named = {
        f"{path.relative_to(root).as_posix()}:{function.name}": function
        for path, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, Function)
    }
    lengths = {name: _length(function) for name, function in named.items()}
    parameters = {name: len(_parameters(function)) for name, function in named.items()}
    longest, widest = max(lengths, key=lengths.__getitem__), max(parameters, key=parameters.__getitem__)
    filled = sum(not FILLERS.isdisjoint(_bound_names(function)) for function in named.values())
    arrows = {arrow for path, tree in trees.items() for arrow in _arrows(path.relative_to(root), tree)}
    p90 = sorted(lengths.values())[math.ceil(0.9 * len(lengths)) - 1]
    return {
        "entries under the package": f"{len(entries)}",
        "of these, rooms (packages)": f"{sum(path.is_dir() for path in entries)}",
        "files": f"{len(sources):,}",
        "lines": f"{sum(len(source.splitlines()) for source in sources.values()):,}",
        "functions": f"{len(named):,}",
        "function length, median": f"{median(lengths.values()):g}",
        "function length, 90th percentile": f"{p90}",
        "longest function": f"{lengths[longest]} (`{longest}`)",
        "functions that bind a filler name": f"{filled} ({filled / len(named):.1%})",
        "import arrows between top-level parts": f"{len(arrows)}",
        "parameters of the longest signature": f"{parameters[widest]} (`{widest}`)",
    }


def _length(function: Function) -> int:
    """The lines of a function without its docstring."""
    end = function.end_lineno or function.lineno
    lines = end - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def _parameters(function: Function) -> list[str]:
    """The names of a function's parameters, without the instance or class that a method is bound to."""
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    listed += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [argument.arg for argument in listed if argument.arg not in ("self", "cls")]


def _bound_names(function: Function) -> Iterator[str]:
    """The names that a function binds by itself, as parameters or by assignment."""
    special = function.name.startswith("__") and function.name.endswith("__")
    yield from (name for name in _parameters(function) if not (special and name == "other"))
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Lambda):
            yield from (argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        stack += ast.iter_child_nodes(node)


def _arrows(path: Path, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The top-level parts of the package that a file's own part imports."""
    part = path.parts[0].removesuffix(".py")
    stack: list[ast.AST] = [tree] if part != "__init__" else []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            modules = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        names = [module.split(".") for module in modules]
        targets = [name[1] for name in names if name[0] == PACKAGE and len(name) > 1]
        yield from ((part, target) for target in targets if target != part)
        stack += ast.iter_child_nodes(node)


def main() -> None:
    """Print the figures of one checkout, or of two beside each other as a markdown table."""
    parser = argparse.ArgumentParser(description="Measure how the package is built.")
    here = Path(__file__).parents[1]
    parser.add_argument("folder", type=Path, nargs="?", default=here, help="checkout to measure")
    parser.add_argument("--against", type=Path, help="older checkout to compare with")
    options = parser.parse_args()
    after = measure(options.folder)
    if options.against is None:
        width = max(map(len, after))
        print("\n".join(f"{name:{width}}  {value}" for name, value in after.items()))
        return
    before = measure(options.against)
    rows = [("", "before", "after"), ("---",) * 3, *((name, before[name], after[name]) for name in after)]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()

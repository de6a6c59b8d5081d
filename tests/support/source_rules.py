"""Rules about source files, as functions from a file's text to a list of complaints."""

import ast
from collections.abc import Iterator

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def too_long_file(source: str) -> list[str]:
    num_lines = len(source.splitlines())
    return [f"{num_lines} lines, limit {MAX_FILE_LINES}"] if num_lines > MAX_FILE_LINES else []


def too_long_functions(source: str) -> list[str]:
    """A Triton kernel counts from its body on: each of its arguments stands in a line of its own."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or node.lineno) - _first_line(node) + 1 for node in functions}
    return [
        f"{name} has {length} lines, limit {MAX_FUNCTION_LINES}"
        for name, length in lengths.items()
        if length > MAX_FUNCTION_LINES
    ]


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    is_kernel = any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)
    return node.body[0].lineno if is_kernel else node.lineno


def imported_modules(source: str) -> Iterator[str]:
    """Full names: ``from torch import distributed`` gives torch and torch.distributed. Imports in functions count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(source: str, *forbidden: str) -> list[str]:
    return sorted(
        {
            f"imports {module}"
            for module in imported_modules(source)
            for name in forbidden
            if module == name or module.startswith(name + ".")
        }
    )


def environment_reads(source: str) -> list[str]:
    names = {"environ", "getenv", "putenv"}
    return [
        f"line {node.lineno} uses os.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ] + imports_of(source, *(f"os.{name}" for name in names))

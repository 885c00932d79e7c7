"""The rooms and who may enter whom (docs/architecture.md): walked on the import statements, not on trust."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("models", "training", "service")

#: What each room may import beside the standard library and itself.
ALLOWED = {
    "models": {"numpy", "pydantic", "yaml"},
    "service": {
        "models",
        "backports",
        "confluent_kafka",
        "compression",  # of the standard library from Python 3.14 on
        "duckdb",
        "fastapi",
        "google",  # protobuf
        "grpc",
        "httptools",
        "msgspec",
        "numpy",
        "onnxruntime",
        "opentelemetry",
        "orjson",
        "prometheus_client",
        "psycopg",
        "pydantic",
        "pydantic_settings",
        "starlette",
        "uvicorn",
        "uvloop",
        "yaml",
    },
    "training": {
        "models",
        "numpy",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "onnxscript",
        "optuna",
        "pyarrow",
        "pydantic",
        "rich",
        "numba",
        "torch",
        "yaml",
    },
}


def imports_of(source: Path) -> set[str]:
    """The top-level names that a file imports, at whatever depth in it the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str):
    """`models` imports neither program; the programs never import each other; torch lives in training alone."""
    sources = sorted((ROOT / room).rglob("*.py"))
    assert sources, f"{room}/ holds no Python file"
    allowed = ALLOWED[room] | {room} | set(sys.stdlib_module_names)

    strangers = {
        f"{path.relative_to(ROOT)}: {name}" for path in sources for name in imports_of(path) if name not in allowed
    }

    assert not strangers


def test_the_statistics_need_no_web_framework():
    """service/answers/ is arithmetic on arrays: numpy, what reads the experiment file, and nothing that serves."""
    allowed = {"models", "numpy", "pydantic", "service"} | set(sys.stdlib_module_names)
    may_enter = ("service.answers", "service.errors", "service.experiments")
    sources = sorted((ROOT / "service" / "answers").glob("*.py"))
    assert sources, "service/answers/ holds no Python file"

    for path in sources:
        modules = modules_of(path)
        assert {name.partition(".")[0] for name in modules} <= allowed, path.name
        assert all(name.startswith(may_enter) for name in modules if name.startswith("service")), path.name


def modules_of(source: Path) -> set[str]:
    """The full names of the modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_walk_finds_an_import_hidden_in_a_function(tmp_path: Path):
    """The check above can fail: a lazy import counts as much as one on the first line."""
    source = tmp_path / "hidden.py"
    source.write_text("def f():\n    import torch.nn\n    from training import loop\n")

    assert imports_of(source) == {"torch", "training"}

"""The import law, read out of the sources: which room may use which, and which rooms stay clear of heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scratchlm"
ROOMS = {
    "files": {"files"},
    "text": {"text", "files"},
    "model": {"model", "files"},
    "data": {"data", "files", "text", "model"},
    "training": {"training", "files", "text", "model"},
    "inference": {"inference", "files", "text", "model"},
}
ANYONE = {"errors", "process", "__version__"}
WITHOUT_TORCH = [
    *(f"scratchlm.text.{path.stem}" for path in (SOURCE / "text").glob("[!_]*.py")),
    *(f"scratchlm.files.{path.stem}" for path in (SOURCE / "files").glob("[!_]*.py")),
    *(f"scratchlm.data.{name}" for name in ("bins", "mixture", "windows", "preparation", "inspection", "tracing")),
    "scratchlm.cli",
    "scratchlm.training.report",
]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, imports hidden in functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield f"{node.module}.{node.names[0].name}" if node.module == "scratchlm" else str(node.module)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_law_allows(room: str) -> None:
    files = sorted((SOURCE / room).rglob("*.py"))
    assert len(files) > 1
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("scratchlm.")}
        assert used <= ROOMS[room] | ANYONE, f"{path} imports {used - ROOMS[room] - ANYONE}"


def test_every_folder_of_the_package_is_a_room() -> None:
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.stem for path in SOURCE.glob("*.py")} == {
        "__init__",
        "__main__",
        "cli",
        "errors",
        "process",
        "ranks",
        "run",
        "run_faults",
        "run_folder",
        "run_memory",
        "run_configuration",
        "run_corpus",
        "run_settings",
    }


@pytest.mark.parametrize("room", ["inference", "model"])
def test_lightning_stays_out_of_the_model_and_of_inference(room: str) -> None:
    for path in (SOURCE / room).rglob("*.py"):
        assert not any(name.split(".")[0] in ("lightning", "torchmetrics", "datasets") for name in imports(path)), path


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_text_and_preparation_run_without_torch(module: str) -> None:
    heavy = ("torch", "lightning", "datasets", "wandb")
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_no_module_re_exports_another() -> None:
    for path in SOURCE.rglob("__init__.py"):
        assert not list(imports(path)), path

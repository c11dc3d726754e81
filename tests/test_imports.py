"""The house: rooms import only what stands above them, and nothing heavy happens before it is asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aird_mlx_cli.options import tomllib
from test_docs import ROOT, file_map

PACKAGE = ROOT / "aird_mlx"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ("mlx", "numpy", "transformers", "rich", "huggingface_hub", "gguf", "matplotlib")


def room_of(module: str) -> str:
    """``aird_mlx.pruning.masks`` is in the room ``pruning``."""
    return [*module.split("."), ""][1]


def imported_modules(path: Path) -> Iterator[str]:
    """Every module a file imports anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "cli", f"{path} has a relative import"
            if node.module == "aird_mlx":
                yield from (f"aird_mlx.{name.name}" for name in node.names)
            elif node.module and not node.level:
                yield node.module


def reading_order() -> list[str]:
    """The rooms as the README's file map lists them."""
    return [Path(entry).stem for entry in file_map() if entry.startswith("aird_mlx/")]


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_only_rooms_above_it(path: Path) -> None:
    order = reading_order()
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported_modules(path):
        if module.startswith("aird_mlx.") and not module.startswith("aird_mlx.__"):
            other = room_of(module)
            assert other == room or order.index(other) < order.index(room), f"{room} imports {other}, which is below it"


def test_only_render_modules_import_rich() -> None:
    importers = {
        path.name
        for folder in (PACKAGE, ROOT / "cli")
        for path in folder.rglob("*.py")
        if any(module.split(".")[0] == "rich" for module in imported_modules(path))
    }
    assert importers == {"render.py", "render_direction.py", "render_repair.py"}


def test_every_imported_package_is_declared() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["serve"] + extras["sign"]
    declared = {re.split(r"[^a-z0-9_-]", name.lower())[0].replace("-", "_") for name in requirements}
    # sentencepiece comes with mlx-lm and is asked for only by models that need it.
    declared |= {"sentencepiece", "llama_cpp", "aird_mlx"}
    for folder in (PACKAGE, ROOT / "cli"):
        for path in folder.rglob("*.py"):
            for module in imported_modules(path):
                name = module.split(".")[0]
                assert name in declared or name in sys.stdlib_module_names, f"{path} imports {name}"


def test_importing_the_library_imports_no_mlx() -> None:
    assert heavy_after("import aird_mlx") == []


def test_process_that_only_quantizes_waits_for_nothing_heavy() -> None:
    assert heavy_after("import aird_mlx.libllama") == []


def test_help_imports_nothing_heavy() -> None:
    assert heavy_after("from aird_mlx_cli.main import main; main(['repair', '--help']); main(['--help'])") == []


def test_library_first_use_finds_every_public_name() -> None:
    import aird_mlx

    assert [name for name in aird_mlx.__all__ if not hasattr(aird_mlx, name)] == []


def heavy_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has imported after running ``code``."""
    probe = f"{code}; import sys; print('\\n' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_options_are_parsed_before_the_library_is_imported() -> None:
    """Else MLX would be there before `start_library` gives it its BLAS."""
    lines = {
        "export": ["demo", "--split-max-size", "2G", "--imatrix", "measure", "--outtype", "f16,q4_k_m"],
        "repair": ["demo", "-q", "--gguf", "q8_0", "--pattern", "2:4"],
        "prune": ["demo", "--prune-method", "sparsegpt", "--out", "x"],
        "quantize": ["demo", "--method", "gptq", "--out", "x"],
        "eval": ["demo", "--attack", "system"],
    }
    parsed = f"[aird_mlx.commands[name].make_context(name, given) for name, given in {lines!r}.items()]"
    assert heavy_after(f"from aird_mlx_cli.main import aird_mlx; {parsed}") == []


def test_packaging_lists_every_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")}
    # Folders of data files are packages to setuptools.
    expected = {".".join(folder.parts) for folder in folders} | {"aird_mlx_cli", "aird_mlx.data", "aird_mlx.demo.model"}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == expected

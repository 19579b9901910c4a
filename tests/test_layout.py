"""The order of the house, read from the imports: floors only look down, and nothing runs in circles."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. The command stands above the other faces, which it starts.
FLOORS = (
    "errors",
    "paths",
    "seeding",
    "text",
    "config",
    "sizes",
    "topics",
    "runs",
    "compute",
    "models",
    "inference",
    "leakage",
    "synthetic_data",
    "sft",
    "evaluation",
    "mending",
    "reporting",
    "sharing",
    "pipeline",
    "session",
    "tui",
    "demo",
    "cli",
)
FACES = FLOORS.index("tui")
PACKAGES = ("unlearn_mlx", "tui", "demo")
MEASURED = (*PACKAGES, "tests", "benchmarks", "tools", "examples")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


class Import(NamedTuple):
    """One module that a file names, and where."""

    module: str
    line: int
    is_for_types: bool


def module_of(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {module_of(path, root): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    return {**found, "demo_app": root / "demo_app.py"}


def imports_of(path: Path, known: dict[str, Path]) -> list[Import]:
    """The modules of ours that a file imports, inside functions and for types too."""
    name = next(name for name, other in known.items() if other == path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[Import] = []
    for node, is_for_types in _statements(ast.parse(path.read_text()), False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # What is taken out of a package may be a module itself.
            inside = [f"{base}.{alias.name}" for alias in node.names]
            names = [module if module in known else base for module in inside]
        found += [Import(module, node.lineno, is_for_types) for module in dict.fromkeys(names)]
    return [each for each in found if each.module in known and each.module != name]


def _statements(tree: ast.AST, for_types: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, for_types
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for part, inside in ((node.body, True), (node.orelse, for_types)):
                yield from _statements(ast.Module(part, []), inside)
        else:
            yield from _statements(node, for_types)


def floor_of(module: str) -> int:
    """How high a module stands. A package's ``__main__`` is an entry point, thus a face."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "unlearn_mlx" else first
    if module == "unlearn_mlx":
        return -1
    if first == "demo_app" or module.endswith(".__main__"):
        return len(FLOORS)
    return FLOORS.index(room)


def climbing(known: dict[str, Path]) -> list[str]:
    """Imports that go up."""
    return [
        f"{module}:{each.line} imports {each.module}"
        for module, path in known.items()
        for each in imports_of(path, known)
        if floor_of(each.module) > floor_of(module)
    ]


def circles(known: dict[str, Path]) -> list[str]:
    """Groups of modules that need one another. What is imported for types alone needs nothing."""
    needs = {
        module: {each.module for each in imports_of(path, known) if not each.is_for_types}
        for module, path in known.items()
    }
    below = {module: _reached_from(module, needs) for module in known}
    groups = {frozenset({one, *(other for other in below[one] if one in below[other])}) for one in known}
    return sorted(" - ".join(sorted(group)) for group in groups if len(group) > 1)


def _reached_from(module: str, needs: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    todo = [module]
    while todo:
        new = needs[todo.pop()] - reached
        reached |= new
        todo += new
    return reached


def measured_files() -> list[Path]:
    inside = [path for folder in MEASURED for path in (ROOT / folder).rglob("*.py")]
    return [*sorted(inside), ROOT / "demo_app.py"]


def test_every_module_has_a_floor():
    homeless = [
        module
        for module in modules()
        if module.partition(".")[0] == "unlearn_mlx"
        and module != "unlearn_mlx"
        and module.split(".")[1] not in (*FLOORS[:FACES], "cli")
    ]
    assert not homeless, "\n".join(homeless)


def test_imports_only_go_down():
    found = climbing(modules())
    assert not found, "\n".join(found)


def test_faces_do_not_lean_on_each_other():
    # The command starts the terminal app; the demo is started as a program of its own.
    known = modules()
    leaning = [
        f"{module}:{each.line} imports {each.module}"
        for module, path in known.items()
        for each in imports_of(path, known)
        if FACES <= floor_of(module) != floor_of(each.module) >= FACES
        and (module, each.module) != ("unlearn_mlx.cli.apps", "tui.app")
        and floor_of(module) < len(FLOORS)
    ]
    assert not leaning, "\n".join(leaning)


def test_no_modules_need_one_another():
    found = circles(modules())
    assert not found, "\n".join(found)


def test_importing_the_package_does_nothing():
    known = modules()
    assert imports_of(known["unlearn_mlx"], known) == []


def test_no_file_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in measured_files()}
    long = [f"{path.relative_to(ROOT)}: {lines}" for path, lines in lengths.items() if lines > LONGEST_FILE]
    assert not long, "\n".join(long)


def test_no_function_is_long():
    long = []
    for path in measured_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, "\n".join(long)


@pytest.fixture
def house(tmp_path):
    """A house of two rooms, in whose files a test writes."""

    def build(**files: str) -> dict[str, Path]:
        paths = {f"unlearn_mlx.{name.replace('__', '.')}": text for name, text in files.items()}
        known = {}
        for module, text in paths.items():
            path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            known[module] = path
        return known

    return build


@pytest.mark.parametrize(
    "text",
    [
        "from unlearn_mlx.sft.loss import f",
        "from unlearn_mlx.sft import loss",
        "import unlearn_mlx.sft.loss as loss",
        "from ..sft import loss",
        "def g():\n    from unlearn_mlx.sft.loss import f",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from unlearn_mlx.sft.loss import f",
    ],
)
def test_an_import_that_climbs_is_found_however_it_is_written(house, text):
    known = house(text__words=text, sft__loss="")
    assert [each.split(" imports ")[1] for each in climbing(known)] == ["unlearn_mlx.sft.loss"]


def test_a_circle_is_found_and_types_make_none(house):
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from unlearn_mlx.text import b"
    inside = "def f():\n    from unlearn_mlx.text import b"
    back = "from unlearn_mlx.text import a"
    assert circles(house(text__a=types, text__b=back)) == []
    assert circles(house(text__a=inside, text__b=back)) == ["unlearn_mlx.text.a - unlearn_mlx.text.b"]

"""The layout of the package: which file may import which, and how long files and lines may be.

The files directly in `minimuse/` are the paper, read in order; folders hold what a product needs.
Imports go one way, from the command line down to the schedules, so that a reader can stop at any
level. The test reads the syntax tree: nothing is imported.
"""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minimuse"

# Each level may import from levels below it, and a folder from itself.
LEVELS = [
    {"__main__"},
    {"cli"},
    {"app"},
    {"metrics"},
    {"runs"},
    {"edit"},
    {"beyond"},
    {"muse", "train", "losses"},
    {"beyond.mean_vectors"},  # `muse` needs it, though it came after Muse
    {"plumbing"},
    {"decode", "superres"},
    {"beyond.random_start"},  # `decode` needs it
    {"maskgit", "vq", "vq_loss", "grow", "t5_frozen", "guidance"},
    {"transformer", "schedule"},
    {"datasets"},
    {"data"},
    # Arguments are checked, users are warned, PyTorch is set, and processes exchange tensors,
    # wherever it is needed.
    {
        "plumbing.device",
        "plumbing.arguments",
        "plumbing.caller_state",
        "plumbing.collectives",
        "plumbing.initialization",
        "plumbing.messages",
        "plumbing.precision",
        "plumbing.ranges",
        "plumbing.remembered",
    },
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# Lessons' checks and shipped files are used, and use nothing.
OUTSIDE = {"assets", "checks"}


def level_of(module: str) -> int:
    """The level of a module that LEVELS names, or of the file or folder it is in."""
    return LEVEL.get(module, LEVEL.get(module.split(".")[0]))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """The modules of minimuse that a file imports anywhere, as "plumbing.config"."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            imported |= modules_named(node)
    return {n.removeprefix("minimuse.") for n in imported if n.startswith("minimuse.")}


def modules_named(node: ast.ImportFrom) -> set[str]:
    """In `from a import b`: a.b where that is a module of minimuse, else a."""
    modules = {f"minimuse.{module_of(p)}" for p in PACKAGE.rglob("*.py")}
    inside = {f"{node.module}.{alias.name}" for alias in node.names}
    return (inside & modules) or {node.module}


def violations(imports: dict[str, set[str]]) -> list[str]:
    """Every import that goes up, or sideways within a level of different files."""
    wrong = []
    for module, targets in imports.items():
        top = module.split(".")[0]
        for target in sorted(targets):
            target_top = target.split(".")[0]
            if target_top in OUTSIDE:
                allowed = top == "cli"
            else:
                allowed = top == target_top or level_of(module) < level_of(target)
            if not allowed:
                wrong.append(f"{module} imports {target}")
    return wrong


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, or nothing."""
    done = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for target in imports.get(module, ()):
            found = visit(target, [*path, module])
            if found:
                return found
        done.add(module)
        return []

    for module in imports:
        found = visit(module, [])
        if found:
            return found
    return []


def all_imports() -> dict[str, set[str]]:
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    return {module_of(p): imports_of(p) for p in files}


def test_imports_go_one_way():
    assert not violations(all_imports())


def test_no_circle_of_imports():
    assert not circle(all_imports())


@pytest.mark.parametrize(
    "planted",
    [
        {"schedule": {"decode"}},
        {"plumbing.parts": {"muse"}},
        {"metrics.report": {"cli.figures"}},
        {"plumbing.checkpoint": {"losses"}},
        {"vq": {"maskgit"}},
        {"vq": {"plumbing.config"}},
        {"plumbing.ranges": {"decode"}},
        {"runs.cache": {"checks.lesson00"}},
    ],
)
def test_an_import_that_goes_up_is_refused(planted):
    assert violations(planted)


def test_a_circle_is_found():
    assert circle({"cli.a": {"cli.b"}, "cli.b": {"cli.c"}, "cli.c": {"cli.a"}})
    assert not circle({"cli.a": {"cli.b", "cli.c"}, "cli.b": {"cli.c"}})


def test_files_stay_short_enough_to_read():
    lengths = {p: len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert not {p.name: n for p, n in lengths.items() if n > 350}
    flat = sum(n for p, n in lengths.items() if p.parent == PACKAGE)
    assert flat <= 3600, f"the files directly in minimuse/ have {flat} lines"


def python_files() -> list[Path]:
    """Every Python file of the repository that git knows and that is still there."""
    listing = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listing.stdout.splitlines()]
    return [path for path in files if path.is_file()]


def test_no_line_is_long_and_walruses_are_rare():
    """At most 100 columns, and 2 walruses in 1,000 lines over the whole repository."""
    long_lines = []
    walruses = []
    total = 0
    for path in python_files():
        text = path.read_text()
        lines = text.splitlines()
        total += len(lines)
        name = path.relative_to(ROOT)
        long_lines += [f"{name}:{i}" for i, line in enumerate(lines, 1) if len(line) > 100]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.NamedExpr):
                walruses.append(f"{name}:{node.lineno}")
    assert total > 0, "git lists no Python file"
    assert not long_lines, f"{len(long_lines)} lines over 100 columns: {long_lines[:20]}"
    assert len(walruses) <= 2 * total / 1000, f"{len(walruses)} in {total} lines: {walruses}"


def test_warnings_go_through_one_function():
    """`warn` finds the line of the caller, whatever decorators stand between; a level may not."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "messages.py":
            assert "warnings.warn(" not in path.read_text(), path

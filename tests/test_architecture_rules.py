"""The house rules of the package: who imports whom, file names, docstrings."""

import ast
import pathlib
import re

import pytest

import deeplab_tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "deeplab_tf"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
# What may be imported grows from one level to the next; within a level, parts do
# not know each other.
LEVELS = (
    {"errors", "memory"},
    {"strict_json"},
    {"files", "data.info"},
    {"config", "images"},
    {"presets"},
    {"models", "data"},
    {"checkpoints"},
    {"convert"},
    {"windows"},
    {"inference", "visualize"},
    {"evaluation"},
    {"training", "serving", "labelling"},
    {"flags"},
    {"programs"},
    {"data.doctor", "plan", "predict", "pretrain"},
)
MODEL_HALF, DATA_HALF = {"models", "checkpoints"}, {"data"}
# These run on any Keras backend.
WITHOUT_TENSORFLOW = (
    "config",
    "errors",
    "strict_json",
    "data.info",
    "presets",
    "models",
    "checkpoints.restore",
    "training.losses",
    "pretrain.classifier",
)


def module_name(path):
    """Returns the dotted name of a file; a package's is that of its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def is_program(node):
    """Whether this is what a file does as a program, on top of everything else."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def is_for_type_checkers(node):
    """Whether this is never run."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path, as_program=False):
    """Returns every module that a file imports as a module, wherever in it."""
    found = set()
    tree = ast.parse(path.read_text())
    if not as_program:
        tree.body = [node for node in tree.body if not is_program(node)]
    if path == MODULES[PACKAGE]:
        tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from a import b` imports a.b if that is a module, else a.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else node.module for n in names}
    return found


def own_imports(module, as_program=False):
    found = imports(MODULES[module], as_program)
    return {name for name in found if name.split(".")[0] == PACKAGE}


def part_of(module):
    """Returns the part of the house, and its level, that a module belongs to."""
    path = module.removeprefix(f"{PACKAGE}.") + "."
    places = [
        (part, level)
        for level, parts in enumerate(LEVELS)
        for part in parts
        if path.startswith(f"{part}.")
    ]
    assert places, f"{module} has no place in LEVELS"
    return max(places, key=lambda place: len(place[0]))


@pytest.mark.parametrize("module", sorted(set(MODULES) - {PACKAGE}))
def test_imports_point_one_way(module):
    part, level = part_of(module)
    for imported in own_imports(module) - {PACKAGE}:
        other, other_level = part_of(imported)
        assert other == part or other_level < level, f"{module} imports {imported}"
        halves = ({part, other} & MODEL_HALF) and ({part, other} & DATA_HALF)
        assert not halves, f"{module} imports {imported} of the other half"


def find_circle(graph):
    """Returns the modules of a circle of imports, none if there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        circles = (visit(imported) for imported in sorted(graph[module]))
        found = next(filter(None, circles), [])
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_modules_import_each_other():
    modules = set(MODULES) - {PACKAGE}
    graph = {m: own_imports(m, as_program=True) & modules for m in modules}
    assert find_circle(graph) == []


@pytest.mark.parametrize(
    ("graph", "circle"),
    [
        ({"a": "b", "b": ""}, []),
        ({"a": "bc", "b": "d", "c": "d", "d": ""}, []),
        ({"a": "b", "b": "c", "c": "b"}, ["b", "c"]),
        ({"a": "a"}, ["a"]),
    ],
)
def test_circles_are_found(graph, circle):
    assert find_circle(graph) == circle


def test_the_package_itself_loads_its_names_lazily():
    assert own_imports(PACKAGE) == set()


def test_type_checkers_know_the_names_that_are_loaded_lazily():
    tree = ast.parse(MODULES[PACKAGE].read_text())
    [block] = [node for node in tree.body if is_for_type_checkers(node)]
    told = {
        # Without "as" a name is not passed on.
        alias.asname: node.module
        for node in block.body
        for alias in node.names
    }
    homes = deeplab_tf._HOME.items()
    assert told == {name: f"{PACKAGE}.{home}" for name, home in homes}


def test_homes_of_public_names_are_type_checked():
    section = (ROOT / "pyproject.toml").read_text().split("[tool.mypy]")[1]
    checked = re.search(r"^files = \[(.*?)\]", section, re.DOTALL | re.MULTILINE)[1]
    checked = [ROOT / path for path in re.findall(r'"(.+)"', checked)]
    for name, home in deeplab_tf._HOME.items():
        path = MODULES[f"{PACKAGE}.{home}"]
        assert {path, *path.parents} & set(checked), f"{path} of {name}"
    assert all(path.exists() for path in checked)


def test_the_package_never_needs_the_checkout_around_it():
    beside = {p.stem for p in ROOT.glob("*.py")} | {"datasets", "tests", "benchmarks"}
    for module, path in MODULES.items():
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & beside, f"{module} imports {roots & beside}"


def loaded_with(module):
    """Returns the modules of the package that importing one of them loads."""
    loaded, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        packages = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
        for new in packages & set(MODULES) - loaded:
            loaded.add(new)
            waiting |= own_imports(new)
    return loaded


def runs_without_tensorflow(module):
    return any(
        f"{module}.".startswith(f"{PACKAGE}.{part}.") for part in WITHOUT_TENSORFLOW
    )


def test_importing_a_module_loads_its_packages_and_what_they_import():
    loaded = loaded_with(f"{PACKAGE}.training.losses")
    assert {f"{PACKAGE}.training", f"{PACKAGE}.models.resampling"} <= loaded
    assert f"{PACKAGE}.training.trainer" not in loaded


@pytest.mark.parametrize(
    "module", [m for m in sorted(MODULES) if runs_without_tensorflow(m)]
)
def test_models_and_losses_never_import_tensorflow(module):
    for name in loaded_with(module):
        roots = {imported.split(".")[0] for imported in imports(MODULES[name])}
        assert "tensorflow" not in roots, f"{module} loads tensorflow through {name}"


@pytest.mark.parametrize("room", ["plan", "pretrain"])
def test_what_only_some_need_can_be_deleted(room):
    inside = f"{PACKAGE}.{room}"
    for module in MODULES:
        if not f"{module}.".startswith(f"{inside}."):
            users = {n for n in own_imports(module) if f"{n}.".startswith(f"{inside}.")}
            assert not users, f"{module} imports {users}"


def test_no_file_is_a_drawer_for_odds_and_ends():
    drawers = {"utils", "util", "common", "misc", "helpers", "helper"}
    for folder in (PACKAGE, "datasets", "tests", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem not in drawers, path


def public_definitions(tree, prefix=""):
    """Yields the public functions, classes and methods of a file, by name."""
    for node in tree.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{node.name}.")


@pytest.mark.parametrize("folder", [PACKAGE, "datasets"])
def test_everything_public_has_a_docstring(folder):
    bare = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if tree.body and ast.get_docstring(tree) is None:
            bare.append(str(path.relative_to(ROOT)))
        bare += [
            f"{path.relative_to(ROOT)}: {name}"
            for name, node in public_definitions(tree)
            if ast.get_docstring(node) is None
        ]
    assert not bare, "\n".join(bare)


PRIVATE = re.compile(
    r"(from|import) (tensorflow\.(python|core|tsl|compiler)|keras\.src|\w+\.capi)\b"
)


def test_private_interfaces_are_in_the_table():
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.split("## Interfaces that are not public")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` .*\| `(\S+)` \|$", section, re.M)
    assert len(rows) >= 8
    told = {
        path if path.startswith("bench") else f"{PACKAGE}/{path}" for path, _ in rows
    }
    for path in [*told, *(f"tests/{test}" for _, test in rows)]:
        assert (ROOT / path).is_file(), path
    files = [*FILES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
    users = {str(f.relative_to(ROOT)) for f in files if PRIVATE.search(f.read_text())}
    assert users <= told

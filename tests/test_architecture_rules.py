"""Rules for imports, file names and docstrings of the package."""

import ast
import pathlib
import re

import pytest

import deeplab_tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "deeplab_tf"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
# A level may import the levels before it; parts of one level may not import each
# other.
LEVELS = (
    {"errors", "memory", "progress"},
    {"strict_json", "arguments"},
    {"files", "data.info", "palette"},
    {"config", "images"},
    {"presets"},
    {"models", "data"},
    {"checkpoints"},
    {"convert"},
    {"windows"},
    {"inference", "visualize"},
    {"evaluation"},
    {"training", "serving", "labelling"},
    {"beam"},
    {"flags"},
    {"programs"},
    {"data.doctor", "data.worker", "plan", "predict", "pretrain", "__main__"},
)
MODEL_HALF, DATA_HALF = {"models", "checkpoints"}, {"data"}
# These run on any Keras backend.
WITHOUT_TENSORFLOW = (
    "arguments",
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
    """Returns whether a statement is the `if __name__` block of a file."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def is_for_type_checkers(node):
    """Returns whether a statement is an `if TYPE_CHECKING` block."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def find_imports(path, as_program=False):
    """Returns all modules that a file imports, also inside functions."""
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


def find_package_imports(module, as_program=False):
    found = find_imports(MODULES[module], as_program)
    return {name for name in found if name.split(".")[0] == PACKAGE}


def find_part(module):
    """Returns the part of the package that a module belongs to, and its level."""
    path = module.removeprefix(f"{PACKAGE}.") + "."
    places = [
        (part, level)
        for level, parts in enumerate(LEVELS)
        for part in parts
        if path.startswith(f"{part}.")
    ]
    assert places, f"{module} is missing in LEVELS"
    return max(places, key=lambda place: len(place[0]))


@pytest.mark.parametrize("module", sorted(set(MODULES) - {PACKAGE}))
def test_imports_point_one_way(module):
    part, level = find_part(module)
    for imported in find_package_imports(module) - {PACKAGE}:
        other, other_level = find_part(imported)
        assert other == part or other_level < level, f"{module} imports {imported}"
        halves = ({part, other} & MODEL_HALF) and ({part, other} & DATA_HALF)
        assert not halves, (
            f"{module} imports {imported}: models and data are independent"
        )


def find_cycle(graph):
    """Returns the modules of an import cycle, or an empty list."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        cycles = (visit(imported) for imported in sorted(graph[module]))
        found = next(filter(None, cycles), [])
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_import_cycles():
    modules = set(MODULES) - {PACKAGE}
    graph = {m: find_package_imports(m, as_program=True) & modules for m in modules}
    assert find_cycle(graph) == []


@pytest.mark.parametrize(
    ("graph", "cycle"),
    [
        ({"a": "b", "b": ""}, []),
        ({"a": "bc", "b": "d", "c": "d", "d": ""}, []),
        ({"a": "b", "b": "c", "c": "b"}, ["b", "c"]),
        ({"a": "a"}, ["a"]),
    ],
)
def test_cycles_are_found(graph, cycle):
    assert find_cycle(graph) == cycle


def test_package_loads_its_names_lazily():
    assert find_package_imports(PACKAGE) == set()


def test_lazy_names_are_declared_for_type_checkers():
    tree = ast.parse(MODULES[PACKAGE].read_text())
    [block] = [node for node in tree.body if is_for_type_checkers(node)]
    declared = {
        # Without "as", a name is not re-exported.
        alias.asname: node.module
        for node in block.body
        for alias in node.names
    }
    homes = deeplab_tf._HOME.items()
    assert declared == {name: f"{PACKAGE}.{home}" for name, home in homes}


def test_modules_of_public_names_are_type_checked():
    section = (ROOT / "pyproject.toml").read_text().split("[tool.mypy]")[1]
    checked = re.search(r"^files = \[(.*?)\]", section, re.DOTALL | re.MULTILINE)[1]
    checked = [ROOT / path for path in re.findall(r'"(.+)"', checked)]
    for name, home in deeplab_tf._HOME.items():
        path = MODULES[f"{PACKAGE}.{home}"]
        assert {path, *path.parents} & set(checked), f"{path} of {name}"
    assert all(path.exists() for path in checked)


def test_package_does_not_import_repository_scripts_or_tests():
    outside = {p.stem for p in ROOT.glob("*.py")} | {"datasets", "tests", "benchmarks"}
    for module, path in MODULES.items():
        roots = {name.split(".")[0] for name in find_imports(path)}
        assert not roots & outside, f"{module} imports {roots & outside}"


def find_loaded_modules(module):
    """Returns the modules of the package that are loaded with a module."""
    loaded, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        packages = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
        for new in packages & set(MODULES) - loaded:
            loaded.add(new)
            waiting |= find_package_imports(new)
    return loaded


def runs_without_tensorflow(module):
    return any(
        f"{module}.".startswith(f"{PACKAGE}.{part}.") for part in WITHOUT_TENSORFLOW
    )


def test_loaded_modules_include_parent_packages():
    loaded = find_loaded_modules(f"{PACKAGE}.training.losses")
    assert {f"{PACKAGE}.training", f"{PACKAGE}.models.resampling"} <= loaded
    assert f"{PACKAGE}.training.trainer" not in loaded


@pytest.mark.parametrize(
    "module", [m for m in sorted(MODULES) if runs_without_tensorflow(m)]
)
def test_models_and_losses_never_import_tensorflow(module):
    for name in find_loaded_modules(module):
        roots = {imported.split(".")[0] for imported in find_imports(MODULES[name])}
        assert "tensorflow" not in roots, f"{module} loads tensorflow through {name}"


@pytest.mark.parametrize("package", ["plan", "pretrain"])
def test_other_modules_do_not_import_plan_or_pretrain(package):
    inside = f"{PACKAGE}.{package}"
    for module in MODULES:
        if not f"{module}.".startswith(f"{inside}."):
            users = {
                n
                for n in find_package_imports(module)
                if f"{n}.".startswith(f"{inside}.")
            }
            assert not users, f"{module} imports {users}"


def test_no_file_has_a_catch_all_name():
    catch_all_names = {"utils", "util", "common", "misc", "helpers", "helper"}
    for folder in (PACKAGE, "datasets", "tests", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem not in catch_all_names, path


def public_definitions(tree, prefix=""):
    """Yields names and nodes of public functions, classes and methods."""
    for node in tree.body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{node.name}.")


@pytest.mark.parametrize("folder", [PACKAGE, "datasets"])
def test_everything_public_has_a_docstring(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if tree.body and ast.get_docstring(tree) is None:
            missing.append(str(path.relative_to(ROOT)))
        missing += [
            f"{path.relative_to(ROOT)}: {name}"
            for name, node in public_definitions(tree)
            if ast.get_docstring(node) is None
        ]
    assert not missing, "\n".join(missing)


PRIVATE = re.compile(
    r"(from|import) (tensorflow\.(python|core|tsl|compiler)|keras\.src|\w+\.capi)\b"
)


def test_private_interfaces_are_documented():
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.split("## Private APIs we depend on")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\S+)` .*\| `(\S+)` \|$", section, re.M)
    assert len(rows) >= 8
    documented = {
        path if path.startswith("bench") else f"{PACKAGE}/{path}" for path, _ in rows
    }
    for path in [*documented, *(f"tests/{test}" for _, test in rows)]:
        assert (ROOT / path).is_file(), path
    files = [*FILES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
    users = {str(f.relative_to(ROOT)) for f in files if PRIVATE.search(f.read_text())}
    assert users <= documented

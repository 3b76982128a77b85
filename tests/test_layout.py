"""The layout of the code: import order, circles, sizes of files and functions, docstrings. Read with `ast`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffgan", "callbacks", "datamodules")
MAX_ROOT_MODULES = 9
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 45

# From bottom to top. A module may import modules of its own package and of lower layers.
LAYERS = (
    ("diffgan.errors", "diffgan.packaged", "diffgan.wheel"),
    ("diffgan.numbers", "diffgan.noise", "diffgan.conditioning", "diffgan.images", "diffgan.plots"),
    ("diffgan.storage", "diffgan.prompts", "diffgan.training", "diffgan.latent_space"),
    ("diffgan.teachers",),
    ("diffgan.pairs", "diffgan.glyphs", "diffgan.perceptual", "diffgan.nets"),
    ("datamodules", "diffgan.evaluation", "diffgan.losses"),
    ("diffgan.methods", "diffgan.reports"),
    ("callbacks", "diffgan.memory", "diffgan.serving", "diffgan.sharing"),
    ("diffgan.cli",),
    ("diffgan.__main__",),
)
PUBLIC_INTERFACE = "diffgan"  # diffgan/__init__.py re-exports names of any layer; no module may import it

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules() -> dict[str, ast.Module]:
    """Name -> syntax tree of every module of the packages."""
    trees = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            trees[name] = ast.parse(file.read_text(), str(file))
    return trees


TREES = modules()
DIFFGAN = {name: tree for name, tree in TREES.items() if name.partition(".")[0] == "diffgan"}


def imported_modules(nodes: Iterator[ast.AST]) -> set[str]:
    """Names of the project's modules that the import statements among `nodes` import."""
    imported = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & TREES.keys()
            has_other_names = len(submodules) < len(node.names)
            imported |= submodules | ({node.module} if has_other_names else set())
    return imported & TREES.keys()


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FUNCTION):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from module_level(node)


def place_of(module: str) -> tuple[int, str]:
    """Number of a module's layer, from 0 at the bottom, and its package (or loose module) in that layer."""
    if module == PUBLIC_INTERFACE:
        return len(LAYERS), module
    for number, layer in enumerate(LAYERS):
        for package in layer:
            if module == package or module.startswith(f"{package}."):
                return number, package
    raise AssertionError(f"{module} belongs to no layer; give it a place in LAYERS and in the documented layout")


def may_import(module: str, imported: str) -> bool:
    """Whether the layout allows `module` to import `imported`."""
    (layer, package), (imported_layer, imported_package) = place_of(module), place_of(imported)
    return imported_layer < layer or imported_package == package


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others."""
    reachable = {module: reachable_from(module, graph) for module in graph}
    groups = []
    for module in graph:
        group = {other for other in reachable[module] if module in reachable[other]}
        if group and group not in groups:
            groups.append(group)
    return groups


def reachable_from(module: str, graph: dict[str, set[str]]) -> set[str]:
    """The modules that `module` imports, directly or through others."""
    reachable, pending = set(), [module]
    while pending:
        new = graph[pending.pop()] - reachable
        reachable |= new
        pending += new
    return reachable


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and number of lines of every function and method."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{node.name}" if isinstance(node, (*FUNCTION, ast.ClassDef)) else prefix
        if isinstance(node, FUNCTION):
            yield name, node.end_lineno - node.lineno + 1
        yield from functions(node, f"{name}." if name != prefix else prefix)


def test_imports_point_down():
    offenders = [
        f"{module} imports {imported}"
        for module, tree in TREES.items()
        for imported in sorted(imported_modules(ast.walk(tree)))
        if not may_import(module, imported)
    ]
    assert not offenders, "\n".join(offenders)


def test_only_the_command_line_imports_callbacks_and_datamodules():
    offenders = []
    for module, tree in DIFFGAN.items():
        packages = {imported.partition(".")[0] for imported in imported_modules(ast.walk(tree))}
        is_command_line = place_of(module)[1] in ("diffgan.cli", "diffgan.__main__")
        if not is_command_line and packages & {"callbacks", "datamodules"}:
            offenders.append(module)
    assert not offenders


def test_no_modules_import_each_other():
    graph = {module: imported_modules(module_level(tree)) for module, tree in TREES.items()}
    assert sum(map(len, graph.values())) > len(graph), "the imports were found"
    assert not circles(graph)


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}, "e": set()}
    assert circles(graph) == [{"b", "c"}, {"d"}]


def test_few_modules_lie_at_the_root():
    loose = {file.stem for file in (ROOT / "diffgan").glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= MAX_ROOT_MODULES, sorted(loose)


def test_files_are_short():
    lengths = {file: len(file.read_text().splitlines()) for file in (ROOT / "diffgan").rglob("*.py")}
    offenders = [f"{file.relative_to(ROOT)}: {lines}" for file, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert lengths and not offenders, offenders


def test_functions_are_short():
    offenders = [
        f"{module}.{name}: {lines} lines"
        for module, tree in TREES.items()
        for name, lines in functions(tree)
        if lines > MAX_FUNCTION_LINES
    ]
    assert not offenders, "\n".join(offenders)


def test_public_functions_and_classes_have_docstrings():
    offenders = [
        f"{module}.{node.name}"
        for module, tree in DIFFGAN.items()
        for node in tree.body
        if isinstance(node, (*FUNCTION, ast.ClassDef))
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not offenders, "\n".join(offenders)


def test_modules_have_docstrings():
    assert not [module for module, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]

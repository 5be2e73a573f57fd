"""Reading order, data flow and dependency order are one thing; who may call what; what is public; what loads when."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import architecture
import pytest
from architecture import ORDER, imports_of, source_of

import loratory

ROOT = Path(__file__).parents[1]
MODULES = architecture.modules()
PACKAGE = Path(loratory.__file__).parent
PACKAGES = [name for name, inside in ORDER.items() if inside]
MOST_LINES = 360
# A pattern of names, and the modules that alone may say them.
ONE_PLACE = {
    "peft": (r"peft", {"models.targets", "models.adapters"}),
    "the loaders of models and tokenizers": (
        r"AutoModel\w*|AutoTokenizer|AutoConfig",
        {"models.loading", "models.converting", "models.encoder"},
    ),
    "the download of models": (r"snapshot_download", {"models.finding"}),
    "the chat template": (r"render_jinja_template|apply_chat_template", {"text.template_process"}),
    "datasets": (r"datasets", {"data.hub"}),
}


def is_lazy(module: str) -> bool:
    """Whether imports may stand inside functions: the command line must not wait for PyTorch, nor a mistyped file name
    for the libraries that read datasets and parquet files."""
    return module.startswith("cli.") or module in ("__init__", "data.rows")


def order_violations(module: str, source: str) -> list[str]:
    """What a module imports that does not stand above it in the order, or bypasses a package's exports."""
    package, _, own = module.rpartition(".")
    names = list(ORDER)
    found = []
    for name in imports_of(source):
        parts = name.split(".")
        if parts[0] == package:
            inside = ORDER[package]
            position = len(inside) if own == "__init__" else inside.index(own)
            allowed = len(parts) > 1 and parts[1] in inside[:position]
        else:
            above = parts[0] in names and names.index(parts[0]) < names.index(package or own)
            exported = not ORDER.get(parts[0]) or (len(parts) == 2 and parts[1] in exports_of(parts[0]))
            allowed = above and exported
        found += [] if allowed else [name]
    return found


def exports_of(package: str) -> list[str]:
    tree = ast.parse(source_of(f"{package}.__init__"))
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    return ast.literal_eval(lists[0]) if lists else []


def names_said(text: str) -> set[str]:
    """Every identifier of a source: names, attributes, and the words of its imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {word for alias in node.names for word in alias.name.split(".")}
    return found


def late_imports(text: str) -> Iterator[ast.stmt]:
    """Imports that do not stand at the top; one that some platforms lack may stand in a try for ImportError."""
    tree = ast.parse(text)
    guarded = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type or node) for h in node.handlers)
        for statement in node.body
    }
    for node in ast.walk(tree):
        is_import = isinstance(node, (ast.Import, ast.ImportFrom))
        if is_import and node not in tree.body and id(node) not in guarded:
            yield node


@pytest.mark.parametrize(
    "text",
    [
        "import loratory.training",
        "import loratory.training as t",
        "from loratory import training",
        "from . import training",
        "def f():\n    from loratory import training as t",
    ],
)
def test_an_import_is_seen_however_it_is_written(text: str):
    assert list(imports_of(text)) == ["training"]


def test_a_late_import_is_seen():
    assert not list(late_imports("import a\ntry:\n    import b\nexcept ImportError:\n    b = None"))
    assert len(list(late_imports("def f():\n    import a\nif x:\n    import b"))) == 2
    assert len(list(late_imports("def f():\n    try:\n        import a\n    except ValueError:\n        pass"))) == 1


def test_the_order_lists_every_module_and_no_other():
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")}
    assert len(set(MODULES)) == len(MODULES)
    assert files - {"__init__"} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it_and_is_exported(module: str):
    assert order_violations(module, source_of(module)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.splits", "from loratory.models import load_model"),  # a package further down
        ("tree.batches", "from loratory.tree.attention import tree_mask"),  # a module further down
        ("models.loading", "from loratory.finetune import finetune"),  # a top-level module further down
        ("run.job", "from loratory.tree.cpu_attention import attend"),  # past the exports
        ("run.job", "from loratory.tree import attend"),  # not exported
    ],
)
def test_an_import_that_is_turned_round_is_found(module: str, line: str):
    assert order_violations(module, f"{line}\n{source_of(module)}") != []


def test_the_graph_of_the_packages_has_no_cycle():
    names = list(ORDER)
    for package, imported in architecture.package_graph().items():
        assert all(names.index(name) < names.index(package) for name in imported), package


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_what_others_use_and_nothing_else(package: str):
    exports = exports_of(package)
    assert exports == list(dict.fromkeys(exports))
    users = [
        *(source_of(module) for module in [*MODULES, "__init__"] if module.split(".")[0] != package),
        *(
            path.read_text()
            for folder in ("benchmarks", "recipes", "examples")
            for path in (ROOT / folder).rglob("*.py")
        ),
    ]
    used = {name.split(".")[1] for text in users for name in imports_of(text) if name.startswith(f"{package}.")}
    assert set(exports) - used - {"main"} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_comes_in_what_goes_out_and_where_to_begin(package: str):
    docstring = ast.get_docstring(ast.parse(source_of(f"{package}.__init__"))) or ""
    assert re.search(r"^In: .*Out: .*Read ``\w+\.py`` first", docstring, re.DOTALL | re.MULTILINE)
    [first] = re.findall(r"Read ``(\w+)\.py`` first", docstring)
    assert first in ORDER[package]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_not_too_long_to_read(module: str):
    assert len(source_of(module).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_imports_stand_at_the_top_but_where_loading_is_lazy(module: str):
    late = [ast.unparse(node) for node in late_imports(source_of(module))]
    assert is_lazy(module) or late == []
    dynamic = names_said(source_of(module)) & {"import_module", "__import__"}
    assert module == "__init__" or not dynamic


@pytest.mark.parametrize("what", ONE_PLACE)
def test_one_module_alone_uses(what: str):
    pattern, homes = ONE_PLACE[what]
    users = {m for m in [*MODULES, "__init__"] if any(re.fullmatch(pattern, name) for name in names_said(source_of(m)))}
    assert users == homes


def in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PACKAGE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "matplotlib", "numpy")
    code = f"import sys, loratory.cli.main; loratory.Config(); print([m for m in {heavy} if m in sys.modules])"
    assert in_a_fresh_process(code) == "[]"


PUBLIC = ["Config", "Tuned", "UserError", "evaluate_run", "finetune", "load", "train_only"]
USES = """
import inspect, json, sys

def kinds(loratory):
    found = {name: getattr(loratory, name) for name in dict.fromkeys(["finetune", *loratory.__all__])}
    return {name: "class" if inspect.isclass(value) else type(value).__name__ for name, value in found.items()}

import loratory
loratory.train_only
first = kinds(loratory)
for name in [name for name in sys.modules if name.partition(".")[0] == "loratory"]:
    del sys.modules[name]  # as in a new process, but without loading the heavy libraries again
from loratory.finetune import Event
import loratory
print(json.dumps([first, kinds(loratory)]))
"""


@pytest.fixture(scope="module")
def public_kinds() -> list[dict[str, str]]:
    """What each public name is: when it is asked for first, and when the module finetune was imported before."""
    return json.loads(in_a_fresh_process(USES))


@pytest.mark.thorough
def test_public_names_are_these_and_each_resolves(public_kinds):
    classes = {"Config", "Tuned", "UserError"}
    assert public_kinds[0] == {name: "class" if name in classes else "function" for name in PUBLIC}


@pytest.mark.thorough
def test_finetune_is_the_function_also_after_its_module_was_imported(public_kinds):
    assert public_kinds[1] == public_kinds[0]


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        _ = loratory.finetun

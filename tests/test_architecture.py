"""Reading order, data flow and dependency order are one thing; who may call what; what is public; what loads when."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import loratory

PACKAGE = Path(loratory.__file__).parent
# A module may import only modules above it in this list.
ORDER = (
    "errors", "config", "world", "runs", "models", "lora_linear", "adapters", "rows", "examples", "splits", "draft",
    "cloze", "template", "render", "fit", "batches", "kernels", "flex", "attention", "verify", "speed", "loss",
    "optim", "train", "checkpoint", "generate", "blanks", "score", "sandbox", "metrics", "significance", "charts",
    "tasks", "baselines", "evaluate", "report", "compare", "job", "systems", "tune", "repeats", "plan",
    "forgetting", "finetune", "predict", "show", "chat", "cli",
)  # fmt: skip
LAZY = ("cli", "__init__")
# A pattern of names, and the one module that may say them.
ONE_PLACE = {
    "peft": (r"peft", "adapters"),
    "the loaders of models and tokenizers": (r"AutoModel\w*|AutoTokenizer|AutoConfig|snapshot_download", "models"),
    "the chat template": (r"apply_chat_template", "template"),
    "datasets": (r"datasets", "rows"),
}


def source(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def imported(text: str) -> set[str]:
    """The package's modules that a source imports, wherever the import stands and however it is written."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["loratory" if node.level else "", node.module]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "loratory"}
    return found


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
        "import loratory.train",
        "import loratory.train as t",
        "from loratory import train",
        "from loratory.train import x",
        "from . import train",
        "from .train import x",
        "def f():\n    from loratory import train as t",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from loratory.train import x",
    ],
)
def test_an_import_is_seen_however_it_is_written(text: str):
    assert imported(text) == {"train"}


def test_a_late_import_is_seen():
    assert not list(late_imports("import a\ntry:\n    import b\nexcept ImportError:\n    b = None"))
    assert len(list(late_imports("def f():\n    import a\nif x:\n    import b"))) == 2
    assert len(list(late_imports("def f():\n    try:\n        import a\n    except ValueError:\n        pass"))) == 1


def test_the_order_lists_every_module_and_no_other():
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    assert len(set(ORDER)) == len(ORDER)
    assert files - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_modules_above_it(module: str):
    above = set(ORDER[: ORDER.index(module)])
    assert imported(source(module)) - above == set()


@pytest.mark.parametrize("module", [*ORDER, "__init__"])
def test_imports_stand_at_the_top_but_where_loading_is_lazy(module: str):
    late = [ast.unparse(node) for node in late_imports(source(module))]
    assert module in LAZY or late == []
    dynamic = names_said(source(module)) & {"import_module", "__import__"}
    assert module == "__init__" or not dynamic


@pytest.mark.parametrize("what", ONE_PLACE)
def test_one_module_alone_uses(what: str):
    pattern, home = ONE_PLACE[what]
    users = {m for m in [*ORDER, "__init__"] if any(re.fullmatch(pattern, name) for name in names_said(source(m)))}
    assert users == {home}


def in_a_fresh_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PACKAGE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "matplotlib", "numpy")
    code = f"import sys, loratory.cli; loratory.Config(); print([m for m in {heavy} if m in sys.modules])"
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


def test_public_names_are_these_and_each_resolves(public_kinds):
    classes = {"Config", "Tuned", "UserError"}
    assert public_kinds[0] == {name: "class" if name in classes else "function" for name in PUBLIC}


def test_finetune_is_the_function_also_after_its_module_was_imported(public_kinds):
    assert public_kinds[1] == public_kinds[0]


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        _ = loratory.finetun

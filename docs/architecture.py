"""The order of the packages, from which tests and pages are made: ``python docs/architecture.py`` prints the graph.

A package imports only packages above it in ORDER; inside a package, a module imports only modules above it. The order
is also the path that the data takes.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "loratory"

# Top-level modules stand for themselves.
ORDER: dict[str, tuple[str, ...]] = {
    "errors": (),
    "printable": (),
    "schema": (),
    "settings": (),
    "config": (),
    "events": (),
    "signals": (),
    "machine": ("device", "memory", "environment"),
    "storage": ("files", "lock", "record", "contents", "run_directory", "problems"),
    "bases": ("known", "ollama", "places", "cache", "encoders"),
    "data": (
        "findings", "limits", "remarks", "encodings", "columns", "dialects", "delimited", "plain_text", "json_files",
        "literals", "sheet_process", "spreadsheets", "parquet", "hub", "parts", "rows", "examples", "answers",
        "missing", "labels", "prompts", "phrasings", "turns", "conversations", "splits", "guessing", "task_file",
    ),
    "models": (
        "identity", "untrusted", "usable", "card", "gguf_header", "gguf_tokenizer", "converting", "finding", "starting",
        "loading", "encoder", "lora_linear", "targets", "adapters",
    ),
    "text": (
        "template_process", "template_runner", "renderer", "template", "turns", "masking", "documents", "rendering",
        "context",
    ),
    "tree": (
        "batches", "layout", "cpu_attention", "gpu_attention", "attention", "forward", "verification", "loss",
        "generation", "scoring", "fill_mask",
    ),
    "training": ("schedule", "speed", "optimizer", "loop", "checkpoints"),
    "metrics": ("significance", "power", "classification", "texts", "formatting", "tasks"),
    "checks": ("similar", "material", "repetition", "leaks", "balance", "rendered", "registry"),
    "evaluation": (
        "calls", "confinement", "judge", "sandbox", "evaluate_system", "blend", "baselines", "systems", "records",
        "forgetting",
    ),
    "run": (
        "checks", "job", "selection", "unsound", "retained", "training", "seeds_and_folds", "opening", "prompt_search",
        "plan",
    ),
    "report": ("reading", "results", "verdict", "advice", "report", "charts", "terminal", "page", "comparison"),
    "finetune": (),
    "predict": ("tokens", "tuned", "to_file", "chat_terminal", "replies", "chat"),
    "cli": (
        "verb", "output", "progress", "downloads", "task_arguments", "run", "init", "check", "train", "evaluate",
        "predict", "ask", "fill", "chat", "compare", "show", "models", "help", "allocator", "crash", "main", "__main__",
    ),
}  # fmt: skip


def modules() -> list[str]:
    """Every module in order, as in "tree.batches"; a package's ``__init__`` comes after its modules."""
    found = []
    for name, inside in ORDER.items():
        found += [name] if not inside else [*(f"{name}.{module}" for module in inside), f"{name}.__init__"]
    return found


def source_of(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def imports_of(source: str) -> Iterator[str]:
    """What a source imports from this package, wherever and however, as in "tree.batches.Batch" or "tree.Batch"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["loratory" if node.level else "", node.module]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("loratory").lstrip(".") for name in names if name.split(".")[0] == "loratory")


def package_graph() -> dict[str, set[str]]:
    """The packages that each package imports."""
    graph: dict[str, set[str]] = {name: set() for name in ORDER}
    for module in modules():
        own = module.split(".")[0]
        graph[own] |= {name.split(".")[0] for name in imports_of(source_of(module))} - {own}
    return graph


def summary_of(module: str) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(source_of(module))) or "").splitlines()[0]


def package_table() -> str:
    """The packages with one line each, in Markdown."""
    rows = ["| `src/loratory/` | what it is |", "| --- | --- |"]
    for name, inside in ORDER.items():
        label, module = (f"`{name}/`", f"{name}.__init__") if inside else (f"`{name}.py`", name)
        rows.append(f"| {label} | {summary_of(module)} |")
    return "\n".join(rows) + "\n"


def module_tables() -> str:
    """The modules of each package with one line each, in Markdown."""
    parts = []
    for name, inside in ORDER.items():
        if inside:
            docstring = ast.get_docstring(ast.parse(source_of(f"{name}.__init__"))) or ""
            rows = [f"| `{module}.py` | {summary_of(f'{name}.{module}')} |" for module in inside]
            parts.append(f"## `{name}/`\n\n{docstring}\n\n| module | what it is |\n| --- | --- |\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for package, imported in package_graph().items():
        print(f"{package:<11} <- {', '.join(name for name in ORDER if name in imported) or 'nothing'}")

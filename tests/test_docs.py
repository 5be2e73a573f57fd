"""The documentation says what the code does: generated pages, messages, links, commands and names of files."""

import ast
import json
import re
import tomllib
from pathlib import Path

import generate
import pytest
import records
from conftest import sequence

from loratory.cli.main import VERBS
from loratory.config import Config, config_to_dict
from loratory.data.splits import load_split
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig
from loratory.tree.batches import build_batch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
PAGES = sorted([*(ROOT / name for name in NAMES), *DOCS.rglob("*.md")])

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ---- generated pages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_page_is_current(path: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "57")  # the width of the terminal must not matter
    assert text_of(path) == generate.PAGES[path](), "run: python docs/generate.py"


# ---- figures of recorded runs ----------------------------------------------------------------------------------------


def test_every_page_with_figures_of_records_is_brought_up_to_date():
    pages = [
        *ROOT.glob("*.md"),
        *(page for name in ("docs", "examples", "benchmarks") for page in (ROOT / name).rglob("*.md")),
    ]
    assert {page for page in pages if records.MARK.search(text_of(page))} <= set(generate.PAGES)


def test_a_mark_shows_the_figure_of_its_record(tmp_path, monkeypatch):
    record = {
        "before": "prompt",
        "train_examples": 1234,
        "verdict": "Tuning helped.",
        "systems": {"prompt": {"value": 0.25, "low": 0.2, "perplexity": 49.46, "macro_f1": 0.5}},
        "forgetting": {"after": 76.5},
        "seconds": {"total": 461.5},
    }
    (tmp_path / "topics.json").write_text(json.dumps(record))
    monkeypatch.setattr(records, "record_path", lambda name: tmp_path / f"{name}.json")
    shown = {
        "prompt": "25.0 %",
        "before": "25.0 %",
        "prompt.low": "20.0 %",
        "prompt.perplexity": "49.5",
        "prompt.macro_f1": "0.500",
        "forgetting.after": "76.5",
        "train_examples": "1,234",
        "time": "7 min 42 s",
        "verdict": "Tuning helped.",
    }
    for figure, text in shown.items():
        assert records.filled(f"a <!--=examples/topics {figure}-->old<!--/--> b").endswith(f"-->{text}<!--/--> b")
    block = "<!--=examples/topics verdict-block-->"
    assert records.filled(f"{block}old<!--/-->") == f"{block}\n\n```\nTuning helped.\n```\n\n<!--/-->"
    assert records.NOT_YET in records.filled("a <!--=examples/title tuned--><!--/-->")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a <!--=examples/topic tuned-choose--><!--/-->", KeyError),
        ("a <!--=examples/topics tuned--><!--/-->", KeyError),
        ("a\n<!--=examples/topics tuned-choose--><!--/-->", ValueError),
    ],
)
def test_a_mark_that_cannot_be_filled_is_an_error(text: str, error: type[Exception]):
    with pytest.raises(error):
        records.filled(text)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_every_setting_is_on_both_pages_and_says_what_it_means():
    tables, flags = text_of(DOCS / "task-file.md"), text_of(DOCS / "command-line.md")
    for section, keys in config_to_dict(Config()).items():
        for key in keys if isinstance(keys, dict) else ():
            assert f"--{section}.{key.replace('_', '-')} " in flags.replace("\n", " ")
            assert re.search(rf"^\| `{key}` \| [^|]+ \| [^|]+ \| [^|]+\w[^|]* \|$", tables, re.MULTILINE), key


def test_the_example_is_a_task_file():
    config = Config.parse(generate.EXAMPLE, Path("/tasks/task.toml"))
    assert config.data.train == ("/tasks/messages-2024.csv", "/tasks/messages-2025.jsonl")
    assert generate.EXAMPLE in text_of(DOCS / "task-file.md")
    assert set(tomllib.loads(generate.EXAMPLE)) == set(config_to_dict(Config())), "every section is shown"


@pytest.mark.parametrize("key", generate.REQUIRED)
def test_what_is_called_required_is(key: str, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n" + "1,a\n2,b\n" * 9)
    values = {"train": (str(tmp_path / "a.csv"),), "answer": "y"}
    assert load_split(DataConfig(**values), PromptConfig(), 0).labels == ("a", "b")
    values.pop(key.removeprefix("data."))
    with pytest.raises(UserError, match=r"No training data|No answer column"):
        load_split(DataConfig(**values), PromptConfig(), 0)


# ---- messages --------------------------------------------------------------------------------------------------------


def written(node: ast.expr | None) -> str | None:
    """A text as it stands in the code, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages() -> set[str]:
    """The first lines of all UserErrors in the sources."""
    found = set()
    for path in (ROOT / "src" / "loratory").rglob("*.py"):
        tree = ast.parse(text_of(path))
        names = {
            node.targets[0].id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "UserError":
                first = node.args[0]
                message = written(names.get(first.id) if isinstance(first, ast.Name) else first)
                assert message, f"{path}:{node.lineno}: a message that is not written down"
                found.add(message)
    return found


def headings() -> dict[str, list[str]]:
    """The headings of the troubleshooting page, by section."""
    sections = re.split(r"^## ", text_of(DOCS / "troubleshooting.md"), flags=re.MULTILINE)[1:]
    return {s.partition("\n")[0]: re.findall(r"^### (.*)$", s, re.MULTILINE) for s in sections}


def test_headings_are_messages_that_exist():
    _, *by_message = headings().values()
    found = [heading for section in by_message for heading in section]
    assert len(found) >= 45
    assert len(found) == len(set(found))
    assert set(found) <= messages()


# ---- links, commands, files ------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say after #."""
    found = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@by_page
def test_relative_links_lead_somewhere(page: Path):
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            place = page.parent / path if path else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


def test_the_index_names_every_page():
    index = text_of(DOCS / "README.md")
    assert all(f"({page.name})" in index for page in DOCS.glob("*.md") if page.name != "README.md")


@by_page
def test_commands_and_flags_exist(page: Path):
    text = text_of(page)
    code = "\n".join(
        re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    )
    commands = re.findall(r"(?:^|\s|/)loratory (\S[^\n`#|]*)", code)
    assert {command.split()[0] for command in commands} <= {*VERBS, "VERB", "--version", "--help"}
    flags = {flag for command in commands for flag in re.findall(r"(?<=\s)--[a-z][\w.-]*", command)}
    known = set(re.findall(r"--[a-z][\w.-]*", text_of(DOCS / "command-line.md")))
    assert flags <= {*known, "--help", "--help-all"}


@by_page
def test_tests_and_make_targets_that_are_named_exist(page: Path):
    for name in re.findall(r"\btests/[\w/]+\.py\b", text_of(page)):
        assert (ROOT / name).exists(), name
    for name, test in re.findall(r"\(\.\./(tests/[\w/]+\.py)\) \| `(\w+)`", text_of(page)):
        assert f"def {test}(" in text_of(ROOT / name), test
    targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)(?:\w+=\S+ )*make ([\w-]+)", text_of(page), re.MULTILINE)) <= set(targets)


def functions_in(path: Path) -> set[str]:
    """The names of the functions at the top of a file."""
    return {node.name for node in ast.parse(text_of(path)).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", [DOCS / "guarantees.md", ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_the_tests_that_hold_a_promise_exist(page: Path):
    named = re.findall(r"\b(tests/[\w/]+\.py)::(test_\w+)", text_of(page))
    assert len(named) >= 10
    for path, test in named:
        assert test in functions_in(ROOT / path), f"{path}::{test}"


def test_every_promise_names_a_test():
    sections = re.split(r"^## ", text_of(DOCS / "guarantees.md"), flags=re.MULTILINE)[1:]
    promises = [promise for section in sections for promise in re.split(r"^(?=\*\*)", section, flags=re.MULTILINE)[1:]]
    assert len(promises) >= 25
    assert [promise.split("**")[1] for promise in promises if "::test_" not in promise] == []


def test_each_of_the_twenty_five_complaints_has_a_test_or_says_not_yet():
    rows = re.findall(r"^\| (\d+) \|.*\| (.+) \| (.+) \|$", text_of(DOCS / "guarantees.md"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 26))
    assert all("::test_" in tests or "not yet" in guard for _, guard, tests in rows)


# ---- what pages say of the code --------------------------------------------------------------------------------------


def test_the_picture_of_a_tree_is_the_tree_that_is_built():
    page = text_of(DOCS / "exactness.md")
    leaves = [line[:7].split() for line in page.splitlines() if re.fullmatch(r"[A-Z] [A-Z] [A-Z] [a-z] .*", line)]
    row, tokens, depth, ends = (
        re.search(rf"^{name} +(.*)$", page, re.MULTILINE)[1].split()  # type: ignore[index]
        for name in ("row", "token", "depth", "subtree ends")
    )
    batch = build_batch(
        [sequence([*(ord(token) for token in scored_sequence), 0], 1) for scored_sequence in leaves]
    )  # and a last token
    assert [chr(i) for i in batch.token_ids_T] == tokens
    assert batch.position_ids_T.tolist() == [int(d) for d in depth]
    assert batch.subtree_end_T.tolist() == [int(e) for e in ends]
    sees = dict(re.findall(r"^row (\d) sees +([#. ]+)$", page, re.MULTILINE))
    for q in map(int, row):
        ancestors = [k <= q < int(ends[k]) for k in range(q + 1)]
        assert sees[str(q)].split() == ["#" if sees_it else "." for sees_it in ancestors]


def test_a_wheel_holds_every_file_of_the_package():
    package = ROOT / "src" / "loratory"
    patterns = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["setuptools"]["package-data"]["loratory"]
    held = {path for pattern in ["**/*.py", *patterns] for path in package.glob(pattern)}
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert files <= held

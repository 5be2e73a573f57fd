"""Comparison of two runs: the difference, which runs can be compared, and the settings that differ."""

import json

import pytest
from rich.console import Console
from test_report import LABELS, Page, change_json, exactly, write_part, write_run

from loratory.cli.main import main
from loratory.errors import UserError
from loratory.metrics.significance import mcnemar_exact
from loratory.report.comparison import compare_runs, comparison_page, read_pair, render_comparison

RATES = {"prompt": 0.3, "linear": 0.5, "tuned": 0.7}
TOML = '[prompt]\nuser = "{text}"\n[train]\nepochs = 3\nseed = 0\n[run]\nout = "%s"\n'


def two_runs(folder, right_a=range(100), right_b=range(50, 170)):
    """Two runs whose tuned systems answer exactly the given ones of 200 test examples correctly."""
    runs = [write_run(folder / name, RATES) for name in ("first", "second")]
    for run, right in zip(runs, (right_a, right_b), strict=True):
        exactly(run, "tuned", set(right))
        (run / "config.toml").write_text(TOML % run)
    return runs


def compare(a, b):
    return compare_runs(*read_pair(a, b))


def terminal_text(comparison):
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(render_comparison(comparison))
    return capture.get()


def test_difference_and_p_value_compare_the_two_after_systems(tmp_path):
    comparison = compare(*two_runs(tmp_path))
    assert (comparison["difference"]["only_a"], comparison["difference"]["only_b"]) == (50, 70)
    assert comparison["difference"]["difference"] == pytest.approx(0.1)
    assert comparison["difference"]["p_value"] == mcnemar_exact(50, 70)
    assert [s["name"] for s in comparison["systems"]] == list(RATES)
    assert [s["difference"] for s in comparison["systems"]] == pytest.approx([0, 0, 0.1])


@pytest.mark.parametrize(
    ("right_a", "right_b", "better"),
    [(range(100), range(50, 170), None), (range(100), range(180), "b"), (range(180), range(100), "a")],
)
def test_the_comparison_is_antisymmetric(tmp_path, right_a, right_b, better):
    a, b = two_runs(tmp_path, right_a, right_b)
    forward, backward = compare(a, b), compare(b, a)
    one, other = forward["difference"], backward["difference"]
    assert one["difference"] == -other["difference"] and one["p_value"] == other["p_value"]
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
    assert (one["only_a"], one["only_b"]) == (other["only_b"], other["only_a"])
    assert forward["better"] == better and backward["better"] == {"a": "b", "b": "a", None: None}[better]
    assert [s["difference"] for s in forward["systems"]] == [-s["difference"] for s in backward["systems"]]


@pytest.mark.parametrize(
    ("right_a", "right_b", "start"),
    [
        (range(100), range(50, 170), "No significant difference: 50.0 % for A (first) and 60.0 % for B (second)"),
        (
            range(100),
            range(180),
            "B (second) is better: 90.0 % against 50.0 % for A (first) on 200 test examples, 40.0",
        ),
        (
            range(180),
            range(100),
            "A (first) is better: 90.0 % against 50.0 % for B (second) on 200 test examples, 40.0",
        ),
    ],
)
def test_sentence_names_the_better_run_or_says_that_the_difference_is_not_significant(
    tmp_path, right_a, right_b, start
):
    a, b = two_runs(tmp_path, right_a, right_b)
    comparison = compare(a, b)
    sentence = comparison["sentence"]
    assert sentence.startswith(start)
    assert comparison["better"] is None or " interval -" not in sentence, (
        "the difference is stated as a positive number"
    )
    assert " ".join(sentence.split()) in " ".join(terminal_text(comparison).split())
    assert sentence in Page(comparison_page(*read_pair(a, b), comparison)).text.replace("\n", "")


def test_exactly_the_settings_that_differ_are_listed(tmp_path):
    a, b = two_runs(tmp_path)
    (b / "config.toml").write_text((TOML % b).replace("epochs = 3", "epochs = 5") + "threads = 2\n")
    change_json(b / "environment.json", versions={"torch": "2.12.0"})
    change_json(b / "data.json", files=[{"path": "papers.csv", "sha256": "2" * 64}])
    settings = {row["key"]: (row["a"], row["b"]) for row in compare(a, b)["settings"]}
    assert settings == {
        "train.epochs": ("3", "5"),
        "run.threads": (None, "2"),
        "versions.torch": ("2.11.0", "2.12.0"),
        "data file 1, SHA-256": ("1" * 64, "2" * 64),
    }


def test_costs_of_both_runs_are_listed(tmp_path):
    a, b = two_runs(tmp_path)
    with (b / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "stage", "name": "train", "seconds": 35.0}) + "\n")
    costs = {cost["name"]: (cost["a"], cost["b"]) for cost in compare(a, b)["costs"]}
    assert costs["train"] == (25, 60) and costs["peak memory"] == (2_000_000_000, 2_000_000_000)


@pytest.mark.parametrize("difference", ["number", "answer", "order", "prompt"])
def test_different_test_examples_are_an_error_that_says_what_differs(tmp_path, difference):
    a, b = two_runs(tmp_path)
    lines = {path: path.read_text().splitlines(keepends=True) for path in (b / "predictions").glob("*.jsonl")}
    prompts = json.loads((b / "data.json").read_text())["test_prompts"]
    if difference == "prompt":
        change_json(b / "data.json", test_prompts=[*prompts[:2], "Another text", *prompts[3:]])
    for path, rows in lines.items():
        changed = {
            "number": rows[:-1],
            "answer": [rows[0], rows[1].replace(f'"expected": "{LABELS[1]}"', '"expected": "Robotics"'), *rows[2:]],
            "order": [rows[1], rows[0], *rows[2:]],
            "prompt": rows,
        }
        path.write_text("".join(changed[difference]))
    expected = {
        "number": "200 and 199 test examples",
        "answer": "test example 2: expected answers 'Cryptography' and 'Robotics'",
        "order": "test example 1: expected answers 'Computation and Language' and 'Cryptography'",
        "prompt": "test example 3: prompts 'Abstract number 2: we study a problem.' and 'Another text'",
    }
    with pytest.raises(UserError, match="not tested on the same examples") as error:
        read_pair(a, b)
    assert error.value.found == expected[difference]


def test_runs_with_different_prompt_templates_need_the_same_data_files(tmp_path):
    a, b = two_runs(tmp_path)
    prompts = json.loads((b / "data.json").read_text())["test_prompts"]
    change_json(b / "data.json", test_prompts=[f"Paper: {prompt}" for prompt in prompts])
    (b / "config.toml").write_text((TOML % b).replace("{text}", "Paper: {text}"))
    assert [row["key"] for row in compare(a, b)["settings"]] == ["prompt.user"]
    change_json(b / "data.json", files=[{"path": "papers.csv", "sha256": "2" * 64}])
    with pytest.raises(UserError, match="Paper: Abstract number 0"):
        read_pair(a, b)


def test_a_system_missing_from_one_run_has_no_difference(tmp_path):
    a, b = write_run(tmp_path / "a", RATES), write_run(tmp_path / "b", RATES | {"tuned-choose": 0.9})
    comparison = compare(a, b)
    last = comparison["systems"][-1]
    assert comparison["b"]["system"] == "tuned-choose" and last["a"] is None
    assert last["difference"] is None and "tuned-choose" in terminal_text(comparison)
    Page(comparison_page(*read_pair(a, b), comparison))


def test_sentence_reports_the_spread_over_seeds(tmp_path):
    a, b = two_runs(tmp_path)
    write_part(b, "seeds/1", {"tuned": 0.8})
    assert "Over 2 seeds, B (second) reaches 70.0 % ± 14.1 points (60.0, 80.0)" in compare(a, b)["sentence"]


def test_page_is_self_contained_and_escapes_all_text(tmp_path):
    evil = "<script>alert('x')</script>\" onload=\"x [bold] {{ 7 * 7 }}"
    a, b = two_runs(tmp_path)
    (b / "config.toml").write_text((TOML % b) + f"note = {json.dumps(evil)}\n")
    for run in (a, b):
        change_json(run / "data.json", test_prompts=[evil] * 200)
    comparison = compare(a, b)
    html = comparison_page(*read_pair(a, b), comparison)
    parsed = Page(html)
    assert parsed.references == [] and "url(" not in html and "@import" not in html
    assert not [tag for tag, attrs in parsed.tags if tag == "script" or "onload" in attrs]
    assert parsed.text.count(evil) >= 3 and "[bold]" in terminal_text(comparison)
    assert all("scope" in attrs for tag, attrs in parsed.tags if tag == "th")
    assert all(name in parsed.text for name in (*RATES, str(a), str(b)))


def test_page_of_identical_runs_with_graded_scores(tmp_path):
    a, b = two_runs(tmp_path, range(100), range(100))
    for run in (a, b):
        change_json(run / "data.json", task="text", labels=[])
    comparison = compare(a, b)
    difference = comparison["difference"]
    assert (
        difference["p_value"] == 1
        and -difference["low"] == pytest.approx(difference["high"])
        and difference["high"] > 0
    )
    text = Page(comparison_page(*read_pair(a, b), comparison)).text
    assert "Sign-flip test" in text and "McNemar" not in text and "Mean ROUGE-L" in text and "A better: 0" in text


def test_command_line(tmp_path, capsys):
    a, b = two_runs(tmp_path)
    assert main(["compare", str(a), str(b), "--json", "--html", str(tmp_path / "c.html")]) == 0
    assert json.loads(capsys.readouterr().out) == compare(a, b)
    assert "No significant difference" in (tmp_path / "c.html").read_text()
    assert main(["compare", str(a), str(tmp_path)]) == 2
    assert "Not a run directory" in capsys.readouterr().err

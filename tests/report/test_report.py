"""The report of a run: its numbers, the verdict, the page, the terminal table, and conformance to the schema."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from loratory.errors import UserError
from loratory.metrics.significance import mcnemar_exact
from loratory.report.page import write_report
from loratory.report.report import build_report
from loratory.report.terminal import render_table
from loratory.settings import SYSTEMS as TASK_SYSTEMS

SYSTEMS = TASK_SYSTEMS["classification"]

SCHEMA = Path(__file__).parents[3] / "shared" / "contract" / "report.schema.json"
LABELS = ["Computation and Language", "Cryptography", "Databases", "Machine Learning", "Robotics"]
RATES = {"prompt": 0.2, "prompt-choose": 0.3, "few-shot": 0.3, "few-shot-choose": 0.4, "linear": 0.6, "embed": 0.5,
         "encoder": 0.55, "tuned": 0.7, "tuned-choose": 0.75, "blend": 0.77}  # fmt: skip
FEW = {"prompt": 0.3, "linear": 0.6, "tuned-choose": 0.75}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def predictions(expected, num_right, labels, seed, probabilities):
    """Prediction lines; the first ``num_right`` examples of a seeded shuffle are correct."""
    generator = np.random.default_rng(seed)
    right = set(generator.permutation(len(expected))[:num_right].tolist())
    rows = []
    for i, label in enumerate(expected):
        wrong = [other for other in labels if other != label]
        answer = label if i in right else wrong[generator.integers(len(wrong))]
        sure = {name: 0.8 if name == answer else 0.2 / (len(labels) - 1) for name in labels} if probabilities else None
        row = {"index": i, "expected": label, "answer": answer, "correct": i in right}
        rows.append(row | {"log_probs": None, "probabilities": sure})
    return rows


def write_run(run, rates=RATES, labels=LABELS, num_test=200, validation=True, **system_facts):
    """A synthetic run directory in which each system answers its given share of the test examples correctly."""
    expected = [labels[i % len(labels)] for i in range(num_test)]
    for seed, (name, rate) in enumerate(rates.items()):
        metadata = {"name": name, "note": None, "seconds": 2.0, "seconds_per_example": 0.01, "rule": None}
        write_json(run / "systems" / f"{name}.json", metadata | system_facts.get(name.replace("-", "_"), {}))
        rows = predictions(expected, round(rate * num_test), labels, seed, name.endswith("choose") or name == "blend")
        write_lines(run / "predictions" / f"{name}.jsonl", rows)
        if validation:
            rows = predictions(expected[:100], round(rate * 100), labels, 100 + seed, False)
            write_lines(run / "predictions" / "validation" / f"{name}.jsonl", rows)
    (run / "config.toml").write_text('task = "classification"\n[prompt]\nsystem = "Classify the paper."\n')
    write_json(run / "environment.json", {
        "model": {"name": "example/small-model", "revision": "abc123", "weights_sha256": "0" * 64},
        "device": "cpu", "dtype": "bfloat16", "threads": 2, "cpu": "Some CPU", "python": "3.11.7",
        "versions": {"torch": "2.11.0"}, "why": "No GPU was found, and bfloat16 is faster here.", "git": None,
    })  # fmt: skip
    write_json(run / "data.json", {
        "task": "classification", "labels": labels, "train_examples": 800, "validation_examples": 100,
        "test_examples": num_test, "files": [{"path": "papers.csv", "sha256": "1" * 64, "rows": 1100}],
        "checks": [{"name": "duplicates", "count": 3, "message": "3 examples occur twice in the training data."}],
        "test_prompts": [f"Abstract number {i}: we study a problem." for i in range(num_test)],
    })  # fmt: skip
    write_lines(run / "metrics.jsonl", events())
    return run


def events():
    yield {"event": "stage", "name": "load", "seconds": 1.5}
    yield {"event": "stage", "name": "train", "seconds": 20.0}
    for step in range(1, 51):
        yield {"event": "step", "trial": "2e-4", "step": step, "steps": 50, "epoch": step / 25, "loss": 3 / step,
               "learning_rate": 2e-4, "grad_norm": 1.0, "tokens": 100, "unique_tokens": 60, "seconds": 0.4}  # fmt: skip
        yield {"event": "step", "trial": "2e-3", "step": step, "loss": 77.0}
    yield {"event": "validation", "trial": "2e-4", "step": 25, "loss": 0.5}
    yield {"event": "validation", "trial": "2e-4", "step": 50, "loss": 0.4}
    yield {"event": "trial", "trial": "2e-4", "learning_rate": 2e-4, "validation_loss": 0.4, "chosen": True}
    yield {"event": "trial", "trial": "2e-3", "learning_rate": 2e-3, "validation_loss": 0.9, "chosen": False}
    yield {"event": "trained", "trainable_parameters": 1000, "total_parameters": 100000, "tokens_per_second": 512.0}
    yield {"event": "stage", "name": "train", "seconds": 5.0}
    yield {"event": "memory", "peak_memory_bytes": 2_000_000_000}
    yield {"event": "memory", "peak_memory_bytes": 1_000_000_000}
    yield {"event": "of a later version", "x": 1}


def exactly(run, name, right):
    """Rewrites a system's predictions so that exactly the test examples ``right`` are correct."""
    path = run / "predictions" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["correct"] = row["index"] in right
        row["answer"] = row["expected"] if row["correct"] else next(x for x in LABELS if x != row["expected"])
    write_lines(path, rows)


def change_json(path, **values):
    write_json(path, json.loads(path.read_text()) | values)


def write_part(run, part, rates=None, num_test=200):
    """Writes the predictions and the log of one seed or fold of a run."""
    expected = [LABELS[i % len(LABELS)] for i in range(num_test)]
    for name, rate in (rates or {"tuned": 0.5, "tuned-choose": 0.6}).items():
        metadata = {"name": name, "note": None, "seconds": 2.0, "seconds_per_example": 0.01, "rule": None}
        write_json(run / part / "systems" / f"{name}.json", metadata)
        rows = predictions(expected, round(rate * num_test), LABELS, 7, name.endswith("choose"))
        write_lines(run / part / "predictions" / f"{name}.jsonl", rows)
    write_lines(run / part / "metrics.jsonl", [{"event": "stage", "name": "train", "seconds": 100.0}])


class Page(HTMLParser):
    """Collects the text, tags and references of a page; fails if tags are not properly nested."""

    VOID = frozenset({"meta", "col", "br", "path"})

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.references, self.open, self.marked_text = "", [], [], [], ""
        self.feed(html.replace("\u00a0", " "))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.references += [value for name, value in attrs if name in ("src", "href")]
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.marked_text += data if "mark" in self.open else ""


def page_of(run):
    return Page((run / "report.html").read_text())


def table_of(report, suggestions=()):
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(render_table(report, suggestions))
    return capture.get()


@pytest.mark.skipif(not SCHEMA.exists(), reason="the schema is not available")
@pytest.mark.parametrize(
    "names", [SYSTEMS, ("prompt",), ("tuned",), ("linear",), ("tuned", "linear"), ("few-shot", "tuned")]
)
def test_report_conforms_to_the_schema(tmp_path, names):
    report = write_report(write_run(tmp_path, {name: RATES[name] for name in names}))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    assert {report["verdict"]["before"], report["verdict"]["after"]} <= {s["name"] for s in report["systems"]}


def test_written_report_equals_the_built_report(tmp_path):
    report = write_report(write_run(tmp_path))
    assert json.loads((tmp_path / "report.json").read_text()) == report == build_report(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_numbers_come_from_the_files(tmp_path):
    report = build_report(write_run(tmp_path))
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS)
    assert {s["name"]: s["value"] for s in report["systems"]} == pytest.approx(RATES)
    assert {s["name"]: s["validation_value"] for s in report["systems"]} == pytest.approx(RATES)
    assert all(s["low"] < s["value"] < s["high"] for s in report["systems"])
    assert {"macro_f1", "macro_f1_low", "macro_f1_high", "unparsed"} <= report["systems"][0]["metrics"].keys()
    assert "ece" not in report["systems"][0]["metrics"] and "ece" in report["systems"][1]["metrics"]
    assert report["seconds"] == {"load": 1.5, "check": 0, "baselines": 0, "train": 25, "evaluate": 0, "total": 26.5}
    assert report["peak_memory_bytes"] == 2_000_000_000
    assert report["train_tokens_per_second"] == 512
    assert (report["trainable_parameters"], report["total_parameters"]) == (1000, 100000)


def test_before_and_after_are_chosen_on_validation_not_on_test(tmp_path):
    write_run(tmp_path, {"prompt": 0.9, "few-shot": 0.1, "tuned": 0.95, "tuned-choose": 0.2})
    for worse, better in (("prompt", "few-shot"), ("tuned", "tuned-choose")):
        a, b = (tmp_path / "predictions" / "validation" / f"{name}.jsonl" for name in (worse, better))
        swap = a.read_text()
        a.write_text(b.read_text())
        b.write_text(swap)
    verdict = build_report(tmp_path)["verdict"]
    assert (verdict["before"], verdict["after"]) == ("few-shot", "tuned-choose")


def test_without_validation_the_systems_that_score_labels_are_chosen(tmp_path):
    report = build_report(write_run(tmp_path, validation=False))
    assert (report["verdict"]["before"], report["verdict"]["after"]) == ("prompt-choose", "tuned-choose")
    assert all(s["validation_value"] is None for s in report["systems"])


def test_comparisons_count_the_pairs(tmp_path):
    write_run(tmp_path, {"prompt": 0.5, "linear": 0.5, "tuned": 0.5})
    exactly(tmp_path, "prompt", set(range(30)))
    exactly(tmp_path, "linear", set(range(100)))
    exactly(tmp_path, "tuned", set(range(20, 100)))
    first, second = build_report(tmp_path)["comparisons"]
    assert (first["a"], first["b"], first["only_a"], first["only_b"], first["difference"]) == (
        "prompt",
        "tuned",
        20,
        70,
        0.25,
    )
    assert (second["a"], second["only_a"], second["only_b"], second["difference"]) == ("linear", 20, 0, -0.1)
    assert first["low"] < 0.25 < first["high"]
    # Holm doubles the smaller of two p-values; 20 equal coin tosses have a two-sided p-value of 2 / 2^20.
    assert second["p_value"] == pytest.approx(2 / 2**20)
    assert first["p_value"] == pytest.approx(2 * mcnemar_exact(20, 70))


@pytest.mark.parametrize(
    ("prompt", "linear", "tuned", "helped", "beats", "expected"),
    [
        (60, 80, 150, True, True,
         r"Tuning helped: 75\.0 % against 30\.0 % for prompting \(prompt\) on 200 test examples"
         r" \(p < 0\.001\), and the tuned model beats a linear model's 40\.0 % \(p < 0\.001\)\."),
        (60, 190, 150, True, False,
         r"Tuning helped: .*, but a linear model reaches 95\.0 % \(p < 0\.001\) and trains in seconds\."),
        (60, 152, 150, True, False,
         r"Tuning helped: .*, but a linear model reaches 76\.0 % and trains in seconds: no significant .*"),
        (60, 148, 150, True, False,
         r"Tuning helped: .*, but a linear model reaches 74\.0 % and trains in seconds: no significant .*"),
        (150, 80, 152, False, True,
         r"Tuning did not help: 76\.0 % against 75\.0 % .* no significant difference \(p = 0\.50\), but the tuned .*"),
        (150, 150, 150, False, False,
         r"Tuning did not help: .* \(p = 1\.00\), and a linear model reaches 75\.0 % .*"),
        (150, 190, 60, False, False,
         r"Tuning did not help; it made the answers worse: .* \(p < 0\.001\), and a linear model .*"),
        (60, None, 150, True, None, r"Tuning helped: .* \(p < 0\.001\)\."),
    ],
)  # fmt: skip
def test_verdict_matches_the_counts(tmp_path, prompt, linear, tuned, helped, beats, expected):
    counts = {"prompt": prompt, "linear": linear, "tuned": tuned}
    counts = {name: count for name, count in counts.items() if count is not None}
    write_run(tmp_path, dict.fromkeys(counts, 0.5))
    for name, count in counts.items():
        exactly(tmp_path, name, set(range(count)))
    verdict = write_report(tmp_path)["verdict"]
    assert (verdict["helped"], verdict["beats_linear"]) == (helped, beats)
    assert re.fullmatch(expected, verdict["sentence"]), verdict["sentence"]
    assert verdict["sentence"] in page_of(tmp_path).text


def test_a_better_prompting_that_validation_did_not_select_is_reported(tmp_path):
    counts = {"prompt": 60, "few-shot": 100, "linear": 80, "tuned": 150}
    write_run(tmp_path, dict.fromkeys(counts, 0.5) | {"few-shot": 0.4})
    for name, count in counts.items():
        exactly(tmp_path, name, set(range(count)))
    verdict = build_report(tmp_path)["verdict"]
    assert verdict["before"] == "prompt"
    expected = (
        " On the test examples, few-shot was the best prompting (50.0 %); 100 validation examples did not show it."
    )
    assert verdict["sentence"].endswith(expected)
    exactly(tmp_path, "few-shot", set(range(61)))
    assert "was the best prompting" not in build_report(tmp_path)["verdict"]["sentence"]


def test_verdict_states_the_time_of_a_slow_linear_model(tmp_path):
    write_run(tmp_path, {"prompt": 0.1, "linear": 0.9, "tuned": 0.5}, linear={"seconds": 150.0})
    assert build_report(tmp_path)["verdict"]["sentence"].endswith("takes 2 min 30 s.")


def test_only_baselines_measured(tmp_path):
    report = write_report(write_run(tmp_path, {"prompt": 0.3, "few-shot": 0.4, "linear": 0.6}))
    verdict = report["verdict"]
    assert (verdict["before"], verdict["after"], verdict["helped"]) == ("few-shot", "few-shot", False)
    assert report["comparisons"] == [] and verdict["beats_linear"] is None
    assert verdict["sentence"] == "Nothing tuned was measured: linear is the best so far, 60.0 % on 200 test examples."
    assert "loratory predict" not in page_of(tmp_path).text


def test_only_tuned_systems_measured(tmp_path):
    report = write_report(write_run(tmp_path, {"tuned": 0.9, "linear": 0.4}))
    verdict = report["verdict"]
    assert (verdict["before"], verdict["after"], verdict["helped"]) == ("tuned", "tuned", False)
    assert verdict["sentence"].startswith("No baseline was measured") and "90.0 % on 200" in verdict["sentence"]
    assert verdict["beats_linear"] is True and [c["a"] for c in report["comparisons"]] == ["linear"]


def test_a_run_without_systems_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="No system was measured"):
        build_report(tmp_path)


def test_the_error_names_a_missing_file(tmp_path):
    (write_run(tmp_path) / "predictions" / "embed.jsonl").unlink()
    with pytest.raises(UserError, match=r"embed\.jsonl"):
        build_report(tmp_path)


def test_systems_of_different_test_examples_are_not_compared(tmp_path):
    path = write_run(tmp_path) / "predictions" / "tuned.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="same test examples"):
        build_report(tmp_path)


@pytest.mark.parametrize("torn", ['{"event": "sta', '{"event": "stage", "na\xe9'.encode("latin-1"), "7", "null"])
def test_a_torn_last_line_of_the_log_is_skipped(tmp_path, torn):
    log = write_run(tmp_path, FEW) / "metrics.jsonl"
    whole = build_report(tmp_path)
    with log.open("ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert build_report(tmp_path) == whole


def test_answers_are_parsed_for_the_metrics(tmp_path):
    path = write_run(tmp_path, {"prompt": 1.0}) / "predictions" / "prompt.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"answer": f"**{row['answer'].upper()}**.\nBecause."} for row in rows]
    write_lines(path, [*rows[:-1], rows[-1] | {"answer": None, "correct": False}])
    system = build_report(tmp_path)["systems"][0]
    assert system["value"] == 0.995 and system["metrics"]["unparsed"] == 0.005
    assert system["per_label"]["Cryptography"] == {"precision": 1, "recall": 1, "f1": 1, "support": 40}
    assert "prompt: 0.5 % of the answers name no label" in table_of(build_report(tmp_path))


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\" onload=\"x [bold] {{ 7 * 7 }}"
    run = write_run(tmp_path / "run", labels=[*LABELS, evil], prompt={"note": evil, "rule": evil})
    (run / "config.toml").write_text(f"# {evil}")
    for name in ("environment", "data"):
        value = json.loads((run / f"{name}.json").read_text())
        value = value | ({"why": evil, "cpu": evil} if name == "environment" else {"test_prompts": [evil] * 200})
        check = {"name": evil, "severity": evil, "count": 1, "message": evil, "places": [evil]}
        value |= {"checks": [check]} if name == "data" else {}
        value |= {"rendered": [{"source": evil, "tokens": [[evil, True], [evil, False]]}], "completion": evil}
        write_json(run / f"{name}.json", value)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"event": "trial", "trial": evil, "learning_rate": 1, "validation_loss": 1, "chosen": False})
        )
    report = write_report(run)
    page = page_of(run)
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onload" in attrs]
    assert page.text.count(evil) >= 11 and "{{ 7 * 7 }}" in page.text
    assert "[bold]" in table_of(report)


def test_page_is_self_contained_and_describes_its_charts(tmp_path):
    write_report(write_run(tmp_path))
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    parts = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert page.references and set(page.references) <= parts, "all links are internal"
    assert "url(" not in html and "@import" not in html and "<script" not in html
    pictures = [attrs for _, attrs in page.tags if attrs.get("role") == "img"]
    num_comparisons, num_curves, before_simple_and_after = 4, 1, 3
    assert len(pictures) == before_simple_and_after + len(SYSTEMS) + num_comparisons + num_curves
    assert all(attrs["aria-label"] for attrs in pictures)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert "from 3 to 0.06 in 50 steps" in page.text, "the loss of the chosen trial"
    assert "validation loss goes from 0.5 to 0.4" in page.text


def test_a_step_repeated_after_resuming_counts_once(tmp_path):
    log = write_run(tmp_path) / "metrics.jsonl"
    with log.open("a") as file:
        file.write(json.dumps({"event": "step", "trial": "2e-4", "step": 50, "loss": 0.5}) + "\n")
    write_report(tmp_path)
    assert "from 3 to 0.5 in 50 steps" in page_of(tmp_path).text


def test_page_lists_the_examples_whose_answers_changed(tmp_path):
    write_run(tmp_path, {"prompt": 0.5, "tuned": 0.5})
    exactly(tmp_path, "prompt", {0, 1, 2})
    exactly(tmp_path, "tuned", set(range(2, 190)))
    write_report(tmp_path)
    text = page_of(tmp_path).text
    assert "Fixed: 187" in text and "Broken: 2" in text and "Still wrong: 10" in text
    assert "Abstract number 3:" in text and "Abstract number 1:" in text and "Abstract number 190:" in text
    assert "Abstract number 2:" not in text, "correct before and after"


def test_page_shows_the_most_probable_labels_the_answer_and_the_expected_label(tmp_path):
    write_run(tmp_path, {"prompt": 0.0, "tuned-choose": 0.5}, num_test=5)
    path = tmp_path / "predictions" / "tuned-choose.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    shares = dict(zip(reversed(LABELS), (0.4, 0.3, 0.2, 0.07, 0.03), strict=True))
    write_lines(path, [row | {"answer": LABELS[-1], "correct": False, "probabilities": shares} for row in rows])
    write_report(tmp_path)
    lists = re.findall(r"<ul>(.*?)</ul>", (tmp_path / "report.html").read_text(), re.DOTALL)
    first, second, third = ([label for label in LABELS if label in text] for text in lists[:3])
    assert (first, second) == ([LABELS[0], *LABELS[2:]], LABELS[1:]), (
        "the expected label is shown even if it is improbable"
    )
    assert third == LABELS[2:]
    assert "3&nbsp;%" in lists[0] and "width" not in lists[0] and "--p:40.0%" in lists[0]


def test_target_tokens_are_marked_and_the_text_is_complete(tmp_path):
    tokens = [["<|user|>\n", False], ["Say", False], [" it", False], ["<|bot|>", False], ["Robo", True], ["tics", True]]
    change_json(write_run(tmp_path, FEW) / "data.json", rendered=[{"source": "papers.csv:7", "tokens": tokens}])
    write_report(tmp_path)
    page = page_of(tmp_path)
    assert "papers.csv:7" in page.text and "<|user|>↵\nSay it<|bot|>Robotics" in page.text
    assert page.marked_text.endswith("Robotics") and "Say it" not in page.marked_text


def test_the_middle_of_a_very_long_example_is_left_out(tmp_path):
    tokens = [[f"token{i} ", i >= 4990] for i in range(5000)]
    change_json(write_run(tmp_path, FEW) / "data.json", rendered=[{"source": "a.csv:2", "tokens": tokens}])
    write_report(tmp_path)
    page = page_of(tmp_path)
    assert "token0 " in page.text and "token4999 " in page.marked_text and "token2500 " not in page.text
    left_out = int(re.search(r"(\d+) tokens not shown", page.text).group(1))
    assert len(re.findall(r"token\d+ ", page.text)) == 5000 - left_out


def test_several_seeds_are_reported_with_mean_and_spread(tmp_path):
    write_run(tmp_path, {"prompt": 0.3, "tuned": 0.7, "tuned-choose": 0.75})
    (tmp_path / "config.toml").write_text("[train]\nseed = 4\n")
    write_part(tmp_path, "seeds/5", {"tuned": 0.5, "tuned-choose": 0.6})
    write_part(tmp_path, "seeds/10", {"tuned": 0.6, "tuned-choose": 0.9})
    report = write_report(tmp_path)
    assert [s["name"] for s in report["seeds"]] == ["tuned", "tuned-choose"]
    choose = report["seeds"][1]
    assert choose["seeds"] == [4, 5, 10] and choose["values"] == pytest.approx([0.75, 0.6, 0.9])
    assert choose["mean"] == pytest.approx(0.75) and choose["sd"] == pytest.approx(0.15)
    expected = "75.0 % ± 15.0 points (75.0, 60.0, 90.0)"
    assert expected in report["verdict"]["sentence"] and expected in page_of(tmp_path).text
    assert expected in " ".join(table_of(report).split())
    assert report["systems"][-1]["value"] == 0.75, "the headline value is that of the first seed"
    assert report["seconds"]["train"] == 25 + 200, "the time of the additional seeds is included"


def test_seeds_with_different_test_examples_are_an_error(tmp_path):
    write_part(write_run(tmp_path, FEW), "seeds/1", num_test=199)
    with pytest.raises(UserError, match="same test examples"):
        build_report(tmp_path)


def test_folds_are_reported_and_explained(tmp_path):
    change_json(write_run(tmp_path, FEW) / "data.json", folds=2)
    rates = {"linear": 0.25, "tuned-choose": 0.75}
    for k, rate in (("1", 1.0), ("2", 0.5)):
        write_part(tmp_path, f"folds/{k}", {name: rate * share for name, share in rates.items()}, num_test=80)
    report = write_report(tmp_path)
    assert report["folds"]["count"] == 2 and report["seeds"] is None
    assert report["folds"]["values"]["tuned-choose"] == pytest.approx([0.75, 0.375])
    assert report["folds"]["values"]["prompt"] == [], "not measured in any fold"
    page = page_of(tmp_path)
    assert "was not trained on it" in page.text and "its score is not measured" in page.text
    assert "2 folds" in report["verdict"]["sentence"] and "37.5 %" in page.text and "37.5" in table_of(report)


def test_seeds_and_folds_are_null_if_there_are_none(tmp_path):
    report = write_report(write_run(tmp_path, FEW))
    assert (report["seeds"], report["folds"]) == (None, None)
    text = page_of(tmp_path).text
    assert not [word for word in (" seeds", " folds", "Estimated", "emonstration") if word in text]


def test_the_selected_step_and_early_stopping_are_shown(tmp_path):
    log = write_run(tmp_path, FEW) / "metrics.jsonl"
    trial = {"event": "trial", "trial": "2e-4", "learning_rate": 2e-4, "validation_loss": 0.4, "chosen": True}
    with log.open("a") as file:
        file.write(json.dumps(trial | {"best_step": 25, "stopped": True}) + "\n")
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "selected: step 25" in html and 'class="kept" d="M50.00 0' in html
    assert "stopped early" in page_of(tmp_path).text


def test_estimated_and_actual_times_are_shown(tmp_path):
    with (write_run(tmp_path, FEW) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "estimate", "stages": {"baselines": 3.0, "train": 30.0}}) + "\n")
    write_report(tmp_path)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", (tmp_path / "report.html").read_text(), re.DOTALL)
    train = next(row for row in rows if '<th scope="row">train</th>' in row)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", train) == ["30 s", "25 s"]


def test_the_demonstration_model_is_pointed_out(tmp_path):
    change_json(write_run(tmp_path, FEW) / "environment.json", demonstration=True)
    report = write_report(tmp_path)
    assert "--model.name" in page_of(tmp_path).text
    assert "demonstration" in table_of(report).splitlines()[0]


@pytest.mark.thorough
def test_the_page_of_a_large_run_has_a_bounded_size(tmp_path):
    labels = [f"intent number {i} with quite a long name" for i in range(77)]
    write_run(tmp_path, {"prompt": 0.4, "tuned-choose": 0.7}, labels, num_test=3000, validation=False)
    change_json(
        tmp_path / "data.json",
        test_prompts=["word " * 800] * 3000,
        rendered=[{"source": "a.csv:2", "tokens": [["word ", False]] * 20000}] * 5,
    )
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_the_page_says_if_labels_are_left_out(tmp_path):
    labels = [f"label {i}" for i in range(250)]
    write_report(write_run(tmp_path, {"prompt": 0.3, "tuned-choose": 0.7}, labels=labels, num_test=500))
    assert "the 20 of 250 labels" in page_of(tmp_path).text and "the first 200 of 250 labels" in page_of(tmp_path).text


def test_prompts_validation_and_log_may_be_missing(tmp_path):
    write_run(tmp_path, validation=False)
    (tmp_path / "metrics.jsonl").unlink()
    data = json.loads((tmp_path / "data.json").read_text())
    del data["test_prompts"]
    write_json(tmp_path / "data.json", data)
    report = write_report(tmp_path)
    assert report["train_tokens_per_second"] is None and "training loss" not in page_of(tmp_path).text


def test_table_starts_with_the_verdict_and_lists_systems_in_order(tmp_path):
    report = build_report(write_run(tmp_path, prompt={"note": "2 of 4 examples fit"}))
    text = table_of(report)
    assert " ".join(text.split()).startswith(f"{report['verdict']['sentence']} Best: nothing simpler is as good ")
    table = text[re.search(r"^ *system ", text, re.MULTILINE).start() :]
    positions = [re.search(rf"^ *{name} ", table, re.MULTILINE).start() for name in SYSTEMS]
    assert positions == sorted(positions)
    assert "2 of 4 examples fit" in text and "75.0 %" in text and "+35.0" in text


# ---- the system to answer with ---------------------------------------------------------------------------------------


def with_probabilities(run, name: str, right: float) -> None:
    """Gives the right label the probability ``right`` in every validation example of a system, with some variation."""
    path = run / "predictions" / "validation" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        p = right + (0.01 if i % 2 else -0.01)
        rest = (1 - p) / (len(LABELS) - 1)
        row["probabilities"] = {label: p if label == row["expected"] else rest for label in LABELS}
    write_lines(path, rows)


@pytest.mark.parametrize(
    ("right", "delivered"),
    [
        ({"linear": 0.5, "tuned-choose": 0.6, "blend": 0.7}, "blend"),
        ({"linear": 0.7, "tuned-choose": 0.6, "blend": 0.7}, "linear"),  # as good, and simpler
        ({"linear": 0.5, "tuned-choose": 0.7, "blend": 0.6}, "tuned-choose"),
    ],
)
def test_the_system_to_answer_with_has_the_best_probabilities_or_is_simpler_and_as_good(tmp_path, right, delivered):
    write_run(tmp_path, {"prompt": 0.3, "linear": 0.6, "tuned-choose": 0.75, "blend": 0.77})
    for name, p in right.items():
        with_probabilities(tmp_path, name, p)
    report = build_report(tmp_path)
    assert report["verdict"]["delivered"] == delivered
    assert (f"the best on validation is {delivered}" in report["verdict"]["sentence"]) == (delivered != "tuned-choose")


def test_without_probabilities_the_tuned_system_answers(tmp_path):
    report = build_report(write_run(tmp_path, {"prompt": 0.3, "linear": 0.6, "tuned": 0.75}))
    assert report["verdict"]["delivered"] == "tuned"


def test_sets_of_labels_are_not_judged_by_the_probability_of_one(tmp_path):
    write_run(tmp_path, {"linear": 0.6, "tuned-choose": 0.75})
    for name, p in {"linear": 0.7, "tuned-choose": 0.6}.items():
        with_probabilities(tmp_path, name, p)
    assert build_report(tmp_path)["verdict"]["delivered"] == "linear"
    data = json.loads((tmp_path / "data.json").read_text())
    write_json(tmp_path / "data.json", {**data, "task": "labels"})
    assert build_report(tmp_path)["verdict"]["delivered"] == "tuned-choose"

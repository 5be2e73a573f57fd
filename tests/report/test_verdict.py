"""The five states of the verdict, what a reader is told about the training, and what to do next."""

import json
import shutil

import pytest
from test_report import LABELS, change_json, exactly, page_of, table_of, write_lines, write_run

from loratory.report.advice import next_steps, suggestions
from loratory.report.page import write_report
from loratory.report.reading import read_run
from loratory.report.report import build_report
from loratory.report.verdict import STATES

RIGHT = {"prompt": 60, "linear": 80, "embed": 70, "tuned": 150}
STATE_CASES = [
    ({}, "best"),
    ({"linear": 190}, "helped"),
    ({"embed": 148}, "helped"),  # as good: no significant difference
    ({"tuned": 62}, "no_change"),
    ({"tuned": 30}, "worse"),
]


def run_with(folder, num_test=200, **right):
    """A run whose systems answer exactly the first so many test examples correctly."""
    counts = {**RIGHT, **right}
    run = write_run(folder, dict.fromkeys(counts, 0.5), num_test=num_test)
    for name, count in counts.items():
        exactly(run, name, set(range(count)))
    return run


def log(run, **event):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def train(run, losses, validation=(), best_step=None):
    """Replaces the log by that of one training."""
    rows = [{"event": "step", "trial": "a", "step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    rows += [{"event": "validation", "trial": "a", "step": step, "loss": loss} for step, loss in validation]
    trial = {"event": "trial", "trial": "a", "learning_rate": 3e-4, "validation_loss": None, "chosen": True}
    write_lines(run / "metrics.jsonl", [*rows, trial | {"best_step": best_step}])


def advice_of(run):
    return suggestions(read_run(run), build_report(run))


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "state"), STATE_CASES)
def test_the_state_follows_from_the_comparisons(tmp_path, right, state):
    report = write_report(run_with(tmp_path, **right))
    assert report["verdict"]["state"] == state
    assert report["verdict"]["helped"] == (state in ("best", "helped"))
    page = page_of(tmp_path)
    assert STATES[state] in page.text and STATES[state] in table_of(report)
    assert [a["class"] for tag, a in page.tags if tag == "p" and "state" in a.get("class", "")] == [f"state {state}"]


def test_a_small_test_set_that_shows_nothing_cannot_tell_and_names_how_many_examples_would(tmp_path):
    run = run_with(tmp_path, num_test=20, prompt=8, linear=8, embed=8, tuned=11)
    report = write_report(run)
    assert report["verdict"]["state"] == "cannot_tell" and not report["verdict"]["helped"]
    assert report["verdict"]["sentence"].startswith(
        "Cannot tell: 55.0 % against 40.0 % for prompting (prompt) on 20 test"
    )
    assert "To show a difference of 10 points, about 170 test examples are needed." in report["verdict"]["sentence"]
    assert "about 170 would show" in page_of(tmp_path).text


def test_a_small_test_set_that_shows_a_difference_is_enough(tmp_path):
    run = run_with(tmp_path, num_test=20, prompt=4, linear=4, embed=4, tuned=18)
    assert build_report(run)["verdict"]["state"] == "best"


def test_five_graded_examples_never_show_that_tuning_helped(tmp_path):
    run = write_run(tmp_path, {"prompt": 0.0, "tuned": 0.0}, num_test=5)
    change_json(run / "data.json", task="text", labels=[])
    for name, worth in (("prompt", 0.01), ("tuned", 0.9)):
        path = run / "predictions" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [row | {"worth": worth + row["index"] / 100} for row in rows])
    verdict = build_report(run)["verdict"]
    assert verdict["state"] == "cannot_tell" and not verdict["helped"]
    [comparison] = build_report(run)["comparisons"]
    assert comparison["p_value"] >= 0.0625 and comparison["low"] <= 0


@pytest.mark.parametrize("rates", [{"prompt": 0.3, "linear": 0.6}, {"linear": 0.3, "tuned": 0.6}])
def test_there_is_no_state_without_a_comparison_of_before_and_after(tmp_path, rates):
    report = write_report(write_run(tmp_path, rates))
    assert "state" not in report["verdict"]
    assert not [attrs for tag, attrs in page_of(tmp_path).tags if attrs.get("class", "").startswith("state")]


def test_the_best_simple_system_stands_beside_before_and_after(tmp_path):
    write_report(run_with(tmp_path, embed=100))
    labels = [attrs["aria-label"] for _, attrs in page_of(tmp_path).tags if attrs.get("role") == "img"]
    assert [label.split(":")[0] for label in labels[:3]] == ["before, prompt", "best simple, embed", "after, tuned"]


def test_the_sentence_says_which_prompting_it_was_and_how_that_was_chosen(tmp_path):
    run = run_with(tmp_path)
    assert "30.0 % for prompting (prompt) on" in build_report(run)["verdict"]["sentence"]
    run = run_with(tmp_path, **{"few-shot-choose": 70})
    verdict = build_report(run)["verdict"]
    assert f"for the prompting chosen on validation ({verdict['before']}) on" in verdict["sentence"]
    shutil.rmtree(run / "predictions" / "validation")
    change_json(run / "data.json", validation_examples=0)
    sentence = build_report(run)["verdict"]["sentence"]
    assert "for prompting (few-shot-choose, the default without validation examples) on" in sentence


# ---- what could not be measured, and trainings that failed -----------------------------------------------------------


def test_systems_that_could_not_be_measured_are_listed_with_the_reason(tmp_path):
    run = run_with(tmp_path)
    assert "not_measured" not in build_report(run)
    log(run, event="not_measured", name="few-shot", reason="old reason")
    log(run, event="not_measured", name="few-shot", reason="no example fits [the] context")
    log(run, event="not_measured", name="linear", reason="measured in the end")
    report = write_report(run)
    assert report["not_measured"] == [{"name": "few-shot", "reason": "no example fits [the] context"}]
    assert "few-shot was not measured: no example fits [the] context" in table_of(report)
    assert "no example fits [the] context" in page_of(tmp_path).text


@pytest.mark.parametrize(
    ("losses", "failed"),
    [([2.0, 1.5, 1.0], False), ([2.0, 2.5, 3.0], True), ([2.0, 2.0, 2.0], True)],
)
def test_a_training_that_did_not_reduce_the_loss_is_pointed_out(tmp_path, losses, failed):
    run = run_with(tmp_path)
    train(run, losses)
    assert ("Training failed: the loss went from 2" in build_report(run)["verdict"]["sentence"]) == failed
    assert any("--train.learning-rate 0.0001" in sentence for sentence in advice_of(run)) == failed


@pytest.mark.parametrize(("answer", "moved"), [(None, False), ("something else", True)])
def test_a_training_that_changed_no_answer_is_pointed_out(tmp_path, answer, moved):
    run = run_with(tmp_path, prompt=50, tuned=50)
    if answer:
        path = run / "predictions" / "tuned.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [*rows[:-1], rows[-1] | {"answer": answer}])
    assert ("Nothing moved" in build_report(run)["verdict"]["sentence"]) == (not moved)


# ---- what to do next -------------------------------------------------------------------------------------------------


def test_a_good_run_needs_no_advice(tmp_path):
    run = run_with(tmp_path)
    train(run, [3 / (1 + i) for i in range(100)], [(50, 0.5), (100, 0.6)], best_step=50)
    report = write_report(run)
    assert suggestions(read_run(run), report) == next_steps(run, report) == []
    assert "Nothing that was measured calls for a change." in page_of(tmp_path).text
    assert "What to do next" not in table_of(report)


@pytest.mark.parametrize(
    ("right", "start"),
    [
        ({"linear": 190}, "Use linear: it reaches 95.0 % against 75.0 % for tuned (p < 0.001)"),
        ({"linear": 148}, "Consider linear: it reaches 74.0 % against 75.0 % for tuned, no significant difference"),
    ],
)
def test_a_simpler_system_that_is_as_good_is_recommended(tmp_path, right, start):
    assert advice_of(run_with(tmp_path, **right))[0].startswith(start)


def test_more_test_examples_are_recommended_if_they_are_too_few(tmp_path):
    run = run_with(tmp_path, num_test=20, prompt=8, linear=8, embed=8, tuned=11)
    first = advice_of(run)[0]
    assert first.startswith("Measure on more test examples: there are 20, and about 170 would show")
    assert "--data.folds" in first
    (run / "config.toml").write_text('[data]\ntest = ["test.csv"]\n')
    assert "--data.folds" not in advice_of(run)[0], "a test file excludes cross-validation"


@pytest.mark.parametrize(
    ("losses", "validation", "best_step", "expected"),
    [
        ([3 / (1 + i) for i in range(20)], [], None, "20 optimizer steps are few"),
        ([3 / (1 + i) for i in range(20)], [(10, 0.9), (20, 0.8)], 20, "still falling at the end, from 0.9 to 0.8"),
        ([3 / (1 + i) for i in range(20)], [(10, 0.8), (20, 0.9)], 10, None),
        ([3 - i / 50 for i in range(100)], [], None, "still falling at the end"),
        ([3.0] * 50 + [1.0] * 50, [(50, 1.001), (100, 1.0)], 100, None),
    ],
)
def test_longer_training_is_recommended_if_it_may_help(tmp_path, losses, validation, best_step, expected):
    run = run_with(tmp_path)
    train(run, losses, validation, best_step)
    found = [sentence for sentence in advice_of(run) if sentence.startswith("Train longer (--train.epochs)")]
    assert [expected in sentence for sentence in found] == ([True] if expected else [])


def test_a_larger_model_is_recommended_after_a_demonstration(tmp_path):
    run = run_with(tmp_path)
    change_json(run / "environment.json", demonstration=True)
    assert "Choose a larger model with --model.name" in advice_of(run)[0]


@pytest.mark.parametrize(("examples", "expected"), [(199, True), (200, False)])
def test_more_training_examples_are_recommended_if_they_are_few(tmp_path, examples, expected):
    run = run_with(tmp_path)
    train(run, [3 / (1 + i) for i in range(100)], [(50, 0.5), (100, 0.6)], best_step=50)
    change_json(run / "data.json", train_examples=examples)
    advice = f"Collect more training examples: {examples} are few for {len(LABELS)} labels."
    assert advice_of(run) == ([advice] if expected else [])


def test_at_most_three_suggestions_the_most_useful_first(tmp_path):
    run = run_with(tmp_path, num_test=20, prompt=8, linear=20, embed=8, tuned=11)
    train(run, [2.0, 1.0])
    change_json(run / "environment.json", demonstration=True)
    change_json(run / "data.json", train_examples=30)
    found = advice_of(run)
    assert [sentence.split()[0] for sentence in found] == ["Use", "Measure", "Choose"]
    report = write_report(run)
    text = page_of(tmp_path).text
    assert all(sentence in text for sentence in found)
    in_terminal = " ".join(table_of(report, found).split())
    assert all(f"What to do next: {sentence}" in in_terminal for sentence in found)


def test_nothing_is_recommended_before_tuning(tmp_path):
    assert advice_of(write_run(tmp_path, {"prompt": 0.3, "linear": 0.6})) == []


def test_warnings_of_the_training_are_on_the_page(tmp_path):
    run = run_with(tmp_path)
    log(run, event="warning", name="diverged", message="Training diverged: <the loss> rose")
    write_report(run)
    assert "Training diverged: <the loss> rose" in page_of(tmp_path).text


def test_a_tuned_model_that_could_not_be_measured_is_not_passed_over(tmp_path):
    run = run_with(tmp_path)
    for path in (run / "systems").glob("tuned*.json"):
        path.unlink()
    log(run, event="not_measured", name="tuned-choose", reason="its scores are not finite")
    assert write_report(run)["verdict"]["sentence"].startswith("The tuned model could not be measured. Nothing tuned")

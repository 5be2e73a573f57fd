"""A system that cannot be measured is named with the reason, and the run goes on without it."""

import json
from pathlib import Path

import pytest
from test_finetune import changed, config  # noqa: F401

from loratory.errors import Interrupted, UserError
from loratory.evaluation.evaluate_system import NotMeasurable
from loratory.events import Event
from loratory.finetune import evaluate_run, finetune
from loratory.run import selection
from loratory.storage.run_directory import read_metrics

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]


def reasons(run: Path) -> list[tuple[str, str]]:
    return [(m["name"], m["reason"]) for m in read_metrics(run) if m["event"] == "not_measured"]


def measured(run: Path) -> set[str]:
    return {path.stem for path in run.glob("systems/*.json")}


def test_a_baseline_without_words_is_left_out_and_the_rest_is_measured(config):  # noqa: F811
    settings = changed(config, "prompt", system="{text}", user=" ", few_shot=0)
    events: list[Event] = []
    run = finetune(changed(settings, "run", systems=("prompt-choose", "linear", "tuned-choose")), events.append)
    assert reasons(run) == [("linear", "the training texts contain no words")]
    assert measured(run) == {"prompt-choose", "tuned-choose"}
    assert "linear was not measured: the training texts contain no words" in [e.text for e in events]
    assert not list(run.glob("predictions/**/linear.jsonl"))
    assert json.loads((run / "report.json").read_text())["verdict"]["after"] == "tuned-choose"


def test_few_shot_prompting_that_does_not_fit_is_listed(config, animals):  # noqa: F811
    lines = animals.read_text().splitlines()
    animals.write_text("\n".join([lines[0], *(line.replace(" sleeps", " sleeps" * 40) for line in lines[1:])]) + "\n")
    settings = changed(config, "run", systems=("few-shot", "few-shot-choose", "linear", "tuned-choose"))
    run = finetune(settings)
    fits = "no example fits into the prompt"
    assert reasons(run) == [("few-shot", fits), ("few-shot-choose", fits)]
    assert measured(run) == {"linear", "tuned-choose"}
    evaluate_run(run)
    assert len(reasons(run)) == 2


def test_a_resumed_run_tries_again_and_repeats_no_reason(config, monkeypatch):  # noqa: F811
    tried = []

    def embedding_classifier(*_):
        tried.append(1)
        raise NotMeasurable("memory ran out")

    monkeypatch.setattr(selection, "embedding_classifier", embedding_classifier)
    settings = changed(config, "run", systems=("linear", "embed", "tuned-choose"))

    def stop(event: Event) -> None:
        if event.kind == "step":
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        finetune(settings, stop)
    assert measured(Path(settings.run.out)) == {"linear"}
    before = len(tried)
    run = finetune(settings)
    assert len(tried) == before + 1
    assert reasons(run) == [("embed", "memory ran out")]
    assert measured(run) == {"linear", "tuned-choose"}


def test_a_bug_in_a_system_ends_the_run(config, monkeypatch):  # noqa: F811
    monkeypatch.setattr(selection, "linear_classifier", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        finetune(changed(config, "run", systems=("linear", "tuned-choose")))


def test_a_run_without_any_measured_system_is_an_error(config):  # noqa: F811
    settings = changed(config, "prompt", system="{text}", user=" ", few_shot=0)
    with pytest.raises(UserError, match="No system could be measured") as caught:
        finetune(changed(settings, "run", systems=("linear",)))
    assert "linear: the training texts contain no words" in str(caught.value)


def test_a_system_that_fails_in_one_fold_is_not_pooled(config, monkeypatch):  # noqa: F811
    real, calls = selection.linear_classifier, []

    def linear_classifier(train, seed):
        calls.append(len(train))
        if calls[-1] > 20 and len([n for n in calls if n > 20]) == 3:  # one for the plan, and one per fold
            raise NotMeasurable("memory ran out")
        return real(train, seed)

    monkeypatch.setattr(selection, "linear_classifier", linear_classifier)
    settings = changed(changed(config, "train", epochs=1), "run", systems=("linear", "tuned-choose"))
    run = finetune(changed(settings, "data", folds=3))
    assert reasons(run) == [("linear", "in fold 2, memory ran out")]
    assert measured(run) == {"tuned-choose"}


def test_without_an_encoder_the_report_says_how_to_get_one_and_the_rest_is_mixed(config):  # noqa: F811
    settings = changed(config, "run", systems=("linear", "encoder", "tuned-choose", "blend"))
    run = finetune(changed(settings, "model", encoder="none"))
    assert [name for name, _ in reasons(run)] == ["encoder"] and measured(run) == {"linear", "tuned-choose", "blend"}
    report = json.loads((run / "report.json").read_text())
    notes = {s["name"]: s["note"] for s in report["systems"]}
    assert "linear " in notes["blend"] and "tuned-choose " in notes["blend"]
    assert report["verdict"]["delivered"] in measured(run)
    assert len((run / "predictions/train/linear.jsonl").read_text().splitlines()) == report["train_examples"]


def test_an_encoder_that_does_not_exist_is_told_before_anything_is_measured(config):  # noqa: F811
    settings = changed(config, "model", encoder="./nowhere")
    with pytest.raises(UserError, match="Model folder not found"):
        finetune(settings)
    assert not Path(settings.run.out).exists()

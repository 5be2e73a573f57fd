"""The search for a prompt: what is tried, what decides, and that everything uses the prompt that was chosen."""

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from tiny import ANIMALS

from loratory.config import Config
from loratory.data.phrasings import LONGEST_LABEL_LIST, phrasings
from loratory.data.prompts import shown_columns
from loratory.data.splits import load_split
from loratory.evaluation.blend import log_prob_at_best_temperature
from loratory.events import Event, ignore_event
from loratory.finetune import finetune, train_only
from loratory.predict import load
from loratory.run.job import Job, load_job
from loratory.run.prompt_search import choose_prompt, wordings_of
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.storage.run_directory import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
SYSTEMS = ("prompt-choose", "few-shot-choose", "tuned-choose")
OWN = PromptConfig(system="One of: {labels}.", user="{text}")


@pytest.fixture
def config(tiny_folder, animals, tmp_path) -> Config:
    return Config(
        model=ModelConfig(str(tiny_folder), device="cpu", dtype="float32"),
        data=DataConfig((str(animals),), answer="sound", validation_share=0.25),
        adapter=AdapterConfig(rank=2),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2),
        run=RunConfig(str(tmp_path / "run"), threads=torch.get_num_threads(), systems=SYSTEMS),
    )


def changed(config: Config, section: str, **values) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def loaded(config: Config, events: list[Event] | None = None) -> Job:
    return load_job(config, Path(config.run.out), ignore_event if events is None else events.append)


def tried(job: Job) -> list[dict]:
    return list(choose_prompt(job, ignore_event).prompts_tried)


# ---- wordings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "labels"])
@pytest.mark.parametrize("columns", [("text",), ("title", "long text")])
def test_every_wording_shows_the_same_columns_and_all_labels_or_none(task, columns):
    own = PromptConfig(user=" ".join(f"{{{c}}}" for c in columns))
    written = phrasings(own, "kind", task, ["a", "b"])
    assert len(set(written)) == len(written)
    for system, user in written:
        assert set(shown_columns(PromptConfig(system=system, user=user), "here")) == set(columns)
    listed = ["{labels}" in f"{system} {user}" for system, user in written]
    assert any(listed) and not all(listed)
    many = [f"a rather long label {i}" for i in range(LONGEST_LABEL_LIST // 20)]
    assert not any("{labels}" in f"{system} {user}" for system, user in phrasings(own, "kind", task, many))


def test_wordings_of_a_choice_show_the_candidates_of_the_row_or_none():
    written = phrasings(PromptConfig(user="{question} {options}"), "right", "choice", [], "options")
    assert all("{question}" in user for _, user in written)
    assert {"{options}" in user for _, user in written} == {True, False}
    assert not any("labels" in f"{system} {user}" for system, user in written)


def test_the_answer_column_is_named_only_if_its_name_says_something():
    def last_lines(answer: str) -> set[str]:
        return {user.splitlines()[-1] for _, user in phrasings(OWN, answer, "classification", ["a", "b"])}

    assert "Team:" in last_lines("team")
    assert "Category:" in last_lines("label") and "Label:" not in last_lines("label")


# ---- what decides ----------------------------------------------------------------------------------------------------


def test_confidence_alone_changes_no_score():
    answers = ["a", "b", "a", "b", "a"] * 8
    likely = [0.8, 0.7, 0.4, 0.9, 0.6] * 8

    def score(power: float) -> float:
        rows = []
        for answer, p in zip(answers, likely, strict=True):
            right, wrong = p**power, (1 - p) ** power
            rows.append({"a": right if answer == "a" else wrong, "b": right if answer == "b" else wrong})
        return log_prob_at_best_temperature([{k: v / sum(r.values()) for k, v in r.items()} for r in rows], answers)

    assert score(3.0) == pytest.approx(score(1.0), abs=0.02)
    assert score(1.0) > log_prob_at_best_temperature([{"a": 0.5, "b": 0.5}] * 40, answers)


def test_each_example_may_have_labels_of_its_own():
    rows = [{"x": 0.7, "y": 0.3}, {"p": 0.2, "q": 0.2, "r": 0.6}]
    assert log_prob_at_best_temperature(rows, ["x", "r"]) > log_prob_at_best_temperature(rows, ["y", "p"])


@pytest.mark.thorough
def test_the_chosen_prompt_has_the_highest_score_and_comes_first_among_equals(config):
    records = tried(loaded(config))
    wordings, drawn = ([r for r in records if bool(r["shots"]) == shown] for shown in (False, True))
    assert len(wordings) == 4 and len(drawn) == 3
    for group in (wordings, drawn):
        scores = [r["score"] for r in group]
        assert [i for i, r in enumerate(group) if r["chosen"]] == [scores.index(max(scores))]
    assert {(r["system"], r["user"]) for r in drawn} == {(r["system"], r["user"]) for r in wordings if r["chosen"]}


@pytest.mark.thorough
def test_the_answers_of_the_test_set_change_nothing(config, animals, tmp_path):
    sounds = list(ANIMALS.values())
    rows = animals.read_text().splitlines()
    test, other = tmp_path / "test.csv", tmp_path / "other.csv"
    test.write_text("\n".join([rows[0], *rows[30:]]) + "\n")
    other.write_text("\n".join([rows[0], *(f"{row.rsplit(',', 1)[0]},{sounds[0]}" for row in rows[30:])]) + "\n")
    animals.write_text("\n".join(rows[:30]) + "\n")
    records = [tried(loaded(changed(config, "data", test=(str(path),)))) for path in (test, other)]
    assert records[0] == records[1]


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["labels", "choice"])
def test_tasks_with_other_choices_are_searched_too(config, task, tmp_path):
    data, names = tmp_path / "data.jsonl", list(ANIMALS)
    rows = [{"text": f"number {i}: {names[i % 3]}", "answer": names[i % 3], "options": names} for i in range(48)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = changed(config, "data", train=(str(data),), answer="answer")
    if task == "choice":
        settings = changed(settings, "data", candidates="options")
    else:
        settings = changed(settings, "run", systems=("prompt-choose", "tuned-choose"))
    records = tried(loaded(dataclasses.replace(settings, task=task)))
    assert len(records) >= 4 and sum(r["chosen"] for r in records) >= 1


# ---- whether there is a search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("prompt", {"search": "off"}),
        ("prompt", {"system": OWN.system}),
        ("prompt", {"user": OWN.user}),
        ("data", {"validation_share": 0.0}),
        ("data", {"folds": 3}),
    ],
)
def test_otherwise_the_prompt_stays_as_it_is(config, section, values):
    settings = changed(config, section, **values)
    split = load_split(settings.data, settings.prompt, 0)
    assert split.with_prompt is None
    assert (split.prompt.system, split.prompt.user) == (settings.prompt.system, settings.prompt.user or "text: {text}")
    assert "prompt_not_searched" not in {finding.name for finding in split.findings}


@pytest.mark.parametrize("values", [{"validation_share": 0.0}, {"folds": 3}])
def test_a_search_that_was_asked_for_and_is_not_possible_is_said(config, values):
    settings = changed(config, "data", **values)
    split = load_split(settings.data, dataclasses.replace(OWN, search="on"), 0)
    assert split.with_prompt is None
    assert [f.severity for f in split.findings if f.name == "prompt_not_searched"] == ["note"]


@pytest.mark.thorough
def test_your_own_prompt_is_the_first_if_the_search_is_on(config):
    job = loaded(changed(config, "prompt", system=OWN.system, user=OWN.user, search="on"))
    first, *others = wordings_of(job)
    assert (first.system, first.user) == (OWN.system, OWN.user)
    assert len(others) == 3
    record = tried(job)[0]
    assert (record["system"], record["user"]) == (OWN.system, OWN.user)


@pytest.mark.thorough
def test_a_wording_that_is_too_long_for_the_model_is_left_out(config, animals):
    # Each example fits into the 600 tokens of the model, but not together with a list of the labels.
    rows = [f"The number {i} sleeps,{'sound ' * 40}{i % 3}" for i in range(48)]
    animals.write_text("text,sound\n" + "\n".join(rows) + "\n")
    chosen = choose_prompt(loaded(changed(config, "prompt", few_shot=0)), ignore_event)
    assert chosen.prompts_tried and "{labels}" not in f"{chosen.config.prompt.system} {chosen.config.prompt.user}"


@pytest.mark.thorough
def test_without_a_system_message_in_the_template_the_user_message_says_it(config, tiny_folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    template = model / "chat_template.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template.read_text()
    )
    wordings = wordings_of(loaded(changed(config, "model", name=str(model))))
    assert all(wording.system is None for wording in wordings)
    assert any((wording.user or "").startswith("Sort the text") for wording in wordings)


# ---- a run -----------------------------------------------------------------------------------------------------------


def searches(events: list[Event]) -> int:
    return sum(e.kind == "stage" and e.text == "prompts" for e in events)


@pytest.mark.thorough
def test_everything_uses_the_chosen_prompt_and_a_resumed_run_keeps_it(config, interrupted):
    events: list[Event] = []
    interrupted(lambda: finetune(config, events.append), 3)
    run = Path(config.run.out)
    settings = (run / "config.toml").read_bytes()
    records = [e for e in read_metrics(run) if e["event"] == "prompt_tried"]
    assert searches(events) == 1

    (run / "config.toml").unlink()  # it can be made again, with the prompt that was chosen
    events.clear()
    finetune(config, events.append)
    assert searches(events) == 0
    assert (run / "config.toml").read_bytes() == settings

    report = json.loads((run / "report.json").read_text())
    assert report["prompts_tried"] == [{k: v for k, v in r.items() if k != "event"} for r in records]
    wording, draw = (next(r for r in report["prompts_tried"] if r["chosen"] and bool(r["shots"]) == s) for s in (0, 1))
    prompt = tomllib.loads(settings.decode())["prompt"]
    assert (prompt.get("system"), prompt["user"]) == (wording["system"], wording["user"])
    assert (prompt["few_shot_seed"], prompt["search"]) == (draw["few_shot_seed"], "off")
    # With at most 100 validation examples, the systems are measured on the examples of the search.
    on_validation = {s["name"]: s["validation_value"] for s in report["systems"]}
    assert on_validation["prompt-choose"] == wording["validation_value"]
    assert on_validation["few-shot-choose"] == draw["validation_value"]
    tuned = load(run).prompt
    assert (tuned.system, tuned.user) == (wording["system"], wording["user"])
    page = (run / "report.html").read_text()
    assert "that were tried" in page and page.count('<span class="tag">chosen</span>') == 2


@pytest.mark.thorough
def test_training_alone_searches_too_and_off_gives_the_plain_columns(config):
    run = train_only(changed(config, "train", keep="last", epochs=1))
    assert any(e["event"] == "prompt_tried" and e["chosen"] for e in read_metrics(run))
    run = train_only(changed(changed(config, "prompt", search="off"), "train", keep="last", epochs=1), overwrite=True)
    assert load(run).prompt.user == "text: {text}" and load(run).prompt.system is None
    assert not any(e["event"] == "prompt_tried" for e in read_metrics(run))

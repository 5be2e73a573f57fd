"""Tasks other than classification: how rows become examples, how answers are scored, and whole runs."""

import dataclasses
import gzip
import json
import math
import random
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from test_finetune import changed, predictions
from tiny import byte_tokenizer

from loratory.config import Config
from loratory.data.answers import candidates_of, choice_of, labels_of, row_tests
from loratory.data.conversations import conversation
from loratory.data.examples import Example, Message
from loratory.data.prompts import ANSWER_SLOT
from loratory.data.rows import Row, read_rows
from loratory.data.splits import load_split
from loratory.errors import UserError
from loratory.evaluation.baselines import copy_rule, similarity_classifier
from loratory.evaluation.evaluate_system import Prediction
from loratory.evaluation.records import headline
from loratory.evaluation.sandbox import run_program, sandbox_problem
from loratory.evaluation.systems import candidate_programs, extract_code, fit_threshold, labels_above
from loratory.finetune import finetune
from loratory.metrics.classification import label_set_metrics, set_f1
from loratory.metrics.tasks import TASKS, ranking_metrics
from loratory.metrics.texts import edit_similarity, rouge_l, text_metrics
from loratory.predict.tuned import load
from loratory.settings import (
    SYSTEMS,
    AdapterConfig,
    CodeConfig,
    DataConfig,
    ModelConfig,
    PromptConfig,
    RunConfig,
    TrainConfig,
)
from loratory.text.context import fit_to_context
from loratory.text.rendering import token_texts, tokenize
from loratory.text.template import make_renderer
from loratory.tree.scoring import group_log_probs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
needs_sandbox = pytest.mark.skipif(sandbox_problem() is not None, reason="no sandbox here")
THINGS = ("lamp", "boat", "drum", "kite", "bell", "coin")
COLOURS = ("red", "green", "blue", "grey")


def ignore_event(done: int, total: int) -> None:
    pass


def user(text: str, answer: str, candidates: tuple[str, ...] = ()) -> Example:
    return Example((Message("user", text),), (answer,), candidates, "test")


@pytest.fixture
def choices_file(tmp_path):
    """Each row has two to four candidates of its own; one of them names the thing in the text."""
    draw, path = random.Random(0), tmp_path / "choices.jsonl"
    with path.open("w") as file:
        for n in range(60):
            options = [f"a {thing}" for thing in draw.sample(THINGS, 2 + n % 3)]
            answer = draw.choice(options)
            row = {"text": f"Number {n} is {answer}", "options": options, "answer": answer}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def texts_file(tmp_path):
    draw, path = random.Random(0), tmp_path / "texts.jsonl"
    with path.open("w") as file:
        for n in range(60):
            thing, colour = draw.choice(THINGS), draw.choice(COLOURS)
            text = f"We saw a {thing}. It was {colour}. Nothing else happened {n} times."
            file.write(json.dumps({"text": text, "title": f"{colour} {thing}"}) + "\n")
    return path


def config_of(task: str, data: DataConfig, prompt: PromptConfig, folder, tmp_path) -> Config:
    return Config(
        task=task,
        model=ModelConfig(str(folder), device="cpu", dtype="float32"),
        data=data,
        prompt=prompt,
        adapter=AdapterConfig(),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2),
        run=RunConfig(str(tmp_path / "run"), threads=torch.get_num_threads()),
    )


@pytest.fixture
def choice_config(choices_file, tiny_folder, tmp_path) -> Config:
    data = DataConfig((str(choices_file),), answer="answer", candidates="options")
    return config_of("choice", data, PromptConfig(user="{text}\n{options}", few_shot=1), tiny_folder, tmp_path)


@pytest.fixture
def text_config(texts_file, tiny_folder, tmp_path) -> Config:
    data = DataConfig((str(texts_file),), answer="title")
    return config_of("text", data, PromptConfig(user="Title?\n{text}", few_shot=1), tiny_folder, tmp_path)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_candidates_are_a_list_or_a_cell_that_contains_one():
    for value in (["a", "b"], '["a", "b"]', ("a", " b ")):
        assert candidates_of(Row({"c": value}, "f:1"), "c") == ("a", "b")


@pytest.mark.parametrize("value", ["a, b", None, ["a"], ["a", "a"], ["a", ""], "[1,"])
def test_unusable_candidates_raise_a_user_error(value):
    with pytest.raises(UserError) as caught:
        candidates_of(Row({"c": value}, "data.jsonl:7"), "c")
    assert "data.jsonl:7" in str(caught.value)


def test_the_expected_candidate_is_given_by_its_text_or_its_index():
    options = ["a", "b", "c"]
    assert choice_of(Row({"o": options, "a": "b"}, "f:1"), "a", "o") == "b"
    assert choice_of(Row({"o": options, "a": 2}, "f:1"), "a", "o") == "c"
    for wrong in ("d", 3, -1, True):
        with pytest.raises(UserError, match="not one of the row's candidates"):
            choice_of(Row({"o": options, "a": wrong}, "f:1"), "a", "o")


def test_each_example_has_the_candidates_of_its_row_and_the_prompt_lists_them(choice_config):
    split = load_split(choice_config.data, choice_config.prompt, 0, task="choice")
    assert split.labels == ()
    assert {len(e.candidates) for e in split.train} == {2, 3, 4}
    for example in (*split.train, *split.validation, *split.test):
        assert example.answer in example.candidates
        assert example.messages[-1].content.endswith("\n".join(f"- {c}" for c in example.candidates))


def test_rows_with_free_answers_are_split_at_random(text_config):
    split = load_split(text_config.data, text_config.prompt, 0, task="text")
    assert [len(part) for part in (split.train, split.validation, split.test)] == [38, 10, 12]
    assert all(e.candidates == () for e in split.train)
    other = load_split(text_config.data, text_config.prompt, 1, task="text")
    assert {e.source for e in other.test} != {e.source for e in split.test}


@pytest.mark.parametrize(("task", "candidates"), [("choice", None), ("text", "options"), ("classification", "options")])
def test_candidates_are_required_for_the_task_choice_and_only_there(task, candidates):
    from loratory.config import config_from_dict

    data = {"train": "a.csv", **({"candidates": candidates} if candidates else {})}
    with pytest.raises(UserError, match=r"data\.candidates and task"):
        config_from_dict({"task": task, "data": data}, "task.toml")


@pytest.mark.parametrize("task", SYSTEMS)
def test_a_system_of_another_task_is_rejected(task):
    from loratory.config import config_from_dict

    name = "copy" if task != "text" else "embed"
    data = {"train": "a.csv", **({"candidates": "c"} if task == "choice" else {})}
    with pytest.raises(UserError, match="Unknown system"):
        config_from_dict({"task": task, "data": data, "run": {"systems": [name]}}, "task.toml")


def test_every_task_defines_a_score():
    assert set(TASKS) == {*SYSTEMS, "code-tests", "fill-text"}


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    assert rouge_l("the cat sat", ["the cat sat"]) == 1
    assert rouge_l("the cat", ["a dog"]) == 0
    # "the sat" in texts of 3 and 4 words: precision 2/3, recall 2/4.
    assert rouge_l("The dog sat!", ["the cat sat down"]) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rouge_l("b a", ["a b"]) == 0.5  # order counts
    assert rouge_l("a b", ["x y", "a b c"]) == pytest.approx(0.8)  # the best of the accepted answers
    assert rouge_l("", ["a"]) == rouge_l("...", ["!"]) == 0


def test_rouge_l_reads_any_script():
    assert rouge_l("Ungefähre Größe", ["ungefähre größe"]) == 1
    assert 0 < rouge_l("красный дом", ["красный кот"]) < 1
    assert 0.5 < rouge_l("深度学习方法", ["深度学习模型"]) < 1


def test_text_metrics_of_equal_and_of_different_texts():
    same = text_metrics(["a red boat", "a kite"], ["A red boat.", "a kite"])
    assert same["exact_match"] == 1 and same["chrf"] > 0.7 and same["length_ratio"] == 1 and same["words"] == 2.5
    other = text_metrics(["xxxx"], ["a red boat"])
    assert other["exact_match"] == 0 and other["chrf"] < 0.1 and other["length_ratio"] == pytest.approx(1 / 3)


def test_mrr_is_the_mean_reciprocal_rank_of_the_expected_candidate():
    lines = [
        {"expected": "a", "probabilities": {"a": 0.5, "b": 0.3, "c": 0.2}},
        {"expected": "c", "probabilities": {"a": 0.5, "b": 0.3, "c": 0.2}},
    ]
    assert ranking_metrics(lines, ()) == {"mrr": pytest.approx((1 + 1 / 3) / 2)}
    assert ranking_metrics([*lines, {"expected": "a", "probabilities": None}], ()) == {}
    undecided = {"expected": "a", "probabilities": dict.fromkeys("abc", 1 / 3)}
    assert ranking_metrics([undecided], ()) == {"mrr": 0.5}


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_the_copy_rule_closest_to_the_training_answers_is_chosen():
    train = [user(f"Say it short:\n\nFirst {n} here. The end is {n}.", f"The end is {n}") for n in range(9)]
    copy, note = copy_rule(train)
    assert note == "copies the last sentence"
    assert copy(user("Say it short:\n\nNothing. The end is near.", "")) == "The end is near."
    below, _ = copy_rule([user(f"Title of {n}? Yes.\nWrite it.", f"Title of {n}") for n in range(9)])
    assert below(user("Red boats? No.\nWrite it.", "")) == "Red boats?"
    first, note = copy_rule([user(f"First {n} here. The end.", f"First {n} here") for n in range(9)])
    assert note == "copies the first sentence"
    assert first(user("", "")) == ""


def test_text_similarity_chooses_the_candidate_that_shares_words():
    options = ("a paper on boats", "a paper on kites", "something else")
    train = [user(f"Text {n} about boats and kites", options[0], options) for n in range(5)]
    classify = similarity_classifier(train).classify
    example = user("The kites fly\n" + "\n".join(f"- {o}" for o in options), options[1], options)
    [probabilities] = classify([example], ignore_event)
    assert max(probabilities, key=probabilities.__getitem__) == "a paper on kites"
    assert sum(probabilities.values()) == pytest.approx(1)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def report_of(run) -> dict:
    return json.loads((run / "report.json").read_text())


@pytest.mark.thorough
def test_a_run_that_chooses_among_candidates(choice_config):
    run = finetune(choice_config)
    report = report_of(run)
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS["choice"])
    assert report["labels"] == [] and report["metric"] == "accuracy"
    split = load_split(choice_config.data, choice_config.prompt, 0, task="choice")
    for name in ("prompt-choose", "tuned-choose", "linear"):
        for row, example in zip(predictions(run, name), split.test, strict=True):
            assert list(row["probabilities"]) == list(example.candidates)
            assert sum(row["probabilities"].values()) == pytest.approx(1)
            assert row["answer"] in example.candidates
    linear = next(s for s in report["systems"] if s["name"] == "linear")
    assert linear["value"] == 1 and linear["metrics"]["mrr"] == 1
    page = (run / "report.html").read_text()
    assert "random choice" in page and "Confusion" not in page

    tuned = load(run)
    records = [
        {"text": "Number 3 is a boat", "options": ["a boat", "a kite", "a coin"]},
        {"text": "", "options": ["x", "y"]},
    ]
    assert [set(tuned.probabilities(record)) for record in records] == [{"a boat", "a kite", "a coin"}, {"x", "y"}]
    assert tuned.answer(records[0])


@pytest.mark.thorough
def test_a_run_with_free_answers(text_config):
    run = finetune(text_config)
    report = report_of(run)
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS["text"])
    assert report["metric"] == "rougeL" and report["verdict"]["beats_linear"] is None
    assert {c["a"] for c in report["comparisons"]} == {report["verdict"]["before"], "copy"}
    for s in report["systems"]:
        rows = predictions(run, s["name"])
        assert s["value"] == pytest.approx(np.mean([rouge_l(r["answer"], [r["expected"]]) for r in rows]))
        assert s["low"] <= s["value"] <= s["high"]
        assert {"chrf", "exact_match", "words", "length_ratio"} <= set(s["metrics"])
    assert "ROUGE-L" in report["verdict"]["sentence"]
    assert "ROUGE-L" in (run / "report.html").read_text()

    tuned = load(run)
    assert isinstance(tuned.answer({"text": "We saw a boat. It was red."}), str)
    with pytest.raises(UserError, match="no labels to choose from"):
        tuned.probabilities({"text": "We saw a boat."})


@pytest.mark.thorough
def test_folds_of_free_answers(text_config):
    few = changed(changed(text_config, "data", folds=2, limit_train=16), "run", systems=("prompt", "copy", "tuned"))
    report = report_of(finetune(few))
    assert report["folds"]["count"] == 2 and report["test_examples"] == 60


# ---- conversations ---------------------------------------------------------------------------------------------------

OPENAI = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and you?"},
    {"role": "assistant", "content": "fine"},
]


@pytest.fixture
def dialogue_config(tiny_folder, tmp_path) -> Config:
    draw, path = random.Random(0), tmp_path / "chats.jsonl"
    with path.open("w") as file:
        for n in range(48):
            thing, colour = draw.choice(THINGS), draw.choice(COLOURS)
            turns = [f"I want a {thing}, {n}", f"Which {thing}?", f"The {colour} one", f"A {colour} {thing} it is"]
            roles = ("user", "assistant") * 2
            messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
            file.write(json.dumps({"messages": messages}) + "\n")
    return config_of("dialogue", DataConfig((str(path),)), PromptConfig(), tiny_folder, tmp_path)


def chat(turns: list) -> Example:
    example = conversation(Row({"messages": turns}, "f"))
    assert example is not None
    return example


def test_turns_scored_in_a_tree_are_those_scored_one_by_one(dialogue_config):
    from loratory.machine.device import resolve_machine
    from loratory.models.loading import load_model
    from loratory.tree.layout import Layout

    base = load_model(dialogue_config.model, resolve_machine("cpu", "float64", 0))
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig())
    groups = [tokenize(chat(OPENAI), renderer), tokenize(chat(OPENAI[:2]), renderer)]
    found = group_log_probs(base.model, groups, 2, Layout("tree", ""), 1000, ignore_event)
    assert [[count for _, count in turns] for turns in found] == [
        [int(s.loss_weights.sum()) for s in group] for group in groups
    ]
    for group, turns in zip(groups, found, strict=True):
        for sequence, (value, _) in zip(group, turns, strict=True):
            [[alone]] = group_log_probs(base.model, [[sequence]], 1, Layout("tree", ""), 1000, ignore_event)
            assert value == pytest.approx(alone[0], abs=1e-9)
            ids = torch.from_numpy(sequence.token_ids)[None]
            log_probs = base.model(input_ids=ids).logits[0].double().log_softmax(-1)
            at = np.flatnonzero(sequence.loss_weights)
            assert value == pytest.approx(float(log_probs[at - 1, sequence.token_ids[at]].sum().detach()), abs=1e-9)


def test_the_headline_metric_of_conversations_is_one_over_perplexity():
    example = chat(OPENAI)
    turns = ((math.log(0.5) * 2, 2), (math.log(0.25) * 2, 2))
    name, value = headline([example], [Prediction("fine", None, None, turns)], "dialogue")
    assert name == "token probability" and value == pytest.approx(math.sqrt(0.5 * 0.25))


@pytest.mark.thorough
def test_a_run_on_conversations(dialogue_config):
    run = finetune(dialogue_config)
    report = report_of(run)
    assert [s["name"] for s in report["systems"]] == ["prompt", "tuned"]
    before, after = report["systems"]
    assert after["metrics"]["perplexity"] < before["metrics"]["perplexity"]
    assert report["verdict"]["state"] != "worse" and "perplexity" in report["verdict"]["sentence"]
    [row] = predictions(run, "tuned")[:1]
    assert len(row["turns"]) == 2
    counts, values = [t[1] for t in row["turns"]], [t[0] for t in row["turns"]]
    assert row["worth"] == pytest.approx(math.exp(sum(values) / sum(counts)))
    assert isinstance(load(run).answer({"messages": OPENAI[:3]}), str)
    assert json.loads((run / "data.json").read_text())["task"] == "dialogue"


TOOLS_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{{ message.content or '' }}<|im_end|>\n"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)


@pytest.mark.thorough
def test_a_run_on_tool_calls(dialogue_config, tiny_folder, tmp_path):
    folder, path = tmp_path / "model", tmp_path / "calls.jsonl"
    copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    tools = [{"name": "buy", "description": "d", "parameters": {}}]
    with path.open("w") as file:
        for n in range(48):
            call = {"name": "buy", "arguments": json.dumps({"what": THINGS[n % 3]})}
            turns = [{"from": "human", "value": f"{n}, please"}, {"from": "function_call", "value": json.dumps(call)}]
            file.write(json.dumps({"conversations": turns, "tools": tools}) + "\n")
    model, data = ModelConfig(str(folder)), DataConfig((str(path),))
    run = finetune(dataclasses.replace(dialogue_config, model=model, data=data))
    row = predictions(run, "tuned")[0]
    assert row["expected"].startswith('buy{"what": "') and len(row["turns"]) == 1
    before, after = report_of(run)["systems"]
    assert after["metrics"]["perplexity"] < before["metrics"]["perplexity"]
    assert isinstance(load(run).answer({"messages": OPENAI[:1], "tools": json.dumps(tools)}), str)


# ---- programs --------------------------------------------------------------------------------------------------------

MBPP = {
    "text": "Add",
    "code": "def f(a, b):\n  return a + b",
    "test_list": ["assert f(1, 2) == 3"],
    "test_setup_code": "",
}
HUMAN_EVAL = {
    "prompt": 'def g(a):\n    """Doubles."""\n',
    "canonical_solution": "    if a is None:\n        return 0\n    return 2 * a\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4",
    "entry_point": "g",
}


def test_tests_are_read_in_the_formats_of_mbpp_and_humaneval():
    found = row_tests(Row(MBPP, "f:1"), CodeConfig())
    assert (found.prefix, found.name, found.statements) == ("", "", "\nassert f(1, 2) == 3")
    found = row_tests(Row(HUMAN_EVAL, "f:1"), CodeConfig())
    assert found.prefix == HUMAN_EVAL["prompt"] and found.statements.endswith("\ncheck(g)")
    assert row_tests(Row({"text": "x"}, "f:1"), CodeConfig()) is None
    with pytest.raises(UserError, match="no tests to run"):
        row_tests(Row({"text": "x"}, "f:1"), CodeConfig(run=True))


@needs_sandbox
@pytest.mark.parametrize(
    ("row", "answer", "passes"),
    [
        (MBPP, MBPP["code"], True),
        (MBPP, "def f(a, b):\n  return a - b", False),
        (HUMAN_EVAL, HUMAN_EVAL["canonical_solution"].strip(), True),
        (HUMAN_EVAL, "return 2 * a", True),
        (HUMAN_EVAL, "def g(a):\n    return a + a", True),
        (HUMAN_EVAL, "return 3 * a", False),
        (HUMAN_EVAL, "import os; os._exit(0)", False),
    ],
)
def test_an_answer_is_tested_alone_or_after_the_prefix_that_it_continues(row, answer, passes):
    tests = row_tests(Row(row, "f:1"), CodeConfig())
    outcome = run_program(*candidate_programs(answer, tests), tests=tests.statements)
    assert outcome.passed == passes, outcome.reason


def test_code_is_extracted_from_a_fenced_block():
    assert extract_code("Here it is:\n```python\nx = 1\n```\nDone.") == "x = 1"
    assert extract_code("```\nx = 1") == "x = 1"
    assert extract_code("x = 1") == "x = 1"


def test_edit_similarity_is_one_minus_the_normalized_edit_distance():
    assert edit_similarity("abcd", "abcx") == 0.75
    assert edit_similarity("x = 1  \n", "x = 1") == 1
    assert edit_similarity("", "") == 1 and edit_similarity("", "abc") == 0


def test_a_compressed_file_is_read_and_a_damaged_one_reported(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [row.values["a"] for row in read_rows(str(path))] == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        read_rows(str(path))


@pytest.mark.thorough
@needs_sandbox
def test_a_run_on_programs_with_their_tests(tiny_folder, tmp_path):
    path = tmp_path / "programs.jsonl"
    with path.open("w") as file:
        for n in range(30):
            row = {"text": f"Give {n}", "code": f"def f():\n  return {n}", "test_list": [f"assert f() == {n}"]}
            file.write(json.dumps(row) + "\n")
    data = DataConfig((str(path),), answer="code")
    plain = config_of("code", data, PromptConfig(user="{text}", few_shot=1), tiny_folder, tmp_path)
    tested = dataclasses.replace(plain, code=CodeConfig(run=True, seconds=2.0))
    report = report_of(finetune(tested))
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS["code"])
    assert report["metric"] == "pass_at_1" and "pass@1" in report["verdict"]["sentence"]
    for row in predictions(tmp_path / "run", "tuned"):
        assert row["correct"] == (row["failure"] == "")
    assert report_of(finetune(changed(plain, "run", out=str(tmp_path / "plain"))))["metric"] == "edit_similarity"


# ---- sets of labels --------------------------------------------------------------------------------------------------


@pytest.fixture
def labels_config(tiny_folder, tmp_path) -> Config:
    draw, path = random.Random(0), tmp_path / "sets.jsonl"
    with path.open("w") as file:
        for n in range(60):
            named = draw.sample(THINGS[:4], draw.randint(1, 3))
            file.write(json.dumps({"text": f"{n}: " + ", ".join(named), "things": named}) + "\n")
    data = DataConfig((str(path),), answer="things")
    return config_of("labels", data, PromptConfig(system="Which? {labels}.", few_shot=1), tiny_folder, tmp_path)


def test_a_label_set_is_a_list_or_a_text_with_semicolons():
    for value in (["b", "a", "a"], "b; a", "a;b;", ("a", " b")):
        assert labels_of(Row({"x": value}, "f:1"), "x") == ("a", "b")
    for value in ([], "", ";", None):
        with pytest.raises(UserError, match="empty"):
            labels_of(Row({"x": value}, "f:1"), "x")
    with pytest.raises(UserError, match="semicolon"):
        labels_of(Row({"x": ["a;b"]}, "f:1"), "x")


def test_each_label_of_a_set_is_trained_after_the_same_prompt(labels_config):
    from loratory.events import ignore_event as silent
    from loratory.run.job import load_job

    job = load_job(labels_config, Path(labels_config.run.out), silent)
    assert job.split.labels == tuple(sorted(THINGS[:4]))
    for example, sequences in zip(job.split.train, job.train_sequences, strict=True):
        assert len(sequences) == len(example.answers)
        for answer, sequence in zip(example.answers, sequences, strict=True):
            trained = "".join(text for text, weight in token_texts(sequence) if weight)
            assert trained.startswith(answer)


def test_f1_of_sets():
    assert set_f1(["a"], ["a"]) == 1 and set_f1(["a"], ["b"]) == 0
    assert set_f1(["a", "b"], ["b", "c", "d"]) == pytest.approx(0.4)
    found = label_set_metrics([["a"], ["a", "b"]], [["a"], ["b"]], ("a", "b"))
    # a: 1 correct of 2 answered, 1 expected; b: 1 correct of 1 answered, 1 expected.
    assert found == {"micro_f1": pytest.approx(0.8), "macro_f1": pytest.approx((2 / 3 + 1) / 2), "exact_match": 0.5}


def test_the_threshold_is_the_best_on_validation_and_at_least_one_label_is_chosen():
    rows = [({"a": 0.6, "b": 0.3, "c": 0.1}, ("a", "b")), ({"a": 0.1, "b": 0.2, "c": 0.7}, ("c",))]
    threshold = fit_threshold([Prediction("", None, p) for p, _ in rows], examples_of(rows))
    assert 0.2 < threshold <= 0.3
    assert [labels_above(p, threshold) for p, _ in rows] == [("a", "b"), ("c",)]
    assert labels_above({"a": 0.1, "b": 0.2}, 0.9) == ("b",)
    assert fit_threshold([], []) == 0.5


def examples_of(rows) -> list[Example]:
    return [Example((Message("user", "x"),), answers, ("a", "b", "c"), "test") for _, answers in rows]


@pytest.mark.thorough
def test_a_run_on_sets_of_labels(labels_config):
    run = finetune(labels_config)
    report = report_of(run)
    assert [s["name"] for s in report["systems"]] == list(SYSTEMS["labels"])
    assert report["metric"] == "set_f1" and report["labels"] == sorted(THINGS[:4])
    linear = next(s for s in report["systems"] if s["name"] == "linear")
    assert linear["value"] > 0.9 and {"micro_f1", "macro_f1", "exact_match"} <= set(linear["metrics"])
    for row in predictions(run, "tuned-choose"):
        answered = row["answer"].split("; ")
        assert row["worth"] == pytest.approx(set_f1(answered, row["expected"].split("; ")))
        lowest = min(row["probabilities"][label] for label in answered)
        assert all(p <= lowest for label, p in row["probabilities"].items() if label not in answered)
    card = json.loads((run / "adapter" / "loratory.json").read_text())
    assert card["choose"]["threshold"] is not None
    tuned = load(run)
    assert set(tuned.answer({"text": "7: lamp, boat"}).split("; ")) <= set(THINGS[:4])


# ---- fill in the middle -----------------------------------------------------------------------------------


def middle_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]})
    return tokenizer


def test_code_is_rendered_for_filling_in_the_middle():
    r = make_renderer(middle_tokenizer(), (2,), PromptConfig())
    example = Example((Message("user", f"def f(x):\n    {ANSWER_SLOT}\n\nf(1)"),), ("return x",), (), "a.jsonl:1")
    [found] = tokenize(example, r)
    assert found.text == ("<|fim_prefix|>def f(x):\n    <|fim_suffix|>\n\nf(1)<|fim_middle|>return x<|im_end|>")
    assert "".join(piece for piece, trained in token_texts(found) if trained) == "return x<|im_end|>"
    assert found.token_ids.tolist() == r.tokenizer(found.text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_without_tokens_for_filling_in_the_middle_is_rejected():
    r = make_renderer(byte_tokenizer(), (2,), PromptConfig())
    with pytest.raises(UserError, match="no fill-in-the-middle tokens"):
        tokenize(user(f"a {ANSWER_SLOT} b", "c"), r)


@pytest.mark.parametrize(
    "messages",
    [
        (Message("system", "s"), Message("user", f"a{ANSWER_SLOT}b")),
        (Message("user", f"a{ANSWER_SLOT}b{ANSWER_SLOT}"),),
    ],
)
def test_filling_in_the_middle_needs_one_message_with_one_answer_slot(messages):
    r = make_renderer(middle_tokenizer(), (2,), PromptConfig())
    with pytest.raises(UserError, match="must be a single message"):
        tokenize(Example(messages, ("c",), (), "a"), r)


def test_programs_filled_in_the_middle_are_tested_with_their_suffix():
    row = Row({"head": "def f(x):\n", "tail": "    return y\n", "test_list": ["assert f(1) == 2"]}, "a")
    tests = row_tests(row, CodeConfig(prefix="head", suffix="tail"))
    assert tests and tests.suffix == "    return y\n" and tests.statements.endswith("assert f(1) == 2")
    assert candidate_programs("    y = x + 1", tests)[0] == "def f(x):\n    y = x + 1\n    return y\n"


@pytest.mark.thorough
def test_a_run_that_fills_in_the_middle(tiny_folder, tmp_path):
    folder, path = tmp_path / "model", tmp_path / "code.jsonl"
    copytree(tiny_folder, folder)
    middle_tokenizer().save_pretrained(folder)
    rows = [{"head": f"def f{i}(x):\n    ", "tail": "\n", "body": f"return x + {i}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(
        task="code",
        model=ModelConfig(str(folder)),
        data=DataConfig(train=(str(path),), answer="body"),
        prompt=PromptConfig(user="{head}{mask}{tail}"),
        train=TrainConfig(epochs=1),
        run=RunConfig(out=str(tmp_path / "run"), threads=1),
    )
    run = finetune(config)
    report = json.loads((run / "report.json").read_text())
    assert [s["name"] for s in report["systems"]] == ["prompt", "tuned"]  # no few-shot prompting with an answer slot
    assert json.loads((run / "data.json").read_text())["test_prompts"][0].endswith("    {mask}\n")


def test_the_task_fill_needs_an_answer_slot_in_the_prompt(texts_file):
    data = DataConfig(train=(str(texts_file),), answer="answer")
    with pytest.raises(UserError, match=r"the prompt has no \{mask\}"):
        load_split(data, PromptConfig(user="{text}"), 0, task="fill")


def test_a_column_named_mask_is_rejected(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,mask,label\n" + "a,b,c\nd,e,f\n" * 10)
    with pytest.raises(UserError, match="reserved for the answer slot") as found:
        load_split(DataConfig(train=(str(path),), answer="label"), PromptConfig(user="{text} {mask}"), 0)
    assert "rename the column" in str(found.value)


def test_a_long_prefix_is_cut_above_the_line_of_the_answer_slot():
    r = make_renderer(middle_tokenizer(), (2,), PromptConfig())
    long = user("# a note\n" * 30 + f"x = {ANSWER_SLOT}\nprint(x)", "1")
    fitted = fit_to_context([long], r, 120, "cut_prompt")
    text = fitted.examples[0].messages[0].content
    assert text.startswith("# a note\n") and text.endswith(f"\nx = {ANSWER_SLOT}\nprint(x)")
    assert 100 < len(tokenize(fitted.examples[0], r)[0].token_ids) <= 120

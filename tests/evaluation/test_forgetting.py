"""The loss on text outside the task: its value, and what the report says about it."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_finetune import changed, config  # noqa: F401

from loratory.errors import UserError
from loratory.events import ignore_event
from loratory.finetune import finetune
from loratory.machine.device import resolve_machine
from loratory.models.loading import load_model
from loratory.report.report import build_report
from loratory.report.results import FORGOTTEN
from loratory.run.job import load_job
from loratory.storage.run_directory import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TEXTS = ("A kettle boils.", "Nobody came to the fair, so we went home by bus.", "def f(x):\n    return x")


@pytest.fixture
def retaining(config, tmp_path):  # noqa: F811
    path = tmp_path / "retain.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    few = changed(config, "data", retain=(str(path),))
    return changed(few, "run", systems=("prompt-choose", "tuned-choose"))


def retained(run) -> dict[str, float]:
    return {m["when"]: m["loss"] for m in read_metrics(run) if m["event"] == "retained"}


def test_the_loss_equals_that_of_the_texts_one_by_one(retaining):
    run = finetune(retaining)
    base = load_model(retaining.model, resolve_machine("cpu", "float32", 0))
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([base.text.tokenizer(text, add_special_tokens=False)["input_ids"][:128]])
        with torch.no_grad():
            total += float(base.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    found = retained(run)
    assert found["before"] == pytest.approx(total / count, rel=1e-5)
    assert found["after"] != found["before"]


def test_the_report_says_what_was_forgotten(retaining):
    run = finetune(retaining)
    losses = retained(run)
    forgetting = json.loads((run / "report.json").read_text())["forgetting"]
    assert (forgetting["before"], forgetting["after"], forgetting["texts"]) == (losses["before"], losses["after"], 3)
    rise = losses["after"] - losses["before"]
    assert next(words for limit, words in FORGOTTEN if rise < limit) + " was forgotten" in forgetting["sentence"]
    assert f"{math.exp(losses['after']):.1f}" in forgetting["sentence"]
    assert "Forgetting" in (run / "report.html").read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "retained", "when": "after", "loss": losses["before"] + 2, "texts": 3}) + "\n")
    assert "much was forgotten" in build_report(run)["forgetting"]["sentence"]


def test_the_texts_of_the_package_are_used_by_default(retaining):
    from loratory.run.retained import retained_texts

    job = load_job(changed(retaining, "data", retain=()), Path(retaining.run.out), ignore_event)
    texts = retained_texts(job)
    assert len(texts) == 60
    assert all(1 < len(t.token_ids) <= 128 and t.loss_weights[0] == 0 and t.loss_weights[1:].all() for t in texts)


def test_a_text_without_words_is_reported_before_anything_is_written(retaining, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": "fine words"}\n{"other": "x"}\n')
    wrong = changed(retaining, "data", retain=(str(path),))
    with pytest.raises(UserError, match="no words") as caught:
        finetune(wrong)
    assert f"{path}:2" in str(caught.value)
    assert not (tmp_path / "run").exists()

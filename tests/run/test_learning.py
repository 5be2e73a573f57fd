"""Learning without leakage: nonsense labels can be learned, and the report says if there was nothing to learn."""

import json
import random

import pytest

from loratory.config import Config
from loratory.finetune import finetune
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig

pytestmark = pytest.mark.thorough  # whole runs

SOUNDS = {"cat": "Meow", "dog": "Woof woof", "cow": "Moo"}
NONSENSE = {"cat": "Xq vorp", "dog": "Blen", "cow": "Tz tz ok"}


def run(folder, model, rows: list[tuple[str, str]], test: list[tuple[str, str]]) -> dict:
    """The report of a run with full fine-tuning, without which a random model learns nothing."""
    for name, lines in (("train", rows), ("test", test)):
        (folder / f"{name}.csv").write_text("text,sound\n" + "".join(f"{text},{sound}\n" for text, sound in lines))
    config = Config(
        model=ModelConfig(str(model), device="cpu", dtype="float32"),
        data=DataConfig((str(folder / "train.csv"),), test=(str(folder / "test.csv"),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}."),
        adapter=AdapterConfig(kind="full"),
        train=TrainConfig(epochs=12, batch_size=8, learning_rate=5e-3),
        run=RunConfig(str(folder / "run"), systems=("prompt-choose", "tuned-choose")),
    )
    return json.loads((finetune(config) / "report.json").read_text())


def sentences(count: int, names: dict[str, str], seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    animals = [draw.choice(list(names)) for _ in range(count)]
    return [(f"The {animal} number {draw.randrange(1000)} sleeps", names[animal]) for animal in animals]


def value(report: dict, name: str) -> float:
    return next(s["value"] for s in report["systems"] if s["name"] == name)


@pytest.mark.parametrize("names", [SOUNDS, NONSENSE], ids=["sounds", "nonsense"])
def test_a_rule_is_learned_whatever_the_labels_are_called(tmp_path, tiny_folder, names):
    report = run(tmp_path, tiny_folder, sentences(96, names, 1), sentences(40, names, 2))
    assert value(report, "tuned-choose") >= 0.9
    assert report["verdict"]["helped"]
    assert report["verdict"]["sentence"].startswith("Tuning helped")


def test_with_permuted_training_labels_tuning_falls_to_chance_and_the_verdict_says_so(tmp_path, tiny_folder):
    rows = sentences(96, SOUNDS, 1)
    labels = [sound for _, sound in rows]
    random.Random(3).shuffle(labels)
    permuted = [(text, label) for (text, _), label in zip(rows, labels, strict=True)]
    report = run(tmp_path, tiny_folder, permuted, sentences(40, SOUNDS, 2))
    assert value(report, "tuned-choose") < 0.6
    assert not report["verdict"]["helped"]
    assert report["verdict"]["state"] in ("no_change", "worse", "cannot_tell")

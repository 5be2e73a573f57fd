"""Families of models: each is rendered, trained in two steps and saved, and PEFT alone computes the same logits."""

from pathlib import Path

import families
import pytest
from conftest import needs_shared

from loratory.models.finding import find_files
from loratory.settings import ModelConfig

pytestmark = [
    needs_shared,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.mark.thorough
@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_tiny_model_of_the_family_is_trained_and_read_by_peft(name: str, tmp_path: Path):
    if not families.is_at_hand(families.FAMILIES[name]):
        pytest.skip("its tokenizer is not on this machine")
    found = families.findings(name, tmp_path)
    assert found == families.recorded()[name], "run: python tests/models/families.py (its first lines say how)"


def test_every_family_is_recorded():
    assert [*families.recorded()] == [*families.FAMILIES]


@pytest.mark.slow
def test_smollm2_itself_is_trained_and_read_by_peft(tmp_path: Path):
    if not families.is_at_hand(families.FAMILIES["SmolLM2"]):
        pytest.skip("SmolLM2 is not on this machine")
    folder = find_files(ModelConfig("smollm2-135m")).folder
    found = families.findings("SmolLM2", tmp_path, folder)
    assert found == families.recorded()["SmolLM2"]

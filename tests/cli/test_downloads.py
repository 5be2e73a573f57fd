"""A model is downloaded only after a yes, and the built-in one is used only where nothing else can be had."""

import io
import sys

import pytest

from loratory.bases import SHORT_NAMES
from loratory.cli import task_arguments
from loratory.cli.downloads import agree_to_download
from loratory.errors import Interrupted
from loratory.settings import BUILTIN, ModelConfig

ROWS = "text,label\n" + "".join(f"some words {i},{'ab'[i % 2]}\n" for i in range(40))


class Terminal(io.StringIO):
    """An input or output at which a person sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """No known model is on this machine, the hub has all of them with 5 GB each, and the machine is fast."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("loratory.bases.places.file_in_package", lambda *_: None)
    monkeypatch.setattr("loratory.machine.matmul_flops", lambda *_: 1e12)
    monkeypatch.setattr("loratory.machine.memory_bytes", lambda *_: 16 << 30)
    monkeypatch.setattr("loratory.models.bytes_to_download", lambda config: 0 if config.name == BUILTIN else 5 * 10**9)
    monkeypatch.setattr(task_arguments, "is_masked_model", lambda _: False)


def guessed_model(answer: str | None, monkeypatch, yes: bool = False) -> str:
    """The model of a guessed task file; ``answer``: what the person at the terminal types, None: nobody is there."""
    if answer is not None:
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        monkeypatch.setattr(sys, "stderr", Terminal())
    task_file, model = task_arguments.guess(["rows.csv"], "label", "", yes=yes)
    assert f'name = "{model}"' in task_file.toml
    return model


def test_a_model_is_chosen_from_the_hub_after_a_yes(hub, monkeypatch):
    chosen = SHORT_NAMES[guessed_model("", monkeypatch)]
    assert "Download it? [Y/n]" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert chosen.is_open
    larger = [m for m in SHORT_NAMES.values() if m.is_open and m.parameters > chosen.parameters]
    assert all(task_arguments.EXAMPLES * 250 * 3 * 4 * m.parameters / 0.6e12 > 3600 for m in larger)
    assert guessed_model("n", monkeypatch) == BUILTIN


def test_without_a_terminal_only_yes_chooses_a_model_from_the_hub(hub, monkeypatch, capsys):
    assert guessed_model(None, monkeypatch) == BUILTIN
    assert "--yes downloads one" in capsys.readouterr().err
    assert guessed_model(None, monkeypatch, yes=True) in SHORT_NAMES


def test_if_the_hub_cannot_be_reached_nothing_is_asked_and_the_built_in_model_is_used(hub, monkeypatch):
    monkeypatch.setattr("loratory.models.bytes_to_download", lambda config: None)
    assert guessed_model("", monkeypatch) == BUILTIN
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert guessed_model("", monkeypatch, yes=True) == BUILTIN


def test_a_model_that_the_person_named_is_downloaded_unless_they_say_no(hub, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("n\n\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    agree_to_download(ModelConfig(BUILTIN), yes=False)
    agree_to_download(ModelConfig("someone/large"), yes=True)
    assert sys.stderr.getvalue() == ""
    with pytest.raises(Interrupted):
        agree_to_download(ModelConfig("someone/large"), yes=False)
    assert "someone/large is not on this machine: 5.00 GB." in sys.stderr.getvalue()
    agree_to_download(ModelConfig("someone/large"), yes=False)


def test_the_folds_of_a_guess_give_way_to_a_test_set(hub):
    arguments = ["rows.csv", "--answer", "label", "--model.name", BUILTIN]
    folds, _ = task_arguments.parse_with_task(task_arguments.RunFlags, arguments, "check")
    limited, _ = task_arguments.parse_with_task(
        task_arguments.RunFlags, [*arguments, "--data.limit-test", "9"], "check"
    )
    assert (folds.config.data.folds, limited.config.data.folds) == (5, 0)
    assert limited.config.data.limit_test == 9

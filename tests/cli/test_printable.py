"""Control characters from data, models and file names are shown, and never reach the terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.cli.main import main
from loratory.cli.output import print_json, print_text
from loratory.cli.progress import progress_display
from loratory.events import Event
from loratory.printable import json_line, printable, printable_values

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\x08\x7f\x9b31m\u202e\u2066"


def is_harmless(text: str) -> bool:
    codes = [ord(c) for c in text if c not in "\t\n"]
    return not any(c < 32 or 127 <= c < 160 or 0x202A <= c <= 0x202E or 0x2066 <= c <= 0x2069 for c in codes)


@given(st.text() | st.text(st.sampled_from(HOSTILE + "a\t\n")))
def test_a_printable_text_has_no_control_characters_and_the_same_length(text):
    assert is_harmless(printable(text)) and len(printable(text)) == len(text)
    assert is_harmless(json_line({text: [text]})) and json.loads(json_line({text: [text]})) == {text: [text]}


def test_progress_says_what_is_counted(capsys):
    with progress_display() as show:
        for part in ("validation", "test"):
            show(Event("progress", "prompt", {"part": part, "done": 9, "total": 9}))
        step = {"step": 5, "steps": 5, "seconds": 1.0, "tokens": 10, "loss": 0.5}
        show(Event("step", "0.002", step))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[:2] == ["prompt: 9/9 validation examples", "prompt: 9/9 test examples"]
    assert lines[2].startswith("training at learning rate 0.002: 5/5 steps, loss 0.500")


def test_other_characters_stay_as_they_are():
    text = "ü 日本語 🤖 \t\n [bold] é\u200d\u00a0"
    assert printable(text) == text and printable_values({"a": (text, 1, None)}) == {"a": [text, 1, None]}


def test_output_of_the_verbs_is_printable(capsys):
    print_text(HOSTILE)
    print_json({"answer": HOSTILE})
    with progress_display() as show:
        for kind, values in (
            ("stage", {}),
            ("message", {}),
            ("progress", {"done": 1, "total": 1}),
            ("system", {"metric": "accuracy", "value": 0.5, "seconds": 1.0}),
        ):
            show(Event(kind, f"{HOSTILE}[/bold]", values))
    shown = capsys.readouterr()
    assert is_harmless(shown.out) and is_harmless(shown.err) and shown.err.count("[/bold]") == 4


@pytest.mark.parametrize(
    "arguments", [[HOSTILE], ["show", f"{HOSTILE}.toml"], ["run", f"{HOSTILE}.csv", "--answer", "a"]]
)
def test_errors_are_printable(arguments, capsys):
    assert main(arguments) == 2
    assert is_harmless(capsys.readouterr().err)


def test_tokens_of_an_example_are_printable(tmp_path, tiny_folder, capsys):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": f"{i} {HOSTILE}", "label": f"{'ab'[i % 2]}{HOSTILE}"}) for i in range(12)]
    path.write_text("\n".join(rows))
    task = tmp_path / "t.toml"
    task.write_text(f'[data]\ntrain = "{path}"\nanswer = "label"\n[model]\nname = "{tiny_folder}"\n')
    for flags in ([], ["--json"]):
        assert main(["show", str(task), *flags]) == 0
        shown = capsys.readouterr().out
        assert is_harmless(shown) and ("␛" in shown or "\\u001b" in shown)

"""``loratory check``: what it prints, its exit code, and that a run stops at the same errors."""

import json
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared

from loratory.cli.main import main

WORDS = ("stone", "river", "cloud", "grass", "wheel", "paper", "candle", "window", "garden", "silver", "button")


def text(i: int) -> str:
    return " ".join(WORDS[(i // 11**k + k * k * i) % 11] for k in range(6)) + f" number {i}"


def write(folder: Path, rows: list[tuple[object, object]], columns: str = "text,team", settings: str = "") -> str:
    csv = "".join(f"{a},{b}\n" for a, b in rows)
    (folder / "mail.csv").write_text(f"{columns}\n{csv}")
    name = columns.partition(",")[0]
    (folder / "task.toml").write_text(
        f'[data]\ntrain = "mail.csv"\nanswer = "team"\n{settings}\n[prompt]\nsystem = "One of: {{labels}}."\n'
        f'user = "{{{name}}}"\n[run]\nout = "{folder / "out"}"\n'
    )
    return str(folder / "task.toml")


CLEAN = [(text(i), ("billing", "shop")[i % 2]) for i in range(60)]


def test_clean_data_gives_one_line_with_what_was_checked(tmp_path, capsys):
    assert main(["check", write(tmp_path, CLEAN)]) == 0
    assert capsys.readouterr().out == "Checked 38 train, 10 validation, 12 test examples, 2 labels: nothing found.\n"


def test_findings_are_grouped_by_severity_with_their_places(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [*CLEAN, (text(3), "billing"), (text(100), ""), (text(101), "NA"), (text(102), "Shop")] + [
        (text(200 + i), "Shop") for i in range(9)
    ]
    assert main(["check", write(tmp_path, rows, settings="validation_share = 0.1")]) == 1
    out = capsys.readouterr().out
    assert out.index("Errors: a run would stop\n  missing_answers: 2 rows") < out.index("Warnings\n")
    assert "    mail.csv:63, mail.csv:64\n" in out
    assert "labels that look alike: 'shop' (30), 'Shop' (10)" in out
    assert out.splitlines()[-1].endswith(": 1 error, 2 warnings, 1 note.")
    assert not (tmp_path / "out").exists()
    assert main(["check", "task.toml", "--data.missing", "skip", "--data.normalize-labels"]) == 0


def test_json_has_everything(tmp_path, capsys):
    assert main(["check", write(tmp_path, [*CLEAN, (text(100), "")]), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    [finding] = result["findings"]
    assert (finding["name"], finding["severity"], finding["count"]) == ("missing_answers", "error", 1)
    assert finding["places"] == [f"{tmp_path / 'mail.csv'}:62"]
    assert (sum(result["examples"].values()), result["labels"]) == (60, ["billing", "shop"])
    assert "leaking_column" in result["checks"]


def leaking(folder: Path, settings: str = "") -> str:
    return write(folder, [(team, team) for _, team in CLEAN], "group,team", settings)


def test_a_run_stops_at_an_error_by_name_and_writes_nothing(tmp_path, capsys):
    assert main(["train", leaking(tmp_path), "--model.device", "cpu", "--yes"]) == 2
    error = capsys.readouterr().err
    assert "The result would mean nothing with this data" in error
    assert "(leaking_column)" in error and 'waive = ["leaking_column"]' in error
    assert f"{tmp_path / 'mail.csv'}:" in error
    assert not (tmp_path / "out").exists()


def test_a_waived_error_is_a_warning(tmp_path, capsys):
    assert main(["check", leaking(tmp_path, 'waive = ["leaking_column"]')]) == 0
    assert "(waived)" in capsys.readouterr().out


def test_wrong_input_is_still_exit_code_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.toml")]) == 2
    assert main(["check", leaking(tmp_path, 'waive = ["leaking_colum"]')]) == 2
    assert "did you mean 'leaking_column'?" in capsys.readouterr().err


@needs_shared
@pytest.mark.parametrize("case", ["json-nan", "labels-prefixes"])
def test_the_cases_of_others_are_checked_without_a_traceback(tmp_path, capsys, case: str):
    folder = SHARED / "cases" / case
    task = tmp_path / "task.toml"
    task.write_text(f'[data]\ntrain = "{folder / "tickets.jsonl"}"\nanswer = "label"\n')
    code = main(["check", str(task)])
    out = capsys.readouterr().out
    assert code == (1 if case == "json-nan" else 0), out
    assert ("missing_answers" if case == "json-nan" else "labels_begin_alike") in out

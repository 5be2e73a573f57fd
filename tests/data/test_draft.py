"""A guessed task file: what it shows, what it leaves out, and that it runs as it stands."""

import json
from pathlib import Path

import pytest

from loratory.cli.main import main
from loratory.config import Config
from loratory.data.prompts import placeholders
from loratory.data.splits import load_split
from loratory.data.task_file import check_not_overwriting, guess_task_file
from loratory.errors import UserError
from loratory.models.loading import is_masked

LABELS = ("red", "green", "blue")


def write_csv(path: Path, columns: dict[str, list[str]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text(",".join(columns) + "\n" + "".join(",".join(row) + "\n" for row in rows))
    return path


def columns(count: int, **more: list[str]) -> dict[str, list[str]]:
    texts = [f"a thing of kind {i % 7} and number {i}" for i in range(count)]
    return {"text": texts, "colour": [LABELS[i % 3] for i in range(count)], **more}


def drafted(path: Path, answer: str = "colour") -> Config:
    found = guess_task_file(str(path), answer, is_masked)
    return Config.parse(found.toml, found.path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", [str(i) for i in range(240)]),
        ("code", [f"x-{i:04d}" for i in range(240)]),
        ("empty", [""] * 240),
        ("constant", ["same old"] * 240),
        ("colour_id", [str(i % 3) for i in range(240)]),
        ("part", [("train", "test")[i % 2] for i in range(240)]),
        ("{odd}", [f"some words {i}" for i in range(240)]),
    ],
)
def test_columns_that_give_nothing_or_the_answer_away_are_left_out(tmp_path, name: str, values: list[str]):
    path = write_csv(tmp_path / "things.csv", columns(240, **{name: values}))
    found = guess_task_file(str(path), "colour", is_masked)
    assert found.shown == ("text",)
    assert set(found.left_out) == {name}
    assert f"# not shown: {name} ({found.left_out[name]})" in found.toml
    config = Config.parse(found.toml, found.path)
    assert placeholders(str(config.prompt.user), "") == ["text"]


def test_several_columns_are_named_and_shown_in_their_order(tmp_path):
    path = write_csv(tmp_path / "things.csv", columns(240, sub_title=[f"the title {i % 50}" for i in range(240)]))
    assert drafted(path).prompt.user == "Text: {text}\nSub title: {sub_title}"


def test_what_is_guessed_can_be_read_and_split_as_it_stands(tmp_path):
    path = write_csv(tmp_path / "things.csv", columns(240))
    config = drafted(path)
    split = load_split(config.data, config.prompt, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (168, 24, 48) or len(split.test) == 48
    assert "blue, green, red" in split.train[0].messages[0].content
    assert config.run.out == "runs/things"


def test_files_beside_it_are_used_as_validation_and_test(tmp_path):
    folder = tmp_path / "colours"
    folder.mkdir()
    path = write_csv(folder / "train.csv", columns(240))
    write_csv(folder / "test.csv", columns(30))
    write_csv(folder / "dev.csv", columns(12))
    config = drafted(path)
    assert config.data.test == (str((folder / "test.csv").resolve()),)
    assert config.data.validation == (str((folder / "dev.csv").resolve()),)
    assert config.run.out == "runs/colours"
    write_csv(folder / "test.csv", {"other": ["x"]})
    assert drafted(path).data.test == ()


def test_few_rows_are_cross_validated_and_many_are_limited(tmp_path):
    assert drafted(write_csv(tmp_path / "few.csv", columns(60))).data.folds == 5
    many = drafted(write_csv(tmp_path / "many.csv", columns(9000))).data
    assert (many.folds, many.limit_train, many.limit_validation, many.limit_test) == (0, 2000, 200, 500)


def test_answers_that_hardly_repeat_are_free_texts(tmp_path):
    path = write_csv(tmp_path / "things.csv", columns(240))
    made = guess_task_file(str(path), "text", is_masked)
    config = Config.parse(made.toml, made.path)
    assert config.task == "text" and config.prompt.system == "Write the text that belongs to this text."
    split = load_split(config.data, config.prompt, 0, task=config.task)
    assert split.labels == () and len({e.answer for e in split.train}) == len(split.train)
    assert drafted(path).task == "classification"


def test_a_missing_or_misspelt_answer_column_is_named(tmp_path):
    path = write_csv(tmp_path / "things.csv", columns(240))
    with pytest.raises(UserError, match="did you mean 'colour'"):
        guess_task_file(str(path), "color", is_masked)
    with pytest.raises(UserError, match="text, colour"):
        guess_task_file(str(path), "", is_masked)


def test_only_an_answer_column_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="No column is left"):
        guess_task_file(
            str(write_csv(tmp_path / "things.csv", {"colour": columns(240)["colour"]})), "colour", is_masked
        )


def test_a_task_file_that_was_changed_is_not_replaced(tmp_path):
    found = guess_task_file(str(write_csv(tmp_path / "things.csv", columns(240))), "colour", is_masked)
    found.path.write_text(found.toml)
    check_not_overwriting(found)
    found.path.write_text(found.toml + "# mine\n")
    with pytest.raises(UserError, match="says something else"):
        check_not_overwriting(found)


def test_quotes_and_signs_in_the_data_make_no_broken_file(tmp_path):
    answer = 'a "strange" # name = \\'
    rows = [{answer: f'l"{i % 3}\n]', 'x "y" #': f"some text {i % 50}"} for i in range(240)]
    path = tmp_path / "we ird.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = drafted(path, answer)
    assert config.data.answer == answer
    assert len(load_split(config.data, config.prompt, 0).labels) == 3


def test_init_writes_the_file_and_shows_examples_of_different_labels(tmp_path, tiny_folder, capsys):
    path = write_csv(tmp_path / "things.csv", columns(240))
    assert main(["init", str(path), "--answer", "colour", "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert all(f"{label}<|im_end|>" in out for label in LABELS)
    assert Config.load("things.toml").model.name == str(tiny_folder)
    Path("things.toml").write_text("# mine\n")
    assert main(["init", str(path), "--answer", "colour", "--model", str(tiny_folder)]) == 2
    assert Path("things.toml").read_text() == "# mine\n"
    assert main(["init", str(path), "--answer", "colour", "--model", str(tiny_folder), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shown"] == ["text"]


def test_a_data_file_runs_without_a_task_file(tmp_path, tiny_folder, capsys):
    path = write_csv(tmp_path / "things.csv", columns(240))
    words = [str(path), "--answer", "colour", "--model.name", str(tiny_folder), "--train.epochs", "1"]
    assert main(["run", *words, "--run.systems", "linear", "tuned-choose", "--json"]) == 0
    captured = capsys.readouterr()
    assert {s["name"] for s in json.loads(captured.out)["systems"]} == {"linear", "tuned-choose"}
    assert "About" in captured.err
    assert Config.load("things.toml").data.answer == "colour"
    assert Path("runs/things/report.html").exists()


def test_a_mistake_in_the_settings_writes_no_task_file(tmp_path, tiny_folder):
    path = write_csv(tmp_path / "things.csv", columns(240))
    words = [str(path), "--answer", "colour", "--model.name", str(tiny_folder)]
    assert main(["run", *words, "--prompt.user", "{nothing}"]) == 2
    assert not Path("things.toml").exists()
    assert not Path("runs").exists()

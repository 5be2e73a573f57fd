"""Guessed task files: the columns they show and leave out, and that they run unchanged."""

import json
from pathlib import Path

import pytest

from loratory.bases import Place
from loratory.bases.known import KNOWN_MODELS
from loratory.cli import task_arguments
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


def make_columns(count: int, **more: list[str]) -> dict[str, list[str]]:
    texts = [f"a thing of kind {i % 7} and number {i}" for i in range(count)]
    return {"text": texts, "color": [LABELS[i % 3] for i in range(count)], **more}


def guessed_config(path: Path, answer: str = "color") -> Config:
    task_file = guess_task_file([str(path)], answer, is_masked)
    return Config.parse(task_file.toml, task_file.path)


@pytest.fixture(autouse=True)
def change_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", [str(i) for i in range(240)]),
        ("code", [f"x-{i:04d}" for i in range(240)]),
        ("empty", [""] * 240),
        ("constant", ["same old"] * 240),
        ("color_id", [str(i % 3) for i in range(240)]),
        ("part", [("train", "test")[i % 2] for i in range(240)]),
        ("{odd}", [f"some words {i}" for i in range(240)]),
    ],
)
def test_columns_that_are_useless_or_reveal_the_answer_are_left_out(tmp_path, name: str, values: list[str]):
    path = write_csv(tmp_path / "things.csv", make_columns(240, **{name: values}))
    task_file = guess_task_file([str(path)], "color", is_masked)
    assert task_file.shown == ("text",)
    assert set(task_file.left_out) == {name}
    assert f"# not shown: {name} ({task_file.left_out[name]})" in task_file.toml
    config = Config.parse(task_file.toml, task_file.path)
    assert placeholders(str(config.prompt.user), "") == ["text"]


def test_several_columns_are_shown_with_their_names_and_in_order(tmp_path):
    path = write_csv(tmp_path / "things.csv", make_columns(240, sub_title=[f"the title {i % 50}" for i in range(240)]))
    assert guessed_config(path).prompt.user == "Text: {text}\nSub title: {sub_title}"


def test_a_guessed_task_file_can_be_used_unchanged(tmp_path):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    config = guessed_config(path)
    split = load_split(config.data, config.prompt, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (168, 24, 48) or len(split.test) == 48
    assert "blue, green, red" in split.train[0].messages[0].content
    assert config.run.out == "runs/things"


def test_validation_and_test_files_in_the_same_folder_are_used(tmp_path):
    folder = tmp_path / "colors"
    folder.mkdir()
    path = write_csv(folder / "train.csv", make_columns(240))
    write_csv(folder / "test.csv", make_columns(30))
    write_csv(folder / "dev.csv", make_columns(12))
    config = guessed_config(path)
    assert config.data.test == (str((folder / "test.csv").resolve()),)
    assert config.data.validation == (str((folder / "dev.csv").resolve()),)
    assert config.run.out == "runs/colors"
    write_csv(folder / "test.csv", {"other": ["x"]})
    assert guessed_config(path).data.test == ()


def test_few_rows_are_cross_validated_and_many_are_limited(tmp_path):
    assert guessed_config(write_csv(tmp_path / "few.csv", make_columns(60))).data.folds == 5
    many = guessed_config(write_csv(tmp_path / "many.csv", make_columns(9000))).data
    assert (many.folds, many.limit_train, many.limit_validation, many.limit_test) == (0, 2000, 200, 500)


@pytest.mark.thorough
def test_mostly_different_answers_are_free_text(tmp_path):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    task_file = guess_task_file([str(path)], "text", is_masked)
    config = Config.parse(task_file.toml, task_file.path)
    assert config.task == "text" and config.prompt.system == "Write the text that belongs to this text."
    split = load_split(config.data, config.prompt, 0, task=config.task)
    assert split.labels == () and len({e.answer for e in split.train}) == len(split.train)
    assert guessed_config(path).task == "classification"


def test_a_missing_or_misspelled_answer_column_is_reported(tmp_path):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    with pytest.raises(UserError, match="did you mean 'color'"):
        guess_task_file([str(path)], "colour", is_masked)
    with pytest.raises(UserError, match="did you mean 'color'"):
        guess_task_file([str(path)], "COLOR", is_masked)
    with pytest.raises(UserError, match="text, color"):
        guess_task_file([str(path)], "", is_masked)


def test_data_with_only_an_answer_column_is_rejected(tmp_path):
    with pytest.raises(UserError, match="No column is left"):
        guess_task_file(
            [str(write_csv(tmp_path / "things.csv", {"color": make_columns(240)["color"]}))], "color", is_masked
        )


def test_a_modified_task_file_is_not_overwritten(tmp_path):
    task_file = guess_task_file([str(write_csv(tmp_path / "things.csv", make_columns(240)))], "color", is_masked)
    task_file.path.write_text(task_file.toml)
    check_not_overwriting(task_file)
    task_file.path.write_text(task_file.toml + "# mine\n")
    with pytest.raises(UserError, match="already exists"):
        check_not_overwriting(task_file)


def test_quotes_and_special_characters_in_the_data_give_a_valid_file(tmp_path):
    answer = 'a "strange" # name = \\'
    rows = [{answer: f'l"{i % 3}\n]', 'x "y" #': f"some text {i % 50}"} for i in range(240)]
    path = tmp_path / "we ird.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = guessed_config(path, answer)
    assert config.data.answer == answer
    assert len(load_split(config.data, config.prompt, 0).labels) == 3


def test_init_writes_the_file_and_shows_examples_of_different_labels(tmp_path, tiny_folder, capsys):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    assert main(["init", str(path), "--answer", "color", "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert all(f"{label}<|im_end|>" in out for label in LABELS)
    assert Config.load("things.toml").model.name == str(tiny_folder)
    Path("things.toml").write_text("# mine\n")
    assert main(["init", str(path), "--answer", "color", "--model", str(tiny_folder)]) == 2
    assert Path("things.toml").read_text() == "# mine\n"
    assert main(["init", str(path), "--answer", "color", "--model", str(tiny_folder), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shown"] == ["text"]


@pytest.mark.thorough
def test_a_data_file_runs_without_a_task_file(tmp_path, tiny_folder, capsys):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    words = [str(path), "--answer", "color", "--model.name", str(tiny_folder), "--train.epochs", "1"]
    assert main(["run", *words, "--run.systems", "linear", "tuned-choose", "--json"]) == 0
    captured = capsys.readouterr()
    assert {s["name"] for s in json.loads(captured.out)["systems"]} == {"linear", "tuned-choose"}
    assert "About" in captured.err
    assert Config.load("things.toml").data.answer == "color"
    assert Path("runs/things/report.html").exists()


def test_an_error_in_the_settings_writes_no_task_file(tmp_path, tiny_folder):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    words = [str(path), "--answer", "color", "--model.name", str(tiny_folder)]
    assert main(["run", *words, "--prompt.user", "{nothing}"]) == 2
    assert not Path("things.toml").exists()
    assert not Path("runs").exists()


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def guessed(*names: str, answer: str = "", masked: bool = False) -> Config:
    task_file = guess_task_file(names, answer, lambda _: masked)
    return Config.parse(task_file.toml, task_file.path)


SENTENCES = ("You may keep it for a month.", "The fee is in your account.", "Yes, the room is free.")


@pytest.mark.parametrize(("answer", "given"), [("output", False), ("response", False), ("output", True)])
def test_instructions_need_no_answer_column_and_no_system_message(tmp_path, answer: str, given: bool):
    rows = [
        {"instruction": f"Do {i}.", "input": f"with {i}" if i % 2 else "", answer: SENTENCES[i % 3], "source": f"s {i}"}
        for i in range(60)
    ]
    config = guessed(write_rows(tmp_path / "a.jsonl", rows), answer=answer if given else "")
    assert (config.task, config.data.answer, config.prompt.system) == ("text", answer, None)
    assert config.prompt.user == "{instruction}\n\n{input}"
    texts = {e.messages[-1].content for e in load_split(config.data, config.prompt, 0, task="text").test}
    assert {"Do 0.", "Do 1.\n\nwith 1"} <= texts


def test_completions_need_no_answer_column(tmp_path):
    rows = [{"prompt": f"Say {i}.", "completion": f" word {i}"} for i in range(60)]
    config = guessed(write_rows(tmp_path / "a.jsonl", rows))
    assert (config.task, config.data.answer, config.prompt.user) == ("text", "completion", "{prompt}")


def test_sentences_that_recur_are_no_labels(tmp_path):
    rows = [{"question": f"What about thing {i} there?", "reply": SENTENCES[i % 3]} for i in range(60)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert guessed(path, answer="reply").task == "text"
    rows = [{**row, "reply": ("yes", "not sure", "no way at all")[i % 3]} for i, row in enumerate(rows)]
    assert guessed(write_rows(tmp_path / "b.jsonl", rows), answer="reply").task == "classification"


@pytest.mark.parametrize("answer", ["", "text"])
def test_plain_texts_are_for_pretraining_or_filling_in(tmp_path, answer: str):
    rows = [{"id": f"x{i}", "text": f"The room opens at {i} o'clock."} for i in range(60)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    for masked, task in ((False, "pretrain"), (True, "fill")):
        config = guessed(path, answer=answer, masked=masked)
        assert (config.task, config.data.answer, config.prompt.user) == (task, "", "{text}")
        assert len(load_split(config.data, config.prompt, 0, task=task).test) == 60


def test_conversations_need_no_answer_column(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert guessed(write_rows(tmp_path / "a.jsonl", [{"messages": turns}] * 60)).task == "dialogue"
    config = guessed(write_rows(tmp_path / "b.jsonl", [{"dialog": turns}] * 60))
    assert (config.task, config.data.answer) == ("dialogue", "dialog")
    config = guessed(write_rows(tmp_path / "c.jsonl", [{"prompt": turns[:1], "completion": turns[1:]}] * 60))
    assert (config.task, config.data.answer) == ("dialogue", "")
    assert len(load_split(config.data, config.prompt, 0, task="dialogue").test) == 60


@pytest.mark.parametrize("label", [-1, "", None, "N/A"])
def test_a_test_file_without_labels_is_not_used_and_this_is_said(tmp_path, label):
    rows = [{"text": f"a thing {i} of kind {i % 7}", "color": LABELS[i % 3]} for i in range(240)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [{**row, "color": label} for row in rows[:9]])
    task_file = guess_task_file([path], "color", lambda _: False)
    assert "# test: test.jsonl has no answers, so about 48 rows are split off train" in task_file.toml
    config = Config.parse(task_file.toml, task_file.path)
    assert config.data.test == () and config.data.missing == "skip"
    write_rows(tmp_path / "test.jsonl", [{**row, "color": label if i else "red"} for i, row in enumerate(rows[:9])])
    assert len(guessed(path, answer="color").data.test) == 1


def test_rows_without_an_answer_are_set_aside(tmp_path):
    columns = make_columns(240)
    columns["color"][5] = "N/A"
    path = write_csv(tmp_path / "things.csv", columns)
    task_file = guess_task_file([str(path)], "color", lambda _: False)
    assert "1 rows without an answer are set aside" in task_file.toml and "3 labels" in task_file.toml


def test_several_files_parts_and_patterns(tmp_path):
    names = [str(write_csv(tmp_path / f"part-{i}.csv", make_columns(120))) for i in range(2)]
    config = guessed(*names, answer="color")
    assert config.data.train == tuple(names) and config.run.out == "runs/part-0"
    (tmp_path / "colors").mkdir()
    for i in range(3):
        write_csv(tmp_path / "colors" / f"train-{i:05d}-of-00003.csv", make_columns(90))
    write_csv(tmp_path / "colors" / "test-00000-of-00001.csv", make_columns(30))
    config = guessed(str(tmp_path / "colors" / "train-00001-of-00003.csv"), answer="color")
    assert config.run.out == "runs/colors" and config.data.test[0].endswith("test-00000-of-00001.csv")
    assert len(load_split(config.data, config.prompt, 0).train) > 200


def test_nested_columns_are_shown_by_their_path(tmp_path):
    rows = [{"ticket": {"body": f"a thing {i}", "n": {"color": LABELS[i % 3]}}} for i in range(240)]
    config = guessed(write_rows(tmp_path / "a.jsonl", rows), answer="ticket.n.color")
    assert config.prompt.user == "{ticket.body}"
    assert load_split(config.data, config.prompt, 0).labels == ("blue", "green", "red")


@pytest.mark.parametrize(("separator", "written"), [("; ", ";"), (", ", ","), ("|", "|")])
def test_sets_of_labels_in_a_cell_are_the_task_labels(tmp_path, separator: str, written: str):
    sets = [LABELS[:1], LABELS[1:2], LABELS[1:], LABELS[:2]]
    rows = [{"text": f"a thing {i}", "color": separator.join(sets[i % 4])} for i in range(240)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    task_file = guess_task_file([path], "color", lambda _: False)
    config = Config.parse(task_file.toml, task_file.path)
    assert (config.task, config.data.separator) == ("labels", written)
    assert len(task_file.remarks) == 1 and 'task = "classification"' in task_file.remarks[0]
    split = load_split(config.data, config.prompt, 0, task="labels")
    assert split.labels == tuple(sorted(LABELS)) and {len(e.answers) for e in split.train} == {1, 2}
    assert guessed(path, answer="color", masked=True).task == "classification"


def test_numbers_are_said_to_be_learned_as_text_or_labels(tmp_path):
    for different, task in ((60, "text"), (20, "classification"), (5, "classification")):
        rows = [{"text": f"a thing {i}", "price": f"{12 + i % different}.5"} for i in range(60)]
        task_file = guess_task_file([write_rows(tmp_path / f"{different}.jsonl", rows)], "price", lambda _: False)
        assert Config.parse(task_file.toml, task_file.path).task == task
        assert ["regression is not offered" in text for text in task_file.remarks] == [True] * (different > 5)


def test_columns_that_give_the_answer_away_are_said(tmp_path, tiny_folder, capsys):
    path = write_csv(tmp_path / "things.csv", make_columns(240, color_id=[str(i % 3) for i in range(240)]))
    for words in (["init", "--model"], ["check", "--model.name"]):
        assert main([words[0], str(path), "--answer", "color", words[1], str(tiny_folder)]) == 0
        assert "the answer could be read from it: color_id" in capsys.readouterr().err


def test_conversations_with_tools_get_a_task_file_for_another_model(tmp_path, capsys):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    path = write_rows(tmp_path / "chats.jsonl", [{"messages": turns, "tools": [tool]}] * 20)
    assert main(["init", path]) == 0
    captured = capsys.readouterr()
    assert Config.load("chats.toml").task == "dialogue"
    assert "does not support tools" in captured.out and "--model.name" in captured.out
    assert "Only 20 examples" in captured.err


def test_no_folds_because_of_a_rare_label_are_explained(tmp_path):
    columns = make_columns(60)
    columns["color"][:2] = ["black", "black"]
    task_file = guess_task_file([str(write_csv(tmp_path / "a.csv", columns))], "color", is_masked)
    assert "# folds: few rows, but a label" in task_file.toml and "folds = " not in task_file.toml


def test_the_answer_column_chooses_the_list_of_a_json_file(tmp_path):
    rows = [{"text": f"a thing {i}", "color": LABELS[i % 3]} for i in range(60)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"things": rows, "people": [{"name": "x"}] * 3}))
    config = guessed(str(path), answer="color")
    assert len(load_split(config.data, config.prompt, 0).test) == 60


def test_rejected_answers_are_said_to_be_unused(tmp_path):
    rows = [{"prompt": f"Say {i}.", "chosen": f"word {i}", "rejected": f"no {i}"} for i in range(60)]
    task_file = guess_task_file([write_rows(tmp_path / "a.jsonl", rows)], "", is_masked)
    assert len(task_file.remarks) == 1 and "'rejected' is not used" in task_file.remarks[0]


def test_data_is_checked_whatever_task_file_is_there(tmp_path, tiny_folder):
    path = write_csv(tmp_path / "things.csv", make_columns(60))
    Path("things.toml").write_text("# mine\n")
    assert main(["check", str(path), "--answer", "color", "--model.name", str(tiny_folder)]) == 0
    assert Path("things.toml").read_text() == "# mine\n"


def test_without_a_model_the_largest_known_one_on_this_machine_is_chosen(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "things.csv", make_columns(240))
    monkeypatch.setattr(task_arguments, "is_masked_model", lambda model: False)
    places = [(model, Place("hub", model.hub_id)) for model in KNOWN_MODELS]
    monkeypatch.setattr("loratory.bases.known_places", lambda: places)
    assert task_arguments.guess([str(path)], "color", "")[1] == "builtin"
    here = {"smollm2-135m": "package", "smollm2-360m": "ollama", "qwen2.5-14b": "hub cache"}
    places = [(model, Place(here.get(model.short, "hub"), "somewhere")) for model in KNOWN_MODELS]
    monkeypatch.setattr("loratory.machine.matmul_flops", lambda *_: 3e11)
    monkeypatch.setattr("loratory.machine.memory_bytes", lambda *_: 24 * 1024**3)
    task_file, name = task_arguments.guess([str(path)], "color", "")
    assert name == "smollm2-360m" and 'name = "smollm2-360m"' in task_file.toml
    assert "found in Ollama: 362 million parameters" in task_file.remarks[-1]
    monkeypatch.setattr("loratory.machine.matmul_flops", lambda *_: 1e11)
    assert task_arguments.guess([str(path)], "color", "")[1] == "smollm2-135m", "the larger one takes more than an hour"
    assert task_arguments.guess([str(path)], "color", "builtin")[1] == "builtin"


# ---- the tasks that come with the package ----------------------------------------------------------------------------


def test_the_demonstration_uses_a_real_model_where_there_is_one(monkeypatch):
    for kind, name in (("package", "demo.toml"), ("hub cache", "demo.toml"), ("hub", "task.toml")):
        monkeypatch.setattr("loratory.bases.place_of", lambda model, kind=kind: Place(kind, "somewhere"))
        assert task_arguments.builtin_task().name == name


def test_the_short_texts_are_those_of_the_papers_with_the_first_twenty_of_each_field_for_the_test():
    folder = task_arguments.builtin_task().parent

    def read(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    papers = [*read("papers-test"), *read("papers-train")]
    test, train = read("short-test"), read("short-train")
    for field in {paper["category"] for paper in papers}:
        of_field = [paper for paper in papers if paper["category"] == field]
        short = [row for row in (*test, *train) if row["category"] == field]
        assert [row["title"] for row in short] == [paper["title"] for paper in of_field]
        assert all(paper["abstract"].startswith(row["sentence"]) for row, paper in zip(short, of_field, strict=True))
        assert sum(row["category"] == field for row in test) == 20
    assert not {row["title"] for row in test} & {row["title"] for row in train}

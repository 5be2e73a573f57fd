"""Files and models that went wrong elsewhere, in the shape of public bug reports; they are in the shared folder."""

import json
import os
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared

from loratory.cli.main import main

CASES = SHARED / "cases"
pytestmark = [
    needs_shared,
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of the script that makes models
]


@pytest.fixture
def case(request, tmp_path, monkeypatch):
    """A copy of the case's folder, as the working folder, without task files that ``init`` has left."""
    folder = tmp_path / request.param
    shutil.copytree(CASES / request.param, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in folder.glob("*.toml"):
        if path.name != "task.toml":
            path.unlink()
    monkeypatch.chdir(folder)
    return folder


def the(name: str):
    return pytest.mark.parametrize("case", [name], indirect=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The folder with the tiny models of the cases."""
    if not CASES.exists():
        pytest.skip("no cases")
    folder = tmp_path_factory.mktemp("cases")
    (folder / "models").mkdir()
    (folder / "data").symlink_to(SHARED / "data")
    before = Path.cwd()
    work = folder / "work"
    work.mkdir()
    os.chdir(work)  # the script reads ../data and writes into the working folder
    try:
        runpy.run_path(str(CASES / "make_models.py"))
    finally:
        os.chdir(before)
    return work / "models"


def toml(name: str) -> dict:
    return tomllib.loads(Path(name).read_text(encoding="utf-8"))


def init(capsys, *arguments: str) -> tuple[dict, str]:
    """The guessed task file, and what was printed."""
    assert main(["init", *arguments, "--out", "guessed.toml"]) == 0, capsys.readouterr()
    captured = capsys.readouterr()
    return toml("guessed.toml"), captured.out + captured.err


def shown(capsys, task: str = "task.toml") -> tuple[list[str], list[str], str]:
    """Of all training examples: the whole texts and the trained parts; and what was said."""
    assert main(["show", task, "--count", "1000", "--json"]) == 0, capsys.readouterr()
    captured = capsys.readouterr()
    sequences = [row["tokens"] for row in json.loads(captured.out)]
    whole = ["".join(token["text"] for token in tokens) for tokens in sequences]
    trained = ["".join(token["text"] for token in tokens if token["trained"]) for tokens in sequences]
    return whole, trained, captured.err


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


# ---- spreadsheets and databases --------------------------------------------------------------------------------------

LABELS = {"loans", "fines", "rooms", "cards"}


@the("csv-semicolon")
def test_semicolons(case, capsys):
    guessed, said = init(capsys, "tickets.csv", "--answer", "label")
    assert guessed["task"] == "classification" and guessed["prompt"]["user"] == "{text}"
    assert "semicolon" in said and "4 labels" in said


@the("csv-semicolon-with-commas")
def test_semicolons_with_commas_in_the_texts(case, capsys):
    guessed, said = init(capsys, "tickets.csv", "--answer", "label")
    assert guessed["prompt"]["user"] == "{text}" and "semicolon" in said and "4 labels" in said


@the("csv-no-header")
def test_no_header(case, capsys):
    code, said = run(capsys, "init", "tickets.csv", "--answer", "label")
    assert code == 2 and "column_1" in said and "header" in said
    guessed, said = init(capsys, "tickets.csv", "--answer", "column_1")
    assert guessed["data"]["header"] is False and guessed["prompt"]["user"] == "{column_2}" and "4 labels" in said


@the("csv-float-labels")
def test_labels_that_a_spreadsheet_wrote_as_decimals(case, capsys):
    guessed, said = init(capsys, "tickets.csv", "--answer", "label")
    assert guessed["prompt"]["user"] == "{text}" and guessed["data"]["missing"] == "skip"
    assert "4 labels" in said and "0.0" not in guessed["prompt"]["system"]
    _, trained, _ = shown(capsys, "guessed.toml")
    assert {text[:1] for text in trained} == set("0123")


@the("csv-backslash-quotes")
def test_quotes_escaped_by_backslashes(case, capsys):
    _, said = init(capsys, "tickets.csv", "--answer", "label")
    assert "backslash" in said and "4 labels" in said
    whole, _, _ = shown(capsys, "guessed.toml")
    assert any('He said "How' in text for text in whole)


# ---- missing values and columns --------------------------------------------------------------------------------------


@the("json-nan")
def test_nan_is_missing(case, capsys):
    guessed, said = init(capsys, "tickets.jsonl", "--answer", "label")
    assert "4 labels" in said and guessed["data"]["missing"] == "skip"
    whole, trained, _ = shown(capsys, "guessed.toml")
    assert not any("nan" in text.lower() for text in (*whole, *trained))


@the("parquet-glue-minus-one")
def test_a_test_file_without_labels_is_set_aside(case, capsys):
    guessed, said = init(capsys, "train.parquet", "--answer", "label")
    assert "test" not in guessed["data"] and "test.parquet has no answers" in said
    code, said = run(capsys, "run", "train.parquet", "--answer", "label", "--run.systems", "linear", "tuned-choose")
    assert code == 0, said


@the("parquet-categorical")
def test_labels_encoded_by_a_dictionary(case, capsys):
    _, said = init(capsys, "tickets.parquet", "--answer", "label")
    assert "4 labels" in said


@the("alpaca")
def test_instructions(case, capsys):
    guessed, _ = init(capsys, "alpaca.json")
    assert guessed["task"] == "text" and guessed["data"]["answer"] == "output"
    assert "Input:" not in guessed["prompt"]["user"] and "system" not in guessed["prompt"]
    whole, trained, _ = shown(capsys, "guessed.toml")
    assert all(text.count("\n\n\n") == 0 for text in whole) and all("See page" in text for text in trained)


@the("prompt-completion-plain")
def test_prompts_and_completions(case, capsys):
    guessed, _ = init(capsys, "pairs.jsonl")
    assert (guessed["task"], guessed["data"]["answer"]) == ("text", "completion")
    assert guessed["prompt"]["user"] == "{prompt}"


@the("labels-prefixes")
def test_labels_that_begin_one_another(case, capsys):
    code, said = run(capsys, "run", "tickets.jsonl", "--answer", "label", "--run.systems", "tuned", "tuned-choose")
    assert code == 0, said
    report = json.loads(next(Path("runs").glob("*/report.json")).read_text())
    assert min(system["value"] for system in report["systems"]) > 0.4  # chance: 0.25
    for path in Path("runs").glob("*/predictions/tuned*.jsonl"):
        answers = {json.loads(line)["answer"] for line in path.read_text().splitlines()}
        assert answers == {"1", "10", "100", "11"}, path


@the("raw-text-causal")
def test_plain_text_for_a_causal_model(case, capsys):
    code, said = run(capsys, "run", "task.toml")
    assert code == 2 and "pretrain" in said
    for name in (["corpus.jsonl", "--answer", "text"], ["corpus.txt"]):
        code, said = run(capsys, "run", *name, "--train.epochs", "1", "--overwrite", "--yes")
        assert code == 0 and "perplexity" in said.lower(), said
        Path("corpus.toml").unlink()


# ---- conversations ---------------------------------------------------------------------------------------------------


@the("sharegpt-system-column")
def test_the_rows_own_system_message(case, capsys):
    whole, trained, _ = shown(capsys)
    assert all("desk. Answer in one sentence." in text for text in whole)
    assert not any("desk. Answer" in text for text in trained)


@the("openai-weight-0")
def test_turns_of_weight_0_are_context(case, capsys):
    whole, trained, _ = shown(capsys)
    assert all("BAD ANSWER" in text for text in whole) and not any("BAD ANSWER" in text for text in trained)


@the("content-parts")
def test_content_in_parts(case, capsys):
    whole, trained, _ = shown(capsys)
    assert len(trained) >= 20 and not any('"type"' in text for text in whole)


@the("openai-tool-calls")
def test_tool_calls_need_a_template_with_tools(case, capsys):
    code, said = run(capsys, "show", "task.toml")
    assert code == 2 and "tool" in said.lower()


@the("chat-ends-with-user")
def test_a_last_user_turn_is_left_out_and_counted(case, capsys):
    whole, _, said = shown(capsys)
    assert not any("Thank you!" in text for text in whole)
    guessed, said = init(capsys, "chats.jsonl")
    assert guessed["task"] == "dialogue" and "8 of 40" in said


@the("parquet-messages")
def test_lists_of_structs(case, capsys):
    assert len(shown(capsys)[1]) >= 20
    assert init(capsys, "chats.parquet")[0]["task"] == "dialogue"


@the("trl-prompt-completion-chat")
def test_prompt_and_completion_as_turns(case, capsys):
    guessed, _ = init(capsys, "pairs.jsonl", "--answer", "completion")
    assert guessed["task"] == "dialogue"
    _, trained, _ = shown(capsys, "guessed.toml")
    assert len(trained) >= 20 and not any("?" in text for text in trained)
    code, said = run(capsys, "train", "task.toml")
    assert code == 0, said


# ---- models ----------------------------------------------------------------------------------------------------------


def link_models(case: Path, models: Path) -> None:
    (case.parent / "models").symlink_to(models)
    shutil.copytree(CASES / "models-data", case.parent / "models-data")


@the("model-gemma3-extra")
def test_a_tokenizer_with_more_tokens_than_the_model(case, capsys, models):
    link_models(case, models)
    code, said = run(capsys, "train", "task.toml")
    assert code == 0, said
    rows = Path("tickets.jsonl").read_text().replace("atlas", "<image_soft_token>", 1)
    Path("tickets.jsonl").write_text(rows)
    code, said = run(capsys, "train", "task.toml", "--overwrite", "--run.out", "runs/y")
    assert code == 2 and "<image_soft_token>" in said


@the("model-qwen3moe")
def test_a_mixture_of_experts(case, capsys, models):
    link_models(case, models)
    for flags in (["--adapter.dropout", "0.1"], ["--adapter.dora"], []):
        code, said = run(capsys, "train", "task.toml", "--overwrite", *flags)
        assert code in (0, 2) and "Traceback" not in said and "stopped because of an error" not in said
    assert code == 0, said
    settings = json.loads(Path("runs/x/adapter/adapter_config.json").read_text())
    assert not settings.get("target_parameters")
    assert not any("expert" in name or name.endswith("gate") for name in settings["target_modules"])


@the("model-llama-bnb4")
def test_a_quantized_base(case, capsys, models):
    link_models(case, models)
    code, said = run(capsys, "train", "task.toml")
    assert code == 2 and "quantized" in said and "install" not in said


@the("model-lfs")
def test_a_pointer_of_git_lfs(case, capsys, models):
    link_models(case, models)
    code, said = run(capsys, "train", "task.toml")
    assert code == 2 and "git lfs pull" in said


@the("adapter-as-base")
def test_training_goes_on_from_an_adapter(case, capsys, models):
    link_models(case, models)
    code, said = run(capsys, "train", "../models-data/task.toml", "--run.out", "runs/first")
    assert code == 0, said
    code, said = run(capsys, "train", "task.toml", "--model.name", "runs/first/adapter")
    assert code == 0, said
    assert Path("runs/x/adapter/adapter_model.safetensors").exists()

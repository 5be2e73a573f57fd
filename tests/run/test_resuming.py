"""What a run accepts when it is taken up again: whatever decides an answer must be what it was, or is made again."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ANIMALS

from loratory.cli.main import main
from loratory.config import Config
from loratory.data import Finding
from loratory.data.rows import read_rows
from loratory.errors import Terminated, UserError
from loratory.events import Event
from loratory.finetune import evaluate_run, finetune, train_only
from loratory.models import write_card
from loratory.predict import load, predict_to_file, to_file
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, TrainConfig
from loratory.signals import stop_requested, termination_raised
from loratory.storage import (
    is_finished,
    only_writer,
    read_metrics,
    read_record,
    write_record,
)

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
ADAPTER = "adapter/adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, finished or only trained, at the path where it was made."""

    config: Config
    run: Path
    base: Path
    data: Path

    def repeat(self, **arguments) -> list[str]:
        """Repeats the call that made the run; returns its messages."""
        events: list[Event] = []
        finetune(self.config, events.append, **arguments)
        return [event.text for event in events if event.kind == "message"]


def made(folder: Path, tiny_folder: Path) -> Case:
    shutil.copytree(tiny_folder, folder / "base")
    names = list(ANIMALS)
    rows = [f"The {names[i % 3]} number {i} sleeps,{ANIMALS[names[i % 3]]}" for i in range(48)]
    (folder / "animals.csv").write_text("text,sound\n" + "\n".join(rows) + "\n")
    config = Config(
        model=ModelConfig(str(folder / "base"), device="cpu", dtype="float32"),
        data=DataConfig((str(folder / "animals.csv"),), answer="sound"),
        prompt=PromptConfig(system="One of: {labels}."),
        adapter=AdapterConfig(dropout=0.1),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, checkpoint_every=2),
        run=RunConfig(
            str(folder / "run"), threads=torch.get_num_threads(), systems=("prompt", "linear", "tuned-choose")
        ),
    )
    return Case(config, folder / "run", folder / "base", folder / "animals.csv")


@pytest.fixture(scope="module")
def made_once(tiny_folder, tmp_path_factory) -> Case:
    case = made(tmp_path_factory.mktemp("made"), tiny_folder)
    finetune(case.config)
    for path in (case.run, case.base, case.data):
        copy = path.with_name(f"kept-{path.name}")
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    return case


@pytest.fixture
def finished(made_once) -> Iterator[Case]:
    """A finished run, as it was before the tests."""
    yield made_once
    for path in (made_once.run, made_once.base, made_once.data):
        copy = path.with_name(f"kept-{path.name}")
        if copy.is_dir():
            shutil.rmtree(path)
            shutil.copytree(copy, path)
        else:
            shutil.copy(copy, path)


@pytest.fixture
def unfinished(finished) -> Case:
    """The same run without its report, as a kill at the very end leaves it."""
    record = read_record(finished.run)
    assert record is not None
    start = ("config.toml", "asked.json", "environment.json", "data.json")
    files = {name: record.files[name] for name in start}
    write_record(finished.run, dataclasses.replace(record, state="started", files=files))
    return finished


def decisive(run: Path) -> dict[str, bytes]:
    """The files of a run that decide its answers."""
    paths = [run / ADAPTER, run / "adapter/adapter_config.json", *(run / "predictions").rglob("*.jsonl")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def values(run: Path) -> list[tuple[str, float, float]]:
    report = json.loads((run / "report.json").read_text())
    return [(s["name"], s["value"], s["validation_value"]) for s in report["systems"]]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- the base model --------------------------------------------------------------------------------------------------


def other_weights(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


BASE_CHANGES = {
    "weights": other_weights,
    "config.json": lambda base: edit(base / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 9.0}),
    "chat_template.jinja": lambda base: (base / "chat_template.jinja").write_text(
        (base / "chat_template.jinja").read_text() + " "
    ),
    "tokenizer_config.json": lambda base: edit(base / "tokenizer_config.json", model_max_length=77),
    "generation_config.json": lambda base: (base / "generation_config.json").write_text('{"eos_token_id": 5}'),
}


@pytest.mark.parametrize("name", BASE_CHANGES)
def test_a_changed_base_model_is_named_and_not_used(unfinished, name: str):
    BASE_CHANGES[name](unfinished.base)
    for use in (unfinished.repeat, lambda: evaluate_run(unfinished.run)):
        with pytest.raises(UserError, match="The base model has changed since this run started") as caught:
            use()
        assert name in str(caught.value.found)
    with pytest.raises(UserError, match="trained on a different base model") as caught:
        load(unfinished.run)
    assert name in str(caught.value.found)


def test_files_of_the_base_model_that_decide_nothing_may_change(unfinished):
    (unfinished.base / "README.md").write_text("new")
    unfinished.repeat()
    assert load(unfinished.run).answer({"text": "The cow"}) in ANIMALS.values()


# ---- the adapter -----------------------------------------------------------------------------------------------------


def flip_a_bit(run: Path) -> None:
    data = bytearray((run / ADAPTER).read_bytes())
    data[-5] ^= 1
    (run / ADAPTER).write_bytes(bytes(data))


def drop_a_tensor(run: Path) -> None:
    tensors = load_file(run / ADAPTER)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, run / ADAPTER, metadata={"format": "pt"})


def other_prompt(run: Path) -> None:
    card = json.loads((run / "adapter/loratory.json").read_text())
    edit(run / "adapter/loratory.json", prompt={**card["prompt"], "system": "Be wrong."})


ADAPTER_CHANGES = {
    "flipped bit": (ADAPTER, flip_a_bit),
    "missing tensor": (ADAPTER, drop_a_tensor),
    "missing file": (ADAPTER, lambda run: (run / ADAPTER).unlink()),
    "lora_alpha": ("adapter_config.json", lambda run: edit(run / "adapter/adapter_config.json", lora_alpha=99)),
    "prompt": ("loratory.json", other_prompt),
    "labels": ("loratory.json", lambda run: edit(run / "adapter/loratory.json", labels=["a", "b", "c"])),
    "half a card": ("loratory.json", lambda run: (run / "adapter/loratory.json").write_text('{"adapter": "lo')),
}


@pytest.mark.parametrize("name", ADAPTER_CHANGES)
def test_a_changed_adapter_is_not_used_and_the_same_command_makes_it_again(finished, name: str):
    file, change = ADAPTER_CHANGES[name]
    before, reported = decisive(finished.run), values(finished.run)
    change(finished.run)
    with pytest.raises(UserError) as caught:
        load(finished.run)
    assert Path(file).name in str(caught.value)
    assert any(Path(file).name in message for message in finished.repeat())
    assert decisive(finished.run) == before and values(finished.run) == reported and is_finished(finished.run)
    load(finished.run)


def test_a_changed_adapter_is_not_passed_over_by_evaluate(finished):
    before = {p: p.read_bytes() for p in sorted((finished.run / "systems").iterdir())}
    flip_a_bit(finished.run)
    with pytest.raises(UserError, match="Files of the adapter have changed"):
        evaluate_run(finished.run)
    assert {p: p.read_bytes() for p in sorted((finished.run / "systems").iterdir())} == before


def test_a_check_that_is_new_stops_no_run_that_has_started(unfinished, monkeypatch):
    fault = Finding("leaks", "error", "The prompt of every row contains its answer")
    monkeypatch.setattr("loratory.run.job.check_data", lambda material: [fault])
    with pytest.raises(UserError, match="contains its answer"):
        finetune(dataclasses.replace(unfinished.config, run=RunConfig(str(unfinished.run.with_name("new")))))
    assert fault.message in unfinished.repeat()
    assert evaluate_run(unfinished.run) == unfinished.run


def test_files_added_to_a_base_model_or_hidden_in_it_are_found(unfinished):
    (unfinished.base / "additional_chat_templates").mkdir()
    (unfinished.base / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match="different base model"):
        load(unfinished.run)
    shutil.copy(unfinished.run / "adapter/adapter_config.json", unfinished.base)
    with pytest.raises(UserError, match="also contains an adapter"):
        load(unfinished.run, force=True)


def test_lists_in_the_adapter_do_not_depend_on_the_process(finished):
    settings = json.loads((finished.run / "adapter/adapter_config.json").read_text())
    assert len(settings["target_modules"]) > 2 and settings["target_modules"] == sorted(settings["target_modules"])


@pytest.mark.parametrize(("changes", "words"), [({"folds": 49}, "more folds"), ({"answer": "sond"}, "sond")])
def test_a_mistake_with_overwrite_is_found_before_anything_is_removed(finished, changes: dict, words: str):
    before = decisive(finished.run)
    data = dataclasses.replace(finished.config.data, **changes)
    with pytest.raises(UserError, match=words):
        finetune(dataclasses.replace(finished.config, data=data), overwrite=True)
    assert decisive(finished.run) == before and is_finished(finished.run)


def test_training_first_and_measuring_later_gives_the_same_adapter(finished):
    before = (finished.run / ADAPTER).read_bytes()
    train_only(finished.config, overwrite=True)
    assert (finished.run / ADAPTER).read_bytes() == before
    finished.repeat()
    assert is_finished(finished.run)


def test_folders_that_are_not_seeds_or_folds_are_a_persons_own(finished):
    (finished.run / "seeds" / "notes" / "systems").mkdir(parents=True)
    (finished.run / "seeds" / "notes" / "systems" / "mine.json").write_text("mine")
    evaluate_run(finished.run)
    assert (finished.run / "seeds" / "notes" / "systems" / "mine.json").read_text() == "mine"


def test_an_adapter_without_hashes_whose_tensors_are_incomplete_is_refused_even_if_forced(finished):
    card = json.loads((finished.run / "adapter/loratory.json").read_text())
    write_card(finished.run / "adapter", {**card, "files": {}})
    drop_a_tensor(finished.run)
    for force in (False, True):
        with pytest.raises(UserError, match="incomplete"):
            load(finished.run, force=force)


def test_other_package_versions_are_one_line_in_predict_and_stop_a_resume(unfinished, capsys):
    run = unfinished.run
    card = json.loads((run / "adapter/loratory.json").read_text())
    write_card(run / "adapter", {**card, "versions": {**card["versions"], "torch": "1.0"}})
    record = read_record(run)
    assert record is not None
    write_record(run, dataclasses.replace(record, versions={**record.versions, "torch": "1.0"}))
    with pytest.raises(UserError, match="other package versions") as caught:
        unfinished.repeat()
    assert "torch 1.0, now" in str(caught.value) and "--force" in str(caught.value)
    unfinished.repeat(force=True)
    assert is_finished(run)
    events: list[Event] = []
    load(run, on_event=events.append)
    assert [event.text for event in events if "torch 1.0, now" in event.text] and len(events) == 1


# ---- the records of a run --------------------------------------------------------------------------------------------

DAMAGE = {"empty": b"", "half": b'{"a": ', "binary": b"\xff\x00\xfe", "missing": None, "a list": b"[]"}


@pytest.mark.parametrize("name", ["asked.json", "environment.json", "data.json", "config.toml"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_of_the_start_is_named_and_made_again(unfinished, name: str, damage: str):
    path = unfinished.run / name
    before = path.read_bytes()
    content = DAMAGE[damage]
    path.unlink() if content is None else path.write_bytes(content)
    assert any(str(path) in message for message in unfinished.repeat())
    assert is_finished(unfinished.run)
    if name != "environment.json":  # it names the state of the git checkout, which may have moved on
        assert path.read_bytes() == before
    assert json.loads((unfinished.run / "environment.json").read_text())["model"]["weights_sha256"]


@pytest.mark.parametrize(
    "name", ["predictions/tuned-choose.jsonl", "predictions/validation/linear.jsonl", "systems/prompt.json"]
)
@pytest.mark.parametrize("damage", ["empty", "half", "missing", "one answer"])
def test_damaged_predictions_are_named_and_measured_again(finished, name: str, damage: str):
    path, before, reported = finished.run / name, decisive(finished.run), values(finished.run)
    if damage == "one answer":
        path.write_text(path.read_text().replace("o", "0", 1))
    elif DAMAGE[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage] or b"")
    assert any(name in message for message in finished.repeat())
    assert decisive(finished.run) == before and values(finished.run) == reported and is_finished(finished.run)


def test_a_damaged_log_is_said_and_decides_nothing(unfinished):
    before, path = decisive(unfinished.run), unfinished.run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2:-1] = [line[: len(line) // 2] for line in lines[2:-1]]
    path.write_bytes(b"\n".join(lines))
    shutil.rmtree(unfinished.run / "adapter")
    shutil.rmtree(unfinished.run / "predictions")
    assert any("damaged lines" in message for message in unfinished.repeat())
    assert decisive(unfinished.run) == before
    report = json.loads((unfinished.run / "report.json").read_text())
    assert 0 < report["trainable_parameters"] < report["total_parameters"] and report["forgetting"]


def test_a_run_killed_between_report_and_card_answers_as_reported(finished):
    run = finished.run
    card = json.loads((run / "adapter/loratory.json").read_text())
    assert card["choose"]
    write_card(run / "adapter", {**card, "choose": None})
    record = read_record(run)
    assert record is not None
    write_record(run, dataclasses.replace(record, state="started", files={}))
    events: list[Event] = []
    load(run, on_event=events.append)
    assert "not finished" in events[0].text
    finished.repeat()
    assert json.loads((run / "adapter/loratory.json").read_text()) == card


def test_a_run_of_the_version_before_is_resumed_and_becomes_one_of_this(unfinished):
    run = unfinished.run
    before = decisive(run)
    (run / "run.json").unlink()
    (run / "report.json").unlink()
    card = json.loads((run / "adapter/loratory.json").read_text())
    old = {key: value for key, value in card.items() if key not in ("seal", "files", "versions")}
    del old["base"]["files"]
    (run / "adapter/loratory.json").write_text(json.dumps(old))
    for path in (run / "systems").glob("*.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({key: meta[key] for key in meta if key not in ("seal", "files")}))
    assert load(run).answer({"text": "The cow"}) in ANIMALS.values()
    unfinished.repeat()
    assert decisive(run) == before and is_finished(run)


def test_leftovers_are_removed_when_a_run_is_resumed(unfinished):
    left = [".step-000002.abcd1234", ".loratory-0123456789ab.tmp"]
    for name in left:
        (unfinished.run / "checkpoints" / name).mkdir()
        (unfinished.run / "checkpoints" / name / "parameters.safetensors").write_text("half")
    unfinished.repeat()
    assert not any((unfinished.run / "checkpoints" / name).exists() for name in left)


# ---- one writer, stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_being_written_is_left_alone(unfinished, overwrite: bool):
    before = decisive(unfinished.run)
    with only_writer(unfinished.run):
        with pytest.raises(UserError, match="Another process is writing"):
            finetune(unfinished.config, overwrite=overwrite)
        with pytest.raises(UserError, match="Another process is writing"):
            evaluate_run(unfinished.run)
    assert decisive(unfinished.run) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_another_process_has_made_during_the_plan_is_kept(finished, overwrite: bool):
    before = decisive(finished.run)
    aside = finished.run.with_name("aside")
    finished.run.rename(aside)

    def confirm() -> bool:
        aside.rename(finished.run)
        return True

    with pytest.raises(UserError, match="Another process has used this run directory"):
        finetune(finished.config, overwrite=overwrite, confirm=confirm)
    assert decisive(finished.run) == before and is_finished(finished.run)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(finished):
    before = decisive(finished.run)

    def stop(event: Event) -> None:
        if event.kind == "system" and event.text == "linear":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(finished.run, stop)
    assert not is_finished(finished.run)
    events: list[Event] = []
    evaluate_run(finished.run, events.append)
    assert [event.text for event in events if event.kind == "system"] == ["tuned-choose"]
    assert decisive(finished.run) == before and is_finished(finished.run)


def test_a_terminated_training_saves_exits_143_and_the_same_command_goes_on(tmp_path, tiny_folder):
    case = made(tmp_path, tiny_folder)
    task = tmp_path / "task.toml"
    task.write_text(
        f"[model]\nname = '{case.base}'\n[data]\ntrain = '{case.data}'\nanswer = 'sound'\n"
        f"[train]\nepochs = 2000\nbatch_size = 8\n[run]\nout = '{case.run}'\nsystems = ['linear', 'tuned-choose']\n"
    )
    command = [sys.executable, "-m", "loratory.cli", "run", str(task)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True
    ) as process:
        log, until = case.run / "metrics.jsonl", time.monotonic() + 90
        while time.monotonic() < until and not (log.exists() and log.read_text().count('"step"') > 2):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "is saved" in errors and "Traceback" not in errors
    saved = [path.name for path in (case.run / "checkpoints").iterdir()]
    assert max(int(name.removeprefix("step-")) for name in saved) == log.read_text().count('"event": "step"')
    steps = [m["step"] for m in read_metrics(case.run) if m["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert not (case.run / ".lock").exists()


def test_termination_outside_of_training_ends_with_143(monkeypatch, capsys, finished):
    def end(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(sys.modules["loratory.finetune"], "evaluate_run", end)
    assert main(["evaluate", str(finished.run)]) == 143
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_requested_by_the_first_signal_and_forced_by_the_second(number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_requested() as stopped:
        assert stopped() is None
        os.kill(os.getpid(), number)
        assert stopped() == number
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_signal_that_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as stopped, termination_raised():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopped() is None
    finally:
        signal.signal(signal.SIGHUP, previous)


# ---- predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(finished, tmp_path):
    lines = [f'{{"text": "The {name} number {i} sleeps", "id": {i}}}\n' for i, name in enumerate([*ANIMALS] * 5)]
    (tmp_path / "new.jsonl").write_text("".join(lines))
    return read_rows(str(tmp_path / "new.jsonl"))


def test_predictions_are_a_table_where_the_name_says_so(finished, rows, tmp_path, capsys):
    assert main(["predict", str(finished.run), str(tmp_path / "new.jsonl"), "--out", str(tmp_path / "a.csv")]) == 0
    assert main(["predict", str(finished.run), str(tmp_path / "new.jsonl"), "--out", str(tmp_path / "a.jsonl")]) == 0
    table = read_rows(str(tmp_path / "a.csv"))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert list(table[0].values) == ["text", "id", "answer", "confidence"]
    assert [row.values["answer"] for row in table] == [line["answer"] for line in lines]
    assert [row.values["text"] for row in table] == [row.values["text"] for row in rows]
    for row, line in zip(table, lines, strict=True):
        assert float(row.values["confidence"]) == pytest.approx(line["probabilities"][line["answer"]], abs=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "new.jsonl"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("new.jsonl", "would replace the data"),
        ("a.xlsx", "cannot be written in this format"),
        (".", "is a folder"),
        ("new.jsonl/a.csv", "in the place of a folder"),
        ("x" * 300 + ".csv", "name of a file is too long"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(finished, rows, tmp_path, capsys, out: str, words: str):
    before = (tmp_path / "new.jsonl").read_bytes()
    assert main(["predict", str(finished.run), str(tmp_path / "new.jsonl"), "--out", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "new.jsonl").read_bytes() == before


def test_a_device_is_an_output_and_stays_a_device(finished, rows, tmp_path):
    assert main(["predict", str(finished.run), str(tmp_path / "new.jsonl"), "--out", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_answers_never_replace_the_data_that_the_run_was_trained_on(finished, rows, tmp_path):
    before = finished.data.read_bytes()
    for run in (finished.run, finished.run / "adapter"):
        assert main(["predict", str(run), str(tmp_path / "new.jsonl"), "--out", str(finished.data)]) == 2
    assert finished.data.read_bytes() == before


def test_a_failed_prediction_leaves_no_part(finished, tmp_path):
    (tmp_path / "wrong.csv").write_text("words\nThe cow\n")
    assert main(["predict", str(finished.run), str(tmp_path / "wrong.csv"), "--out", str(tmp_path / "a.csv")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.csv"]


def test_a_prediction_is_not_resumed_with_other_weights(finished, rows):
    before = load(finished.run).identity
    flip_a_bit(finished.run)
    assert load(finished.run, force=True).identity != before


def test_a_prediction_that_was_stopped_goes_on_where_it_was(finished, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(to_file, "ROWS_AT_ONCE", 4)
    tuned, out = load(finished.run), tmp_path / "a.jsonl"
    predict_to_file(tuned, rows, out, lambda _: None)
    whole = out.read_bytes()
    out.unlink()

    def stop_at(count: int):
        def stop(event: Event) -> None:
            if event.kind == "progress" and event.values["done"] >= count:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(tuned, rows, out, stop_at(9))
    part = tmp_path / "a.jsonl.part"
    assert part.exists() and not out.exists()
    part.write_bytes(part.read_bytes()[:-7])  # as a power failure may leave it
    events: list[Event] = []
    predict_to_file(tuned, rows, out, events.append)
    assert [event.text for event in events if event.kind == "message"] == ["Resumed after 4 rows"]
    assert out.read_bytes() == whole and not part.exists()


def test_a_part_of_other_rows_or_of_another_model_is_not_used(finished, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(to_file, "ROWS_AT_ONCE", 4)
    tuned, part = load(finished.run), tmp_path / "a.jsonl.part"
    for other_rows, other_model in ((rows[1:], tuned), (rows, dataclasses.replace(tuned, identity="another"))):

        def stop(event: Event) -> None:
            if event.kind == "progress" and event.values["done"] >= 9:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_to_file(other_model, other_rows, tmp_path / "a.jsonl", stop)
        assert part.exists()
        events: list[Event] = []
        predict_to_file(tuned, rows, tmp_path / "a.jsonl", events.append)
        assert not [event.text for event in events if event.kind == "message"]
    part.write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        predict_to_file(tuned, rows, tmp_path / "a.jsonl", lambda _: None)
    assert part.read_text() == "mine"

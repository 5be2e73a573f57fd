"""Settings: task file and flags set the same dataclasses, and error messages name the key."""

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.cli.main import main
from loratory.config import Config, check_config, config_from_dict, config_to_dict
from loratory.errors import UserError
from loratory.settings import (
    SYSTEMS,
    AdapterConfig,
    CodeConfig,
    DataConfig,
    ModelConfig,
    PromptConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.lists(text, max_size=3).map(tuple)
limit = st.none() | st.integers(1, 10**6)
share = st.floats(0, 1, exclude_max=True)
rate = st.floats(0, 10, exclude_min=True, exclude_max=True)
scalar = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | text
FIELDS: dict[type, dict[str, st.SearchStrategy]] = {
    ModelConfig: {
        "name": text,
        "revision": st.none() | text,
        "encoder": text,
        "device": text,
        "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16", "float64"]),
    },
    DataConfig: {
        "train": names,
        "validation": names,
        "test": names,
        "answer": text,
        "candidates": st.none(),
        "retain": names,
        "header": st.sampled_from(["auto", True, False]),
        "sheet": text,
        "missing": st.sampled_from(["error", "skip"]),
        "missing_texts": st.lists(text, max_size=3).map(tuple),
        "separator": st.sampled_from([";", ",", " / "]),
        "normalize_labels": st.booleans(),
        "waive": st.lists(text, max_size=3).map(tuple),
        "limit_train": limit,
        "limit_validation": st.none() | st.integers(0, 9),
        "limit_test": limit,
        "validation_share": st.just("auto") | share,
        "test_share": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "folds": st.just(0) | st.integers(2, 20),
        "overlong": st.sampled_from(["error", "drop", "cut_prompt"]),
    },
    PromptConfig: {
        "system": st.none() | text,
        "user": st.none() | text,
        "words": st.dictionaries(text, text, max_size=3),
        "template_kwargs": st.dictionaries(text, scalar, max_size=3),
        "search": st.sampled_from(["auto", "on", "off"]),
        "few_shot": st.integers(0, 99),
        "few_shot_seed": st.just("auto") | st.integers(0, 2**32 - 1),
        "date": text,
    },
    CodeConfig: {
        "run": st.booleans(),
        "tests": text,
        "prefix": text,
        "suffix": text,
        "seconds": st.floats(0.1, 600),
    },
    AdapterConfig: {
        "kind": st.sampled_from(["lora", "full"]),
        "rank": st.integers(1, 999),
        "alpha": st.integers(1, 999),
        "dropout": share,
        "rslora": st.booleans(),
        "dora": st.booleans(),
        "lora_plus": st.floats(0, 100, exclude_min=True),
        "layers": st.just("all") | st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple),
        "targets": st.just("all-linear") | st.lists(text, min_size=1, max_size=3).map(tuple),
    },
    TrainConfig: {
        "epochs": st.just("auto") | st.integers(1, 99),
        "batch_size": st.integers(1, 99),
        "learning_rate": st.just("auto")
        | rate
        | st.lists(rate, min_size=1, max_size=3, unique_by="{:g}".format).map(tuple),
        "schedule": st.sampled_from(["cosine", "linear", "constant"]),
        "warmup": share,
        "weight_decay": st.floats(0, 100),
        "max_grad_norm": st.floats(0, 100),
        "token_budget": st.integers(1, 2**31),
        "batching": st.sampled_from(["auto", "tree", "padded"]),
        "keep": st.sampled_from(["best", "last"]),
        "early_stopping": st.just("auto") | st.integers(0, 9),
        "seed": st.integers(0, 2**32 - 1),
        "seeds": st.integers(1, 9),
        "checkpoint_every": st.integers(0, 999),
    },
    SpeedConfig: {
        "compile": st.sampled_from(["auto", "on", "off"]),
        "lora": st.sampled_from(["on", "off"]),
        "attention": st.sampled_from(["on", "off"]),
        "head": st.sampled_from(["on", "off"]),
        "skip_rows": st.sampled_from(["on", "off"]),
        "products": st.sampled_from(["auto", "float32", "bfloat16"]),
        "checkpointing": st.sampled_from(["auto", "on", "off"]),
    },
    RunConfig: {
        "out": text,
        "threads": st.integers(0, 999),
        "systems": st.lists(st.sampled_from(SYSTEMS["classification"]), unique=True).map(tuple),
    },
}
SECTIONS = {"model": ModelConfig, "data": DataConfig, "prompt": PromptConfig, "code": CodeConfig,
            "adapter": AdapterConfig, "train": TrainConfig, "speed": SpeedConfig, "run": RunConfig}  # fmt: skip


def consistent(fields: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Resets the settings that contradict each other."""
    fields["code"]["run"] = False
    if fields["adapter"]["kind"] == "full":
        fields["adapter"] |= {"rslora": False, "dora": False, "lora_plus": 1.0, "layers": "all"}
    if fields["data"]["folds"]:
        fields["data"] |= {"test": (), "limit_test": None}
        fields["train"]["seeds"] = 1
    return fields


drawn_fields = st.fixed_dictionaries({key: st.fixed_dictionaries(FIELDS[kind]) for key, kind in SECTIONS.items()}).map(
    consistent
)


def make_config(fields: dict[str, dict[str, Any]]) -> Config:
    return Config(**{key: kind(**fields[key]) for key, kind in SECTIONS.items()})


def from_toml(folder: Path, content: str) -> Config:
    path = folder / "task.toml"
    path.write_text(content, encoding="utf-8")
    return Config.load(path)


def test_the_generated_settings_cover_all_fields():
    for section, kind in SECTIONS.items():
        assert set(FIELDS[kind]) == {f.name for f in dataclasses.fields(kind)}, section
    assert {f.name for f in dataclasses.fields(Config)} == {"task", *SECTIONS}


@given(drawn_fields)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_settings_survive_a_round_trip(fields: dict[str, dict[str, Any]]):
    config = make_config(fields)
    values = config_to_dict(config)
    assert config_from_dict(values, "test") == config
    assert config_to_dict(config_from_dict(values, "test")) == values


def test_an_unknown_task_suggests_the_most_similar_one(tmp_path):
    with pytest.raises(UserError, match="task has an invalid value") as caught:
        from_toml(tmp_path, "task = 'clasification'")
    assert "did you mean 'classification'?" in str(caught.value)


def test_an_empty_task_file_gives_the_defaults(tmp_path):
    assert from_toml(tmp_path, "") == Config()


# ---- the contract ----------------------------------------------------------------------------------------------------


@needs_shared
def test_the_keys_of_the_contract_keep_their_names_and_meanings():
    folder = SHARED / "contract"
    config = Config.load(folder / "task.toml")
    assert config.task == "classification"
    assert (config.model.name, config.model.revision) == ("meta-llama/Llama-3.2-1B-Instruct", "main")
    data = config.data
    files = [(str((folder / f"{name}.jsonl").resolve()),) for name in ("train", "validation", "test")]
    assert [data.train, data.validation, data.test] == files
    assert (data.limit_train, data.limit_test, data.answer) == (500, 1000, "category")
    prompt = config.prompt
    assert prompt.system == "Sort the paper into one of: {labels}."
    assert prompt.user == "Title: {title}\nAbstract: {abstract}"
    assert (prompt.template_kwargs, prompt.few_shot) == ({"enable_thinking": False}, 4)
    assert config.adapter == AdapterConfig(kind="lora", rank=8, alpha=16, dropout=0.0, targets="all-linear")
    train = config.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.seed) == (3, 16, 2e-4, 0)
    assert config.run.out == "runs/arxiv"


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_data_paths_are_relative_to_the_task_file(tmp_path, monkeypatch):
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    config = from_toml(
        folder,
        f"""
        model.name = "model"
        [data]
        train = ["a.csv", "../b.csv", "hub:owner/name"]
        validation = "{tmp_path / "v.csv"}"
        """,
    )
    assert config.data.train == (str(folder / "a.csv"), str(tmp_path / "b.csv"), "hub:owner/name")
    assert config.data.validation == (str(tmp_path / "v.csv"),)
    assert config.data.test == ()
    assert config.model.name == str(folder / "model")
    (folder / "small.gguf").write_bytes(b"")
    assert from_toml(folder, 'model.name = "small.gguf"').model.name == str(folder / "small.gguf")


def test_a_hub_id_is_not_resolved_to_a_path(tmp_path):
    assert from_toml(tmp_path, 'model.name = "owner/name/small.gguf"').model.name == "owner/name/small.gguf"
    assert from_toml(tmp_path, 'model.name = "owner/name"').model.name == "owner/name"
    (tmp_path / "builtin").mkdir()
    assert from_toml(tmp_path, 'model.name = "builtin"').model.name == "builtin"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "key", "hint"),
    [
        ("trian = {}", "'trian'", "'train'"),
        ("[train]\nepoch = 3", "'train.epoch'", "'epochs'"),
        ("[train]\nlearning-rate = 1e-4", "'train.learning-rate'", "'learning_rate'"),
        ("[data]\nanswer_column = 'a'", "'data.answer_column'", "'answer'"),
        ("[adapter]\nzzzz = 1", "'adapter.zzzz'", "use one of the keys kind, rank, alpha, rslora, dora"),
    ],
)
def test_an_unknown_key_suggests_the_most_similar_one(tmp_path, content: str, key: str, hint: str):
    with pytest.raises(UserError) as caught:
        from_toml(tmp_path, content)
    assert key in caught.value.what
    assert hint in str(caught.value.fix)
    assert str(tmp_path / "task.toml") in str(caught.value.where)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("[train]\nepochs = true", "train.epochs"),
        ("[train]\nepochs = 3.0", "train.epochs"),
        ("[train]\nepochs = '3'", "train.epochs"),
        ("[train]\nepochs = [3]", "train.epochs"),
        ("[train]\nlearning_rate = true", "train.learning_rate"),
        ("[train]\nlearning_rate = 'fast'", "train.learning_rate"),
        ("[train]\nlearning_rate = ['auto']", "train.learning_rate"),
        ("[train]\nlearning_rate = [true]", "train.learning_rate"),
        ("[train]\nschedule = 'cosinus'", "train.schedule"),
        ("[train]\nbatching = 1", "train.batching"),
        ("[adapter]\ntargets = 'q_proj'", "adapter.targets"),
        ("[adapter]\ntargets = ['q_proj', 1]", "adapter.targets"),
        ("[adapter]\ndropout = '0.1'", "adapter.dropout"),
        ("[data]\ntrain = 3", "data.train"),
        ("[data]\ntrain = ['a.csv', 3]", "data.train"),
        ("[data]\nanswer = ['a']", "data.answer"),
        ("[data]\nlimit_train = 1.5", "data.limit_train"),
        ("[data]\nlimit_train = true", "data.limit_train"),
        ("[prompt]\ntemplate_kwargs = 'x'", "prompt.template_kwargs"),
        ("[prompt]\ntemplate_kwargs = { a = [1] }", "prompt.template_kwargs"),
        ("[prompt]\ndate = 2025-01-01", "prompt.date"),
        ("[model]\nname = 1", "model.name"),
        ("model = 'name'", "model"),
        ("train = 3", "train"),
        ("task = true", "task"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(tmp_path, content: str, key: str):
    with pytest.raises(UserError) as caught:
        from_toml(tmp_path, content)
    assert re.match(rf"{re.escape(key)} (has the wrong type|must be a section)", caught.value.what)
    assert caught.value.expected and caught.value.found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 0),
        ("train.batch_size", 0),
        ("train.token_budget", 0),
        ("train.warmup", 1.0),
        ("train.warmup", float("nan")),
        ("train.seed", -1),
        ("train.seed", 2**32),
        ("train.max_grad_norm", -1.0),
        ("train.weight_decay", -0.1),
        ("train.checkpoint_every", -1),
        ("train.learning_rate", 0.0),
        ("train.learning_rate", [1e-4, 1.0000001e-4]),
        ("train.learning_rate", -1e-4),
        ("train.learning_rate", float("nan")),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", []),
        ("train.learning_rate", [1e-4, 0.0]),
        ("adapter.rank", 0),
        ("adapter.alpha", 0),
        ("adapter.dropout", 1.0),
        ("adapter.targets", []),
        ("prompt.few_shot", -1),
        ("data.validation_share", 1.0),
        ("data.validation_share", -0.1),
        ("data.test_share", 0.0),
        ("data.limit_train", 0),
        ("data.limit_validation", -1),
        ("data.limit_test", 0),
        ("run.threads", -1),
        ("run.systems", ["prmpt"]),
    ],
)
def test_a_value_out_of_range_names_its_key(key: str, value: Any):
    section, name = key.split(".")
    with pytest.raises(UserError) as caught:
        config_from_dict({section: {name: value}}, "here")
    assert key in f"{caught.value.what} {caught.value.where}"
    assert "here" in str(caught.value.where)


def test_a_string_is_accepted_as_a_list_of_one_file_and_an_integer_as_a_number():
    config = config_from_dict({"data": {"train": "a.csv"}, "adapter": {"dropout": 0}}, "here")
    assert config.data.train == ("a.csv",)
    assert config.adapter.dropout == 0 and isinstance(config.adapter.dropout, float)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"[train\nepochs = 3", "not valid TOML"), (b"[train]\nepochs = 3\nepochs = 4", "not valid TOML"),
     (b"task = '\xff'", "not UTF-8")],
)  # fmt: skip
def test_a_malformed_task_file_is_named(tmp_path, content: bytes, what: str):
    path = tmp_path / "task.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        Config.load(path)
    assert caught.value.where == str(path)


def test_a_task_file_that_does_not_exist_or_is_a_folder_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "no" / "none.toml"):
        with pytest.raises(UserError) as caught:
            Config.load(path)
        assert caught.value.where == str(path)


def test_an_error_message_contains_all_its_parts():
    error = UserError("what", "where", "expected", "found", "fix")
    assert str(error).splitlines() == [
        "what", "  where: where", "  expected: expected", "  found: found", "  fix: fix"
    ]  # fmt: skip
    assert str(UserError("what", fix="fix")).splitlines() == ["what", "  fix: fix"]


# ---- flags -----------------------------------------------------------------------------------------------------------

FLAGS: dict[str, tuple[list[str], Any]] = {
    "task": (["classification"], "classification"),
    "model.name": (["owner/name"], "owner/name"),
    "model.revision": (["main"], "main"),
    "model.encoder": (["minilm"], "minilm"),
    "model.device": (["cpu"], "cpu"),
    "model.dtype": (["float64"], "float64"),
    "data.train": (["a.csv", "b.csv"], ("a.csv", "b.csv")),
    "data.validation": (["v.csv"], ("v.csv",)),
    "data.test": (["t.csv"], ("t.csv",)),
    "data.answer": (["label"], "label"),
    "data.candidates": (["options"], "options"),
    "code.run": ([], True),
    "code.tests": (["tests"], "tests"),
    "code.prefix": (["before"], "before"),
    "code.suffix": (["after"], "after"),
    "code.seconds": (["2.5"], 2.5),
    "data.retain": (["r.jsonl"], ("r.jsonl",)),
    "data.limit_train": (["7"], 7),
    "data.limit_validation": (["8"], 8),
    "data.limit_test": (["9"], 9),
    "data.validation_share": (["0.25"], 0.25),
    "data.test_share": (["0.35"], 0.35),
    "data.folds": (["5"], 5),
    "data.overlong": (["drop"], "drop"),
    "data.header": (["False"], False),
    "data.sheet": (["Answers"], "Answers"),
    "data.missing": (["skip"], "skip"),
    "data.separator": ([","], ","),
    "data.normalize_labels": ([], True),
    "data.missing_texts": (["?", "-"], ("?", "-")),
    "data.waive": (["test_in_train"], ("test_in_train",)),
    "prompt.system": (["Be brief."], "Be brief."),
    "prompt.user": (["{title}"], "{title}"),
    "prompt.words": (["cs.CL", "language"], {"cs.CL": "language"}),
    "prompt.template_kwargs": (["enable_thinking", "False", "n", "3"], {"enable_thinking": False, "n": 3}),
    "prompt.search": (["on"], "on"),
    "prompt.few_shot": (["2"], 2),
    "prompt.few_shot_seed": (["7"], 7),
    "prompt.date": (["2025-01-01"], "2025-01-01"),
    "adapter.kind": (["full"], "full"),
    "adapter.rank": (["3"], 3),
    "adapter.alpha": (["5"], 5),
    "adapter.rslora": ([], True),
    "adapter.dora": ([], True),
    "adapter.lora_plus": (["16"], 16.0),
    "adapter.layers": (["0", "2"], (0, 2)),
    "adapter.dropout": (["0.5"], 0.5),
    "adapter.targets": (["q_proj", "v_proj"], ("q_proj", "v_proj")),
    "train.epochs": (["2"], 2),
    "train.batch_size": (["3"], 3),
    "train.learning_rate": (["1e-4", "2e-4"], (1e-4, 2e-4)),
    "train.schedule": (["linear"], "linear"),
    "train.warmup": (["0.5"], 0.5),
    "train.weight_decay": (["0.01"], 0.01),
    "train.max_grad_norm": (["0.5"], 0.5),
    "train.token_budget": (["99"], 99),
    "train.batching": (["padded"], "padded"),
    "train.keep": (["last"], "last"),
    "train.early_stopping": (["2"], 2),
    "train.seed": (["6"], 6),
    "train.seeds": (["3"], 3),
    "train.checkpoint_every": (["7"], 7),
    "speed.compile": (["off"], "off"),
    "speed.lora": (["off"], "off"),
    "speed.attention": (["off"], "off"),
    "speed.head": (["off"], "off"),
    "speed.skip_rows": (["off"], "off"),
    "speed.products": (["float32"], "float32"),
    "speed.checkpointing": (["on"], "on"),
    "run.out": (["elsewhere"], "elsewhere"),
    "run.threads": (["1"], 1),
    "run.systems": (["prompt", "tuned"], ("prompt", "tuned")),
}
# Flags that contradict others: tested one at a time, with the other flags that they need.
ALONE: dict[str, list[str]] = {
    "adapter.kind": [],
    "data.folds": ["--data.test"],
    "data.candidates": ["--task", "choice", "--run.systems", "prompt"],
    "code.run": ["--task", "code", "--run.systems", "prompt"],
}


def keys() -> set[str]:
    sections = {f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    return {"task", *sections}


def flag(key: str) -> str:
    return "--" + key.replace("_", "-")


@pytest.fixture
def settings_of(monkeypatch, tmp_path, capsys):
    """Returns the settings that a command line results in, without training."""
    module = importlib.import_module("loratory.finetune")
    configs: list[Config] = []

    def record_config(config: Config, *_: Any) -> Path:
        configs.append(config)
        return tmp_path

    monkeypatch.setattr(module, "train_only", record_config)
    monkeypatch.setattr("loratory.cli.train.check_inputs", lambda _: None)

    def parse(*arguments: str) -> Config:
        assert main(["train", *arguments]) == 0
        capsys.readouterr()
        return configs.pop()

    return parse


def test_every_key_has_a_flag_in_the_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for verb in ("run", "train", "show"):
        assert main([verb, "--help-all"]) == 0
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*", capsys.readouterr().out))
        assert {flag(key) for key in keys()} <= shown


def test_every_flag_sets_its_key_only(settings_of):
    assert set(FLAGS) == keys()
    for group in (FLAGS.keys() - set(ALONE), *({key} for key in ALONE)):
        words = [word for key in group for word in (flag(key), *FLAGS[key][0])]
        more = [word for key in group for word in ALONE.get(key, [])]
        values = config_to_dict(settings_of(*words, *more))
        for key in group:
            section, _, name = key.rpartition(".")
            value, expected = (values[section] if section else values)[name], FLAGS[key][1]
            assert (tuple(value) if isinstance(expected, tuple) else value) == expected, key


def test_a_flag_overrides_one_key_of_the_task_file(tmp_path, settings_of):
    config = from_toml(tmp_path, "[data]\ntrain = 'a.csv'\nanswer = 'label'\n[train]\nepochs = 7\nseed = 5")
    overridden = settings_of(str(tmp_path / "task.toml"), "--train.seed", "6")
    assert overridden == dataclasses.replace(config, train=dataclasses.replace(config.train, seed=6))


@pytest.mark.parametrize(("words", "rate"), [(["auto"], "auto"), (["3e-4"], 3e-4), (["1"], 1.0)])
def test_the_learning_rate_flag_accepts_auto_and_a_number(settings_of, words: list[str], rate: Any):
    assert settings_of("--train.learning-rate", *words).train.learning_rate == rate


@pytest.mark.parametrize("word", ["false", "False"])
def test_a_boolean_template_argument_is_parsed_on_the_command_line(settings_of, word: str):
    # A template tests `enable_thinking is false`, which does not hold for the string "false".
    assert settings_of("--prompt.template-kwargs", "enable_thinking", word).prompt.template_kwargs == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("[adapter]\nkind = 'full'\ndora = true", "adapter.dora"),
        ("[adapter]\nkind = 'full'\nlayers = [0]", "adapter.layers"),
        ("[data]\nfolds = 5\ntest = 't.csv'", "data.folds"),
        ("[data]\nfolds = 5\n[train]\nseeds = 3", "data.folds"),
    ],
)
def test_contradicting_settings_are_rejected(tmp_path, content: str, key: str):
    with pytest.raises(UserError) as caught:
        from_toml(tmp_path, content)
    assert key in str(caught.value)


def test_flags_are_checked_like_the_task_file(capsys):
    assert main(["train", "--train.epochs", "0"]) == 2
    assert "train.epochs" in capsys.readouterr().err
    with pytest.raises(UserError):
        check_config(Config(train=TrainConfig(epochs=0)), "command line")

"""The settings of a run as a whole: read from a task file (TOML), checked, and written."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.errors import UserError, did_you_mean
from loratory.schema import dataclass_from
from loratory.settings import (
    BUILTINS,
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


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    task: str = "classification"
    """classification: one of the labels. labels: a set of labels. choice: one of the candidates of the row. text: free
    text. dialogue: every assistant turn of a conversation. code: a program, or the rest of one. fill (masked language
    models): the words at {mask} or, if the prompt has no {mask}, any word of the text. pretrain: plain text, of which
    every token is learned."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    code: CodeConfig = field(default_factory=CodeConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        """Reads a task file and resolves its paths of data and model relative to the file. Raises UserError."""
        path = Path(path)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError as error:
            raise UserError("Task file not found", str(path), fix="check the path; init writes a task file") from error
        except IsADirectoryError as error:
            raise UserError("The task file is a folder", str(path), fix="give the path of a TOML file") from error
        except UnicodeDecodeError as error:
            raise UserError("The task file is not UTF-8", str(path), found=str(error)) from error

    @classmethod
    def parse(cls, text: str, path: Path) -> "Config":
        """Parses the text of a task file. ``path`` is where the file is, or will be written. Raises UserError."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UserError("The task file is not valid TOML", str(path), found=str(error)) from error
        config = config_from_dict(values, str(path))
        data, model = _absolute_paths(config.data, path.parent), config.model
        local = path.parent / model.name
        if model.name not in BUILTINS and (local.is_dir() or (local.suffix.lower() == ".gguf" and local.is_file())):
            model = dataclasses.replace(model, name=str(local.resolve()))
        return dataclasses.replace(config, data=data, model=model)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Checks keys, types and ranges, and fills in the defaults. Raises a UserError that names the key."""
    config = dataclass_from(Config, values, where, "")
    check_config(config, where)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The inverse of ``config_from_dict``; keys whose value is None are omitted, because TOML has no null."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {key: plain(v) for key, v in pairs if v is not None}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def check_config(config: Config, where: str) -> None:
    """Raises UserError for values that are out of range or contradict each other."""
    if config.task not in SYSTEMS:
        fix = did_you_mean(config.task, SYSTEMS)
        raise UserError("task has an invalid value", where, ", ".join(SYSTEMS), repr(config.task), fix)
    t, a, d, p = config.train, config.adapter, config.data, config.prompt
    rates = t.learning_rate if isinstance(t.learning_rate, tuple) else (t.learning_rate,)
    rules = [
        ("data.separator", bool(d.separator), "at least one character", d.separator),
        ("train.epochs", t.epochs == "auto" or t.epochs >= 1, '"auto", or at least 1', t.epochs),
        ("train.batch_size", t.batch_size >= 1, "at least 1", t.batch_size),
        ("train.token_budget", t.token_budget >= 1, "at least 1", t.token_budget),
        ("train.warmup", 0 <= t.warmup < 1, "at least 0 and less than 1", t.warmup),
        ("train.seed", 0 <= t.seed < 2**32, "from 0 to 4294967295", t.seed),
        ("train.max_grad_norm", t.max_grad_norm >= 0, "0 or more", t.max_grad_norm),
        ("train.weight_decay", 0 <= t.weight_decay < float("inf"), "0 or more", t.weight_decay),
        ("train.checkpoint_every", t.checkpoint_every >= 0, "0 or more", t.checkpoint_every),
        ("train.early_stopping", t.early_stopping == "auto" or t.early_stopping >= 0, '"auto", or 0 or more',
         t.early_stopping),
        ("train.seeds", t.seeds >= 1, "at least 1", t.seeds),
        ("train.learning_rate", bool(rates) and all(r == "auto" or 0 < float(r) < 10 for r in rates),
         '"auto", a number above 0 and below 10, or a list of such numbers', t.learning_rate),
        ("train.learning_rate", len({r if r == "auto" else f"{r:g}" for r in rates}) == len(rates),
         "numbers that differ in their first six digits", t.learning_rate),
        ("adapter.rank", 1 <= a.rank <= 65536, "from 1 to 65536", a.rank),
        ("adapter.alpha", 1 <= a.alpha <= 1_000_000, "from 1 to 1000000", a.alpha),
        ("adapter.dropout", 0 <= a.dropout < 1, "at least 0 and less than 1", a.dropout),
        ("adapter.targets", len(a.targets) > 0, '"all-linear" or a list of module names', a.targets),
        ("adapter.layers", a.layers == "all" or min(a.layers, default=-1) >= 0,
         '"all" or a list of layer numbers, starting at 0', a.layers),
        ("adapter.lora_plus", 0 < a.lora_plus <= 1000, "above 0 and at most 1000", a.lora_plus),
        ("prompt.few_shot", p.few_shot >= 0, "0 or more", p.few_shot),
        ("code.seconds", 0 < config.code.seconds <= 600, "above 0 and at most 600", config.code.seconds),
        ("data.validation_share", d.validation_share == "auto" or 0 <= d.validation_share < 1,
         '"auto", or at least 0 and less than 1', d.validation_share),
        ("data.test_share", 0 < d.test_share < 1, "above 0 and less than 1", d.test_share),
        ("data.folds", d.folds == 0 or d.folds >= 2, "0, or at least 2", d.folds),
        ("data.limit_train", d.limit_train is None or d.limit_train >= 1, "at least 1", d.limit_train),
        ("data.limit_validation", (d.limit_validation or 0) >= 0, "0 or more", d.limit_validation),
        ("data.limit_test", d.limit_test is None or d.limit_test >= 1, "at least 1", d.limit_test),
        ("run.threads", 0 <= config.run.threads <= 4096, "from 0 to 4096", config.run.threads),
    ]  # fmt: skip
    for key, is_valid, expected, found in rules:
        if not is_valid:
            raise UserError(f"{key} has an invalid value", where, expected, repr(found))
    _check_combinations(config, where)
    known = SYSTEMS[config.task]
    for name in config.run.systems:
        if name not in known:
            raise UserError(f"Unknown system for {config.task}", f"{where}, run.systems", ", ".join(known), name)


def _check_combinations(config: Config, where: str) -> None:
    """Raises UserError for settings that contradict each other."""
    a, d, t = config.adapter, config.data, config.train
    if a.kind == "full":
        for key in ("rslora", "dora", "lora_plus", "layers"):
            if getattr(a, key) != getattr(AdapterConfig(), key):
                what = f"adapter.{key} does not apply to full fine-tuning"
                raise UserError(what, where, fix='remove it, or set [adapter] kind = "lora"')
    if config.code.run and config.task != "code":
        fix = 'set task = "code", or remove code.run'
        raise UserError("Only answers of the task code can be run", f"{where}, code.run", fix=fix)
    if (config.task == "choice") != (d.candidates is not None):
        fix = 'set data.candidates to the column with the candidates and task = "choice", or neither'
        raise UserError('data.candidates and task = "choice" require each other', f"{where}, data.candidates", fix=fix)
    if d.folds and (d.test or d.limit_test is not None):
        fix = "remove data.test and data.limit_test (every row of train is tested), or remove data.folds"
        raise UserError("data.folds cannot be combined with a test set", f"{where}, data.folds", fix=fix)
    if d.folds and t.seeds > 1:
        fix = "remove data.folds, or set train.seeds = 1"
        raise UserError("data.folds cannot be combined with several seeds", f"{where}, data.folds", fix=fix)


def _absolute_paths(data: DataConfig, base: Path) -> DataConfig:
    """The settings with file paths relative to ``base`` made absolute; hub names stay as they are."""

    def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n if n.startswith("hub:") else str((base / n).resolve()) for n in names)

    return dataclasses.replace(
        data,
        train=absolute(data.train),
        validation=absolute(data.validation),
        test=absolute(data.test),
        retain=absolute(data.retain),
    )

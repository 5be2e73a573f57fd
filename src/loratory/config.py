"""Every setting, stated once. A task file (TOML) and the command line's flags are views of these dataclasses."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loratory.errors import UserError, did_you_mean
from loratory.schema import dataclass_from

BUILTINS = BUILTIN, BUILTIN_MASKED = "builtin", "builtin-masked"


Scalar = bool | int | float | str


OnOff = Literal["on", "off"]


PROMPTING = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")


TUNED = ("tuned", "tuned-choose")


SYSTEMS = {
    "classification": (*PROMPTING, "linear", "embed", *TUNED),
    "choice": (*PROMPTING, "linear", *TUNED),
    "labels": ("prompt-choose", "few-shot-choose", "linear", "tuned-choose"),
    "text": ("prompt", "few-shot", "copy", "tuned"),
    "dialogue": ("prompt", "tuned"),
    "code": ("prompt", "few-shot", "tuned"),
    "fill": ("prompt", "tuned"),
}
"""What each task can measure, in the order of a report."""


MASKED_TASKS = ("classification", "fill")
"""What masked language models can do."""


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    name: str = BUILTIN
    """Hub id or folder; "builtin" and "builtin-masked" are the small demonstration models, causal and masked, that come
    with the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub; resolved to a commit and recorded."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Number format of the base model; auto times a matrix product and chooses."""


@dataclass(frozen=True)
class DataConfig:
    """The examples."""

    train: tuple[str, ...] = ()
    """Files (csv, tsv, json, jsonl, parquet) or "hub:owner/name"; relative to the task file."""
    validation: tuple[str, ...] = ()
    """The same; absent: split off train by seed, stratified by label."""
    test: tuple[str, ...] = ()
    """The same; absent: split off train by seed, stratified by label."""
    answer: str = ""
    """The column that holds the answer; for dialogue the one that holds the turns, "messages" or "conversations" if it
    is not named."""
    candidates: str | None = None
    """For the task choice: the column that lists what can be chosen from, the answer among them."""
    limit_train: int | None = None
    """At most so many training examples, stratified, by seed, applied after splitting."""
    limit_validation: int | None = None
    """The same for validation."""
    limit_test: int | None = None
    """The same for test."""
    validation_share: float = 0.1
    """Share of train that is split off when no validation file is given."""
    test_share: float = 0.2
    """Share of train that is split off when no test file is given."""
    retain: tuple[str, ...] = ()
    """Files with a column "text" that the task does not cover: the loss on them before and after says what was
    forgotten. None named: some texts that come with the package."""
    folds: int = 0
    """Cross-validation: every row is tested by a model that was trained on the other folds; for small data. 0: off."""
    overlong: Literal["error", "drop", "cut_prompt"] = "error"
    """What happens to an example that does not fit the model's context. An answer is never cut."""


@dataclass(frozen=True)
class PromptConfig:
    """What the model is shown."""

    system: str | None = None
    """System message; {column} and {labels} are filled in."""
    user: str | None = None
    """User message; default: every column but the answer, one a line. {mask} in it is where the answer stands, for
    masked language models and for code that is filled into the middle."""
    words: dict[str, str] = field(default_factory=dict)
    """For masked language models: what stands in the place of {mask} for a label, where it is not the label itself."""
    template_kwargs: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the chat template, such as enable_thinking."""
    few_shot: int = 4
    """Examples shown by the few-shot baselines, drawn once from train by seed; as many as fit."""
    date: str = "auto"
    """The day that a template with a date shows, YYYY-MM-DD; auto is the day of the run, recorded with it."""


@dataclass(frozen=True)
class CodeConfig:
    """How answers of the task code are tested."""

    run: bool = False
    """Run each answer with its row's tests, in a process that cannot write, connect or start others."""
    tests: str = ""
    """The column with the tests, Python statements or a list of them; test_list or test if it is not named."""
    prefix: str = ""
    """The column whose text an answer continues; prompt, for rows with an entry_point, if it is not named."""
    suffix: str = ""
    """The column whose text follows an answer, where it is filled into the middle."""
    seconds: float = 5.0
    """How long a program may run."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which parameters train."""

    kind: Literal["lora", "full"] = "lora"
    """LoRA, or every parameter of the model."""
    rank: int = 8
    """Width of the low-rank branch."""
    alpha: int = 16
    """The branch is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps large ranks from fading."""
    dora: bool = False
    """Train the length of each weight column apart from its direction; slower."""
    lora_plus: float = 1.0
    """The learning rate of the branch's second matrix (B) is this many times that of the first (A)."""
    dropout: float = 0.0
    """Dropout before the branch; shared tokens share one draw."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which modules get a branch: all linear layers but the one that gives the logits, or a list such as
    ["q_proj", "v_proj"]."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Which of the model's layers get branches: all, or a list of their numbers, from 0."""


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained."""

    epochs: int = 3
    """Passes over the training examples."""
    batch_size: int = 16
    """Examples per optimizer step: a modelling choice. Memory is a matter of token_budget."""
    learning_rate: Literal["auto"] | float | tuple[float, ...] = "auto"
    """Peak learning rate; auto: by model width and adapter kind; a list: the best on validation."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    token_budget: int = 2048
    """Most tokens computed at once; changes memory and speed, not the result. A GPU is faster with more."""
    batching: Literal["auto", "tree", "padded"] = "auto"
    """auto: token trees where this model computes them exactly, right-padded batches elsewhere."""
    keep: Literal["best", "last"] = "best"
    """Which weights are kept: those of the epoch with the lowest loss on validation, or the last ones."""
    early_stopping: int = 0
    """Stop after so many epochs without a lower loss on validation; 0: never."""
    seed: int = 0
    """Seed of the split, the order, the few-shot draw and the adapter's first weights."""
    seeds: int = 1
    """Train and measure with so many seeds (seed, seed + 1, ...) and report mean and spread; the first is delivered."""
    checkpoint_every: int = 50
    """Optimizer steps between checkpoints; 0: only at the end and on interruption."""


@dataclass(frozen=True)
class SpeedConfig:
    """How it is computed. Each way gives the same result up to rounding; switch one off to see for yourself."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse what lies between the matrix products with torch.compile; auto: where the training is long enough to repay
    the compilation, and a C++ compiler is there."""
    lora: OnOff = "on"
    """LoRA layers as one function, in the base model's number format; off: PEFT's own."""
    attention: OnOff = "on"
    """Attention with the derivative by hand; off: PyTorch's scaled_dot_product_attention."""
    head: OnOff = "on"
    """The head in parts that keep the logits small; off: the model's own, all at once."""
    skip_rows: OnOff = "on"
    """Tokens that nothing is predicted from skip the last layer but for its keys and values."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Full fine-tuning: number format of matrix products in training, over weights in float32; auto: the faster one."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Keep each layer's input only and compute the rest again in the backward; auto: where memory is short."""


@dataclass(frozen=True)
class RunConfig:
    """Where it goes."""

    out: str = "runs/run"
    """The run directory."""
    threads: int = 0
    """CPU threads; 0: as many as PyTorch finds. Recorded, because the thread count changes the last bits."""
    systems: tuple[str, ...] = ()
    """Which systems are measured; none named: all that the task has."""


@dataclass(frozen=True)
class Config:
    """A run, as one frozen value."""

    task: str = "classification"
    """classification: one of the labels. labels: a set of them. choice: one of the row's own candidates. text: a free
    answer. dialogue: every assistant turn of a conversation. code: a program, or the rest of one. fill, for masked
    language models: the words in the place of {mask}, or, in a prompt without it, any word of the text."""
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
        """Reads a task file. Paths of data and model become absolute, relative to the file. Raises UserError."""
        path = Path(path)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError as error:
            raise UserError("Task file not found", str(path), fix="check the path") from error
        except IsADirectoryError as error:
            raise UserError("A task file is expected, this is a folder", str(path)) from error
        except UnicodeDecodeError as error:
            raise UserError("The task file is not UTF-8", str(path), found=str(error)) from error

    @classmethod
    def parse(cls, text: str, path: Path) -> "Config":
        """The text of a task file that stands at ``path``, or will. Raises UserError."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UserError("The task file is not valid TOML", str(path), found=str(error)) from error
        config = config_from_dict(values, str(path))
        data, model = _absolute_paths(config.data, path.parent), config.model
        if (path.parent / model.name).is_dir() and model.name not in BUILTINS:
            model = dataclasses.replace(model, name=str((path.parent / model.name).resolve()))
        return dataclasses.replace(config, data=data, model=model)


def config_from_dict(values: dict[str, Any], where: str) -> Config:
    """Checks keys, types and ranges, and fills in the defaults. Raises UserError naming the key."""
    config = dataclass_from(Config, values, where, "")
    check_config(config, where)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """The inverse of config_from_dict; keys whose value is None are left out (TOML has no null)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {key: plain(v) for key, v in pairs if v is not None}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def check_config(config: Config, where: str) -> None:
    """Raises UserError for values that no run could use."""
    if config.task not in SYSTEMS:
        fix = did_you_mean(config.task, SYSTEMS)
        raise UserError("task has a value that cannot be used", where, ", ".join(SYSTEMS), repr(config.task), fix)
    t, a, d, p = config.train, config.adapter, config.data, config.prompt
    rates = t.learning_rate if isinstance(t.learning_rate, tuple) else (t.learning_rate,)
    rules = [
        ("train.epochs", t.epochs >= 1, "at least 1", t.epochs),
        ("train.batch_size", t.batch_size >= 1, "at least 1", t.batch_size),
        ("train.token_budget", t.token_budget >= 1, "at least 1", t.token_budget),
        ("train.warmup", 0 <= t.warmup < 1, "a share from 0 to less than 1", t.warmup),
        ("train.seed", 0 <= t.seed < 2**32, "0 to 4294967295", t.seed),
        ("train.max_grad_norm", t.max_grad_norm >= 0, "0 or more", t.max_grad_norm),
        ("train.weight_decay", 0 <= t.weight_decay < float("inf"), "0 or more", t.weight_decay),
        ("train.checkpoint_every", t.checkpoint_every >= 0, "0 or more", t.checkpoint_every),
        ("train.early_stopping", t.early_stopping >= 0, "0 or more", t.early_stopping),
        ("train.seeds", t.seeds >= 1, "at least 1", t.seeds),
        ("train.learning_rate", bool(rates) and all(r == "auto" or 0 < float(r) < 10 for r in rates),
         'above 0, "auto", or a list of such numbers', t.learning_rate),
        ("adapter.rank", a.rank >= 1, "at least 1", a.rank),
        ("adapter.alpha", a.alpha >= 1, "at least 1", a.alpha),
        ("adapter.dropout", 0 <= a.dropout < 1, "from 0 to less than 1", a.dropout),
        ("adapter.targets", len(a.targets) > 0, '"all-linear" or a list of module names', a.targets),
        ("adapter.layers", a.layers == "all" or min(a.layers, default=-1) >= 0,
         '"all" or a list of layer numbers from 0', a.layers),
        ("adapter.lora_plus", 0 < a.lora_plus < float("inf"), "above 0", a.lora_plus),
        ("prompt.few_shot", p.few_shot >= 0, "0 or more", p.few_shot),
        ("code.seconds", 0 < config.code.seconds <= 600, "above 0, at most 600", config.code.seconds),
        ("data.validation_share", 0 <= d.validation_share < 1, "from 0 to less than 1", d.validation_share),
        ("data.test_share", 0 < d.test_share < 1, "between 0 and 1", d.test_share),
        ("data.folds", d.folds == 0 or d.folds >= 2, "0, or at least 2", d.folds),
        ("data.limit_train", d.limit_train is None or d.limit_train >= 1, "at least 1", d.limit_train),
        ("data.limit_validation", (d.limit_validation or 0) >= 0, "0 or more", d.limit_validation),
        ("data.limit_test", d.limit_test is None or d.limit_test >= 1, "at least 1", d.limit_test),
        ("run.threads", config.run.threads >= 0, "0 or more", config.run.threads),
    ]  # fmt: skip
    for key, holds, expected, found in rules:
        if not holds:
            raise UserError(f"{key} has a value that cannot be used", where, expected, repr(found))
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
                what = f"adapter.{key} has no meaning in full fine-tuning"
                raise UserError(what, where, fix='remove it, or set [adapter] kind = "lora"')
    if config.code.run and config.task != "code":
        raise UserError("Only answers of the task code can be run", f"{where}, code.run", fix='set task = "code"')
    if (config.task == "choice") != (d.candidates is not None):
        fix = 'name the column that lists them, and set task = "choice"'
        raise UserError("The task choice, and it alone, needs [data] candidates", f"{where}, data.candidates", fix=fix)
    if d.folds and (d.test or d.limit_test is not None):
        fix = "remove [data] test and limit_test, or folds"
        raise UserError("Folds test every row of train, so there is no other test set", f"{where}, data.folds", fix=fix)
    if d.folds and t.seeds > 1:
        raise UserError("Folds and several seeds cannot be combined", f"{where}, data.folds", fix="choose one of them")


def _absolute_paths(data: DataConfig, base: Path) -> DataConfig:
    def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n if n.startswith("hub:") else str((base / n).resolve()) for n in names)

    return dataclasses.replace(
        data,
        train=absolute(data.train),
        validation=absolute(data.validation),
        test=absolute(data.test),
        retain=absolute(data.retain),
    )

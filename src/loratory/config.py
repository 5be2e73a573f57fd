"""The settings of a run: dataclasses that define the keys of a task file (TOML) and the command-line flags."""

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

REFERENCES = ("linear", "embed", "copy")
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
"""The systems of each task, in the order of the report."""

MASKED_TASKS = ("classification", "fill")
"""The tasks of masked language models."""


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    name: str = BUILTIN
    """Hub id or folder. "builtin" (causal) and "builtin-masked" are small demonstration models included in Loratory."""
    revision: str | None = None
    """Branch, tag or commit on the hub. It is resolved to a commit, which is recorded."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple). auto: the NVIDIA GPU if there is one, otherwise the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Dtype of the base model's weights. auto: bfloat16 if it is fast on this device, otherwise float32; always float32
    in full fine-tuning."""


@dataclass(frozen=True)
class DataConfig:
    """The training, validation and test data."""

    train: tuple[str, ...] = ()
    """Training data: csv, tsv, json, jsonl(.gz) or parquet files, relative to the task file, or "hub:owner/name"."""
    validation: tuple[str, ...] = ()
    """Validation data, in the same formats as train. Not set: a share of train, see validation_share."""
    test: tuple[str, ...] = ()
    """Test data, in the same formats as train. Not set: a share of train, see test_share."""
    answer: str = ""
    """Column with the answer. For dialogue: column with the turns, by default "messages" or "conversations"."""
    candidates: str | None = None
    """For the task choice: column with the list of candidates, one of which is the answer."""
    limit_train: int | None = None
    """Maximum number of training examples, sampled by seed and stratified by label after splitting."""
    limit_validation: int | None = None
    """Maximum number of validation examples, sampled by seed and stratified by label after splitting."""
    limit_test: int | None = None
    """Maximum number of test examples, sampled by seed and stratified by label after splitting."""
    validation_share: float = 0.1
    """Share of train to split off if validation is not set, by seed and stratified by label; 0: no validation data."""
    test_share: float = 0.2
    """Share of train to split off if test is not set, by seed and stratified by label."""
    retain: tuple[str, ...] = ()
    """Files with a column "text" outside the task: the loss on them before and after training measures forgetting. Not
    set: texts included in Loratory."""
    folds: int = 0
    """Number of cross-validation folds: each row is tested by a model trained on the other folds; 0: none."""
    overlong: Literal["error", "drop", "cut_prompt"] = "error"
    """If an example exceeds the model's context: stop with an error, drop it, or cut its prompt (never its answer)."""


@dataclass(frozen=True)
class PromptConfig:
    """The prompt that the model sees."""

    system: str | None = None
    """System message. {column} and {labels} are replaced by the row's value and the list of labels."""
    user: str | None = None
    """User message. {column} and {labels} are replaced by the row's value and the list of labels; {mask} is the answer
    slot of masked language models and fill-in-the-middle code. Not set: all columns except the answer, one per line."""
    words: dict[str, str] = field(default_factory=dict)
    """For masked language models: the word that stands for a label at {mask}. Not set: the label itself."""
    template_kwargs: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the model's chat template, such as enable_thinking."""
    few_shot: int = 4
    """Number of examples in few-shot prompts, drawn once from train by seed; fewer if they do not fit the context."""
    date: str = "auto"
    """Date shown by chat templates that contain one, as YYYY-MM-DD. auto: the day of the run, which is recorded."""


@dataclass(frozen=True)
class CodeConfig:
    """How the answers of the task code are tested."""

    run: bool = False
    """Run each answer with the tests of its row, in a sandbox that cannot use the network, start processes or write
    outside a temporary folder. Off: answers are compared as text."""
    tests: str = ""
    """Column with the tests, as Python statements or a list of them. Not set: "test_list" or "test"."""
    prefix: str = ""
    """Column with the text that the answer continues. Not set: "prompt", for rows with an "entry_point"."""
    suffix: str = ""
    """Column with the text that follows the answer, for fill-in-the-middle."""
    seconds: float = 5.0
    """Time limit of each program, in seconds."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which parameters are trained."""

    kind: Literal["lora", "full"] = "lora"
    """lora: train LoRA branches on a frozen base model. full: train all parameters of the model."""
    rank: int = 8
    """Rank of the LoRA branches."""
    alpha: int = 16
    """LoRA branches are scaled by alpha / rank."""
    rslora: bool = False
    """Scale LoRA branches by alpha / sqrt(rank) instead of alpha / rank (rank-stabilized LoRA), for large ranks."""
    dora: bool = False
    """Train the magnitude and the direction of the weights separately (DoRA); slower."""
    lora_plus: float = 1.0
    """Ratio of the learning rate of LoRA's matrix B to that of matrix A (LoRA+)."""
    dropout: float = 0.0
    """Dropout probability on the input of LoRA branches. Tokens of a shared prefix share one dropout mask."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules with a LoRA branch: a list such as ["q_proj", "v_proj"], or all linear layers except the output head and,
    in mixture-of-experts models, experts and routers."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers with LoRA branches: all, or a list of layer numbers, starting at 0."""


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained."""

    epochs: int = 3
    """Number of passes over the training examples."""
    batch_size: int = 16
    """Examples per optimizer step. It does not affect memory; token_budget does."""
    learning_rate: Literal["auto"] | float | tuple[float, ...] = "auto"
    """Peak learning rate. auto: from the model's width and the kind of adapter. A list: each is tried, and the one with
    the lowest validation loss is used."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup: float = 0.1
    """Share of the optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW; not applied to biases and norms."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient, to which larger gradients are scaled down; 0: no gradient clipping."""
    token_budget: int = 2048
    """Maximum number of tokens per micro-batch. It affects memory and speed, not the result; raise it on a GPU."""
    batching: Literal["auto", "tree", "padded"] = "auto"
    """tree: token trees, or an error if they are not exact for this model. padded: right-padded batches. auto: token
    trees if they are exact, otherwise padded."""
    keep: Literal["best", "last"] = "best"
    """Weights to keep: those of the epoch with the lowest validation loss (best) or of the last step (last)."""
    early_stopping: int = 0
    """Stop after this many epochs without a lower validation loss; 0: never."""
    seed: int = 0
    """Seed of the data split, the order of the examples, the few-shot examples, the initial adapter and dropout."""
    seeds: int = 1
    """Number of seeds (seed, seed + 1, ...) to train and measure with; the final model is that of the first."""
    checkpoint_every: int = 50
    """Optimizer steps between checkpoints; 0: only for the best epoch, at the end and on interruption."""


@dataclass(frozen=True)
class SpeedConfig:
    """Optimizations of training. They do not change the result beyond rounding; turn one off to compare."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse operations with torch.compile. auto: on if training is long and a C++ compiler is available."""
    lora: OnOff = "on"
    """Compute LoRA layers as one fused function, in the base model's dtype. off: PEFT's implementation."""
    attention: OnOff = "on"
    """Compute attention with a hand-written backward pass. off: PyTorch's scaled_dot_product_attention."""
    head: OnOff = "on"
    """Compute the output head in chunks, to keep the logits small. off: the model's own head, all at once."""
    skip_rows: OnOff = "on"
    """In the last layer, compute only keys and values for tokens that predict no target."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Full fine-tuning: dtype of the matrix products in training; the weights stay in float32. auto: the faster one."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Gradient checkpointing: recompute activations in the backward pass. auto: on if memory is short."""


@dataclass(frozen=True)
class RunConfig:
    """The run directory, and what is measured."""

    out: str = "runs/run"
    """Run directory, relative to the current directory."""
    threads: int = 0
    """Number of CPU threads; 0: PyTorch's default. It is recorded, because it affects the last bits of the results."""
    systems: tuple[str, ...] = ()
    """Systems to measure. Not set: all systems of the task."""


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    task: str = "classification"
    """classification: one of the labels. labels: a set of labels. choice: one of the candidates of the row. text: free
    text. dialogue: every assistant turn of a conversation. code: a program, or the rest of one. fill (masked language
    models): the words at {mask} or, if the prompt has no {mask}, any word of the text."""
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
        if (path.parent / model.name).is_dir() and model.name not in BUILTINS:
            model = dataclasses.replace(model, name=str((path.parent / model.name).resolve()))
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
        ("train.epochs", t.epochs >= 1, "at least 1", t.epochs),
        ("train.batch_size", t.batch_size >= 1, "at least 1", t.batch_size),
        ("train.token_budget", t.token_budget >= 1, "at least 1", t.token_budget),
        ("train.warmup", 0 <= t.warmup < 1, "at least 0 and less than 1", t.warmup),
        ("train.seed", 0 <= t.seed < 2**32, "from 0 to 4294967295", t.seed),
        ("train.max_grad_norm", t.max_grad_norm >= 0, "0 or more", t.max_grad_norm),
        ("train.weight_decay", 0 <= t.weight_decay < float("inf"), "0 or more", t.weight_decay),
        ("train.checkpoint_every", t.checkpoint_every >= 0, "0 or more", t.checkpoint_every),
        ("train.early_stopping", t.early_stopping >= 0, "0 or more", t.early_stopping),
        ("train.seeds", t.seeds >= 1, "at least 1", t.seeds),
        ("train.learning_rate", bool(rates) and all(r == "auto" or 0 < float(r) < 10 for r in rates),
         '"auto", a number above 0 and below 10, or a list of such numbers', t.learning_rate),
        ("adapter.rank", 1 <= a.rank <= 65536, "from 1 to 65536", a.rank),
        ("adapter.alpha", 1 <= a.alpha <= 1_000_000, "from 1 to 1000000", a.alpha),
        ("adapter.dropout", 0 <= a.dropout < 1, "at least 0 and less than 1", a.dropout),
        ("adapter.targets", len(a.targets) > 0, '"all-linear" or a list of module names', a.targets),
        ("adapter.layers", a.layers == "all" or min(a.layers, default=-1) >= 0,
         '"all" or a list of layer numbers, starting at 0', a.layers),
        ("adapter.lora_plus", 0 < a.lora_plus <= 1000, "above 0 and at most 1000", a.lora_plus),
        ("prompt.few_shot", p.few_shot >= 0, "0 or more", p.few_shot),
        ("code.seconds", 0 < config.code.seconds <= 600, "above 0 and at most 600", config.code.seconds),
        ("data.validation_share", 0 <= d.validation_share < 1, "at least 0 and less than 1", d.validation_share),
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

"""The sections of a task file and their settings: names, types, defaults and meanings."""

from dataclasses import dataclass, field
from typing import Literal

BUILTINS = BUILTIN, BUILTIN_MASKED = "builtin", "builtin-masked"


Scalar = bool | int | float | str

OnOff = Literal["on", "off"]

PROMPTING = ("prompt", "prompt-choose", "few-shot", "few-shot-choose")

REFERENCES = ("linear", "embed", "encoder", "copy")
BLEND = "blend"
NO_ENCODER = "none"
TUNED = ("tuned", "tuned-choose")

SYSTEMS = {
    "classification": (*PROMPTING, "linear", "embed", "encoder", *TUNED, BLEND),
    "choice": (*PROMPTING, "linear", *TUNED),
    "labels": ("prompt-choose", "few-shot-choose", "linear", "tuned-choose"),
    "text": ("prompt", "few-shot", "copy", "tuned"),
    "dialogue": ("prompt", "tuned"),
    "code": ("prompt", "few-shot", "tuned"),
    "fill": ("prompt", "tuned"),
    "pretrain": ("prompt", "tuned"),
}
"""The systems of each task, in the order of the report."""

MASKED_TASKS = ("classification", "fill")
"""The tasks of masked language models."""

SEARCHED_TASKS = ("classification", "choice", "labels")
"""The tasks for which a prompt can be searched for: those in which the right answer can be scored among others."""


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    name: str = BUILTIN
    """Hub id, folder, GGUF file, GGUF file on the hub (owner/name/file.gguf), model of Ollama (ollama:NAME:TAG), or
    short name ("loratory models" lists them). "builtin" (causal) and "builtin-masked" are small demonstration models
    included in Loratory. An adapter (a run directory, or a folder with adapter_config.json): training goes on from it,
    on its base model."""
    revision: str | None = None
    """Branch, tag or commit on the hub. It is resolved to a commit, which is recorded."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (Apple). auto: the NVIDIA GPU if there is one, otherwise the CPU."""
    encoder: str = "auto"
    """Sentence encoder of the system "encoder", which is compared with the model: minilm, bge-small or another short
    name, a hub id, or a folder. auto: one that is on this machine; none: no encoder."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Dtype of the base model's weights. auto: bfloat16 if it is fast on this device, otherwise float32; always float32
    in full fine-tuning."""


@dataclass(frozen=True)
class DataConfig:
    """The training, validation and test data."""

    train: tuple[str, ...] = ()
    """Training data: csv, tsv, json, jsonl, parquet, xlsx, xls, ods or txt files, relative to the task file, a pattern
    such as "parts/*.csv", or "hub:owner/name"."""
    validation: tuple[str, ...] = ()
    """Validation data, in the same formats as train. Not set: a share of train, see validation_share."""
    test: tuple[str, ...] = ()
    """Test data, in the same formats as train. Not set: a share of train, see test_share."""
    answer: str = ""
    """Column with the answer. For dialogue: column with the turns; not set: messages, conversations, or the like."""
    header: Literal["auto"] | bool = "auto"
    """Whether the first row of a csv file, tsv file or spreadsheet names the columns. auto: it does, unless it looks
    like data. Without a header, the columns are column_1, column_2, and so on."""
    sheet: str = ""
    """Sheet of a spreadsheet. Not set: the first one that is not empty."""
    missing: Literal["error", "skip"] = "error"
    """Rows without an answer, or without any text in the prompt: stop with an error, or set them aside."""
    missing_texts: tuple[str, ...] = ("N/A", "n/a", "#N/A", "NA", "NaN", "nan", "<NA>", "NULL", "null", r"\N")
    """Texts that mean a missing answer, besides empty cells and null. A list of your own replaces the default list, so
    repeat the texts of it that should still count."""
    separator: str = ";"
    """For the task labels: the text between the labels of a set that is written in one cell."""
    normalize_labels: bool = False
    """Give labels that differ only in case, white space, invisible characters or Unicode form the spelling that is the
    most frequent among them."""
    waive: tuple[str, ...] = ()
    """Names of findings of the data check that would stop a run, and are accepted."""
    candidates: str | None = None
    """For the task choice: column with the list of candidates, one of which is the answer."""
    limit_train: int | None = None
    """Maximum number of training examples, sampled by seed and stratified by label after splitting."""
    limit_validation: int | None = None
    """Maximum number of validation examples, sampled by seed and stratified by label after splitting."""
    limit_test: int | None = None
    """Maximum number of test examples, sampled by seed and stratified by label after splitting."""
    validation_share: Literal["auto"] | float = "auto"
    """Share of train to split off if validation is not set, by seed and stratified by label; 0: no validation data.
    auto: a fifth, but at most 200 rows, or 5 % if that is more."""
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
    search: Literal["auto", "on", "off"] = "auto"
    """For tasks with labels or candidates: try several wordings and draws of few-shot examples on the validation
    examples, and use the best. on: your own system and user are the first wording. auto: only if neither is set."""
    few_shot: int = 4
    """Number of examples in few-shot prompts, drawn once from train by seed; fewer if they do not fit the context."""
    few_shot_seed: Literal["auto"] | int = "auto"
    """Seed of that draw. auto: train.seed, or the best of several draws if the prompt is searched for."""
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
    in mixture-of-experts models, experts and routers. Only layers of the language model, not those for images or
    sound."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Layers with LoRA branches: all, or a list of layer numbers, starting at 0."""


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained."""

    epochs: Literal["auto"] | int = "auto"
    """Number of passes over the training examples. auto: 3, or as many more as few examples need for 120 optimizer
    steps, but at most 40."""
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
    early_stopping: Literal["auto"] | int = "auto"
    """Stop after this many epochs without a lower validation loss; 0: never. auto: a fifth of the epochs, but at least
    2, if there are validation examples and the weights of the best epoch are kept."""
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

"""A run's model and data, loaded and checked, and the events that tell what happens to them."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.config import BUILTIN_MASKED, BUILTINS, MASKED_TASKS, Config, config_to_dict, nearest
from loratory.data.examples import BLANK, TOOLS, Example
from loratory.data.splits import Split, load_split
from loratory.errors import UserError
from loratory.evaluation.sandbox import sandbox_problem
from loratory.machine.device import World, describe, memory_bytes, resolve_world
from loratory.metrics.tasks import measure_of
from loratory.models import adapters
from loratory.models import loading as models
from loratory.storage import run_directory as runs
from loratory.text import context as fit
from loratory.text import rendering as render
from loratory.text import template
from loratory.text.rendering import TokenizedExample
from loratory.text.template import Renderer
from loratory.training.speed import resolve_speed
from loratory.tree.attention import Layout
from loratory.tree.verification import Mismatch, choose_layout


@dataclass(frozen=True)
class Event:
    """Something to show: ``kind`` is stage, say, progress, step, system or report."""

    kind: str
    text: str
    values: dict[str, Any]


Tell = Callable[[Event], None]


def quiet(_event: Event) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Job:
    """All that a run needs once model and data are loaded and checked."""

    config: Config
    run: Path
    world: World
    base: models.LoadedModel
    renderer: Renderer
    split: Split
    layout: Layout
    trained: tuple[tuple[TokenizedExample, ...], ...]
    """The sequences of each training example."""
    checks: tuple[dict[str, Any], ...]
    seconds: dict[str, float]
    """What loading and checking took."""


def open_job(config: Config, tell: Tell, overwrite: bool, approve: Callable[[Job], dict[str, float]]) -> Job:
    """Loads and checks everything, and only then writes: a mistake leaves nothing behind.

    ``approve`` sees a new job before anything is written and may raise; it returns the estimated seconds by stage.
    """
    run = Path(config.run.out)
    resumed = runs.check_run(run, config, overwrite)
    if resumed:
        tell(Event("say", f"Going on with the unfinished run in {run}", {}))
        job = load_job(runs.read_config(run), run, tell)
        runs.check_same_data(run, data_record(job))
        runs.mend_metrics(run)
        return job
    job = load_job(config, run, tell)
    estimate = approve(job)
    runs.create_run(run, overwrite)
    runs.write_json(run / runs.ASKED, config_to_dict(config))
    runs.write_json(run / "environment.json", environment(job))
    runs.write_json(run / "data.json", data_record(job))
    runs.write_config(run, job.config)
    runs.append_metric(run, "estimate", stages=estimate)
    for stage, seconds in job.seconds.items():
        runs.append_metric(run, "stage", name=stage, seconds=seconds)
    return job


def load_job(config: Config, run: Path, tell: Tell) -> Job:
    """Loads data and model and checks that one fits the other. Raises UserError."""
    started = time.perf_counter()
    if is_demonstration(config):
        tell(Event("say", demonstration_text(config.model.name == BUILTIN_MASKED), {}))
    tell(Event("stage", "load", {}))
    split = load_split(config.data, config.prompt, config.train.seed, task=config.task, code=config.code)
    if chooses_on_validation(config) and not split.validation:
        raise UserError(
            "Choosing a learning rate, or when to stop, needs validation examples",
            "[train] learning_rate, early_stopping",
        )
    full = config.adapter.kind == "full"
    products = config.speed.products if full else None
    world = resolve_world(config.model.device, config.model.dtype, config.run.threads, products)
    tell(
        Event(
            "say",
            f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test examples",
            {},
        )
    )
    tell(Event("say", f"Device: {world.why}", {}))
    base = models.load_model(config.model, world)
    check_kind(config, base.text, base.name)
    check_words(config.prompt.words, split.labels)
    adapters.check_targets(base.model, config.adapter)
    if base.text.plain_template:
        tell(Event("say", "The model has no chat template; a plain one is used (docs/rendering.md)", {}))
    renderer = render.with_room_for([*split.train, *split.validation], template.renderer_for(base.text, split.prompt))
    if config.code.run and (problem := sandbox_problem()):
        fix = "set [code] run = false: answers are then compared as texts"
        raise UserError("Programs cannot be run safely on this machine", "[code] run", found=problem, fix=fix)
    for sentence in _about_template(renderer, config, split):
        tell(Event("say", sentence, {}))

    loaded = time.perf_counter()
    tell(Event("stage", "check", {}))
    split, checks = fit_split(split, renderer, base.text.max_length, config.data.overlong, config.data.folds > 0)
    trained = tuple(tuple(render.tokenize(example, renderer)) for example in split.train)
    try:
        layout = choose_layout(base.model, [s for group in trained for s in group], config.train.batching, config.speed)
    except Mismatch as error:
        fix = 'set batching = "auto"'
        raise UserError(
            "Token trees are not exact for this model", "[train] batching", found=str(error), fix=fix
        ) from error
    speed, sentences = resolve_speed(config.speed, config.train, full, base.model, trained, layout, world)
    layout = dataclasses.replace(
        layout, compiled=speed.compile == "on", checkpoints=speed.checkpointing == "on", low=world.low
    )
    for sentence in (f"Batches: {layout.kind} ({layout.why})", *sentences):
        tell(Event("say", sentence, {}))
    for check in checks:
        tell(Event("say", check["message"], check))
    resolved = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            device=str(world.device),
            dtype=world.dtype_name,
            revision=base.revision or config.model.revision,
        ),
        prompt=dataclasses.replace(split.prompt, date=renderer.date),
        speed=speed,
        run=dataclasses.replace(config.run, threads=world.threads),
    )
    seconds = {"load": loaded - started, "check": time.perf_counter() - loaded}
    return Job(resolved, run, world, base, renderer, split, layout, trained, tuple(checks), seconds)


def check_kind(config: Config, text: models.LoadedTokenizer, name: str) -> None:
    """Raises UserError where the task is none for this kind of model."""
    where = f"task = {config.task!r}"
    if text.masked and config.task not in MASKED_TASKS:
        expected = " or ".join(MASKED_TASKS)
        raise UserError("A masked language model cannot do this task", where, expected, fix="choose a causal model")
    if not text.masked and config.prompt.words:
        raise UserError("Words for labels are for masked language models", "[prompt] words", fix="remove them")
    if not text.masked and config.task == "fill":
        fix = f"choose one, such as answerdotai/ModernBERT-base or {BUILTIN_MASKED}"
        raise UserError("This task needs a masked language model", where, found=name, fix=fix)


def check_words(words: Mapping[str, str], labels: Sequence[str]) -> None:
    """Raises UserError for words of no label, and for labels that one word would stand for."""
    for label in words:
        if not labels:
            fix = 'set task = "classification"'
            raise UserError("Words are for labels, and this task has none", "[prompt] words", fix=fix)
        if label not in labels:
            fix = nearest(label, labels) or f"labels: {', '.join(labels)[:200]}"
            raise UserError(
                "A word is given for something that is no label", "[prompt] words", found=repr(label), fix=fix
            )
    used = Counter(words.get(label, label) for label in labels)
    for word, count in used.items():
        if count > 1:
            raise UserError(
                "Two labels have the same word, so they could not be told apart", "[prompt] words", found=word
            )


def _about_template(renderer: Renderer, config: Config, split: Split) -> list[str]:
    """What a person should know of how prompts and answers are put together. Raises UserError."""
    if renderer.masked:
        return ["A masked language model: it fills in what is hidden"]
    if config.prompt.system is not None:
        template.check_system_is_shown(renderer)
    if any(m.role == TOOLS for e in split.train for m in e.messages):
        template.check_tools_are_shown(renderer)
    sentences = [f"Answers end with {renderer.ending_text!r}: {renderer.note}", render.template_deviation(renderer)]
    return [sentence for sentence in sentences if sentence]


def is_demonstration(config: Config) -> bool:
    """Whether the demonstration model is put to a task that is not its own."""
    own = models.builtin_folder().parent
    return config.model.name in BUILTINS and not all(Path(name).is_relative_to(own) for name in config.data.train)


def demonstration_text(masked: bool) -> str:
    """What a person should know who uses the demonstration model for their own data."""
    names = ", ".join(models.MASKED_MODELS if masked else models.suggestions(memory_bytes()))
    return (
        "This is the small demonstration model that comes with Loratory: it shows the path, not what is possible. "
        f"With this machine's {memory_bytes() / 1024**3:.0f} GiB of memory try --model.name with one of: {names}"
    )


def chooses_on_validation(config: Config) -> bool:
    """Whether training cannot do without validation examples."""
    return isinstance(config.train.learning_rate, tuple) or config.train.early_stopping > 0


def fit_split(
    split: Split, renderer: Renderer, limit: int, overlong: str, folds: bool = False
) -> tuple[Split, list[dict[str, Any]]]:
    """The split with over-long examples treated as the settings say, and what the checks found.

    ``folds``: the test examples are all examples, of which each fold trains on some.
    """
    parts, checks = {}, []
    for name in ("train", "validation", "test"):
        fitted = fit.fit_to_context(getattr(split, name), renderer, limit, overlong)
        parts[name] = fitted.examples
        for what, count in (("dropped", fitted.dropped), ("cut", fitted.cut)):
            if count:
                message = f"{count} {name} examples were {what}, being longer than {limit} tokens"
                checks.append({"name": f"overlong_{what}", "count": count, "message": message})
    if not parts["train"] or not parts["test"]:
        raise UserError("No examples are left", "[data] overlong", fix="use a model with a longer context")
    split = dataclasses.replace(split, **parts)
    repeated = _repeated(split, folds)
    if repeated:
        message = f"{repeated} test examples have the same text as a training example"
        checks.append({"name": "test_in_train", "count": repeated, "message": message})
    marked = sum(_has_special_text(e, renderer) for name in parts for e in parts[name])
    if marked:
        message = f"{marked} examples contain the text of a special token, which the model reads as that token"
        checks.append({"name": "special_tokens_in_data", "count": marked, "message": message})
    text = " ".join(m.content for m in parts["train"][0].messages)
    unnamed = sum(label not in text for label in split.labels)
    if unnamed and not renderer.masked:
        message = f"The prompt does not name {unnamed} of {len(split.labels)} labels, so prompting cannot know them"
        checks.append({"name": "labels_not_in_prompt", "count": unnamed, "message": f"{message}: use {{labels}}"})
    return split, checks


def _has_special_text(example: Example, renderer: Renderer) -> bool:
    texts = [m.content for m in example.messages if m.role not in ("system", TOOLS)] + list(example.answers)
    return any(special in text for text in texts for special in renderer.special_texts)


def _repeated(split: Split, folds: bool) -> int:
    """How many test examples have the text of another example that is, or may be, trained on."""
    counts = Counter(example.messages for example in (split.test if folds else split.train))
    return sum(counts[example.messages] > folds for example in split.test)


def environment(job: Job) -> dict[str, Any]:
    """environment.json: model, machine, versions."""
    model = {"name": job.base.name, "revision": job.base.revision, "weights_sha256": job.base.weights_sha256}
    batches = {"kind": job.layout.kind, "why": job.layout.why}
    ending = {
        "text": "" if job.renderer.masked else job.renderer.ending_text,
        "stop_ids": list(job.renderer.stop_ids),
        "why": job.renderer.note,
    }
    git = runs.git_state(Path.cwd())
    machine = describe(job.world)
    found = {"model": model, "demonstration": is_demonstration(job.config), **machine, "batches": batches}
    return {**found, "ending": ending, "versions": runs.versions(), "git": git}


def data_record(job: Job) -> dict[str, Any]:
    """data.json: what was read, and what was found in it."""
    data, split = job.config.data, job.split
    counts = {f"{name}_examples": len(getattr(split, name)) for name in ("train", "validation", "test")}
    return {
        "task": measure_of(job.config),
        "labels": list(split.labels),
        **counts,
        "files": runs.file_records([*data.train, *data.validation, *data.test]),
        "checks": list(job.checks),
        "test_prompts": [e.messages[-1].content.replace(BLANK, "{mask}") for e in split.test],
        "folds": data.folds or None,
        "rendered": [
            {"source": s.source, "tokens": [list(piece) for piece in render.pieces(s)]} for s in job.trained[0][-1:]
        ],
        "completion": None if job.renderer.masked else render.template_deviation(job.renderer),
    }


@contextmanager
def timed(run: Path, stage: str, tell: Tell) -> Iterator[None]:
    """Tells the stage and logs its seconds, also when it is interrupted."""
    tell(Event("stage", stage, {}))
    started = time.perf_counter()
    try:
        yield
    finally:
        runs.append_metric(run, "stage", name=stage, seconds=time.perf_counter() - started)

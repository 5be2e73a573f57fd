"""A job: the model, data and settings of one run, loaded and checked, and its records on disk."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.bases import SHORT_NAMES, encoder_at_hand
from loratory.checks import Material, check_data, refuse_errors, with_waivers
from loratory.config import Config
from loratory.data import ANSWER_SLOT, Example, Finding, Message, Split, fold_splits, load_split
from loratory.errors import UserError
from loratory.evaluation import sandbox_problem
from loratory.events import Event, EventCallback
from loratory.machine import Machine, describe_machine, git_state, resolve_machine, versions
from loratory.metrics import task_variant
from loratory.models import (
    WEIGHTS,
    LoadedModel,
    StartingAdapter,
    load_encoder,
    load_with_start,
    merged_settings,
    module_targets,
)
from loratory.run.checks import (
    OVERLONG,
    check_tokens,
    check_words,
    chooses_on_validation,
    demonstration_text,
    fit_split,
    is_demonstration,
    renderer_of_split,
    template_notes,
)
from loratory.settings import BUILTIN_MASKED, NO_ENCODER, PromptConfig, SpeedConfig
from loratory.storage import append_metric, file_records, json_text, sha256_of_text
from loratory.text import (
    Renderer,
    TokenizedExample,
    check_system_is_shown,
    start_template_process,
    template_deviation,
    token_texts,
    tokenize,
    with_rendered_answers,
)
from loratory.training import resolve_schedule, resolve_speed
from loratory.tree import Layout, Mismatch, choose_layout


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, once model and data are loaded and checked."""

    config: Config
    run: Path
    machine: Machine
    base: LoadedModel
    renderer: Renderer
    split: Split
    layout: Layout
    train_sequences: tuple[tuple[TokenizedExample, ...], ...]
    """The token sequences of each training example."""
    checks: tuple[dict[str, Any], ...]
    """Findings of the data checks, as dictionaries."""
    seconds: dict[str, float]
    """Seconds taken by loading, checking and, if there is one, the search for a prompt."""
    prompts_tried: tuple[dict[str, Any], ...] = ()
    """What the search for a prompt has tried, as dictionaries; empty if there was none, or if the run is resumed."""


@dataclass(frozen=True)
class _Loaded:
    """Data and model of a run, before they are checked together."""

    config: Config
    machine: Machine
    base: LoadedModel
    renderer: Renderer
    split: Split
    started_from: tuple[Finding, ...]


def load_job(
    config: Config, run: Path, on_event: EventCallback, source: str = "as configured", accepted: bool = False
) -> Job:
    """Loads data and model, checks that they fit together, and resolves automatic settings. Raises UserError.

    ``source`` says where the settings of device and dtype come from, in the message that shows them. ``accepted``: the
    run has started with this data, so errors that the checks find, perhaps new ones, do not stop it any more.
    """
    started = time.perf_counter()
    if is_demonstration(config):
        on_event(Event("message", demonstration_text(config.model.name == BUILTIN_MASKED)))
    on_event(Event("stage", "load"))
    loaded = _load(config, on_event, source)
    config, base, renderer, machine = loaded.config, loaded.base, loaded.renderer, loaded.machine

    checking = time.perf_counter()
    on_event(Event("stage", "check"))
    found = _check(loaded.split, renderer, config, on_event)
    if not accepted:
        refuse_errors(found, config.data.waive)
    split, fitted = _fitted(loaded.split, renderer, base, config)
    for finding in fitted:
        on_event(_event_of(finding))
    if config.data.folds:
        fold_splits(split, config.data, config.train.seed)  # reports a mistake before anything is written
    train_sequences = tuple(tuple(tokenize(example, renderer)) for example in split.train)
    schedule = resolve_schedule(config.train, len(train_sequences), bool(split.validation))
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(config, train=schedule))
    layout, speed = _layout_and_speed(loaded, train_sequences, on_event)
    model = dataclasses.replace(
        config.model,
        encoder=_encoder(config),
        # A short name may lead to another place when the run is resumed.
        name=base.name if config.model.name in SHORT_NAMES and not base.start else config.model.name,
        device=str(machine.device),
        dtype=machine.dtype_name,
        revision=(base.start.revision if base.start else base.revision) or config.model.revision,
    )
    prompt = dataclasses.replace(split.prompt, date=renderer.date, search="off")
    run_settings = dataclasses.replace(config.run, threads=machine.threads)
    resolved = dataclasses.replace(loaded.config, model=model, prompt=prompt, speed=speed, run=run_settings)
    checks = tuple(dataclasses.asdict(f) for f in (*loaded.started_from, *found, *fitted))
    seconds = {"load": checking - started, "check": time.perf_counter() - checking}
    return Job(resolved, run, machine, base, renderer, split, layout, train_sequences, checks, seconds)


def _load(config: Config, on_event: EventCallback, source: str) -> _Loaded:
    """Reads the data, loads the model and finds how the examples are rendered. Raises UserError."""
    start_template_process()
    split = load_split(config.data, config.prompt, config.train.seed, task=config.task, code=config.code)
    config = dataclasses.replace(config, task=split.task)
    if chooses_on_validation(config) and not split.validation:
        raise UserError(
            "Choosing a learning rate, or when to stop, needs validation examples",
            "[train] learning_rate, early_stopping",
        )
    full = config.adapter.kind == "full"
    products = config.speed.products if full else None
    machine = resolve_machine(config.model.device, config.model.dtype, config.run.threads, products, source)
    counts = f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test examples"
    for sentence in (counts, f"Device: {machine.reason}"):
        on_event(Event("message", sentence))
    base = load_with_start(config.model, machine, on_event)
    if config.model.encoder not in ("auto", NO_ENCODER):
        load_encoder(config.model.encoder, machine)  # reports a mistake before anything else is done
    for note in base.notes:
        on_event(Event("message", note))
    started_from: list[Finding] = []
    if base.start:
        config, started_from = _started_from(config, base.start, on_event)
    elif not full:
        module_targets(base.model, config.adapter)  # reports a mistake before anything else is done
    renderer = renderer_of_split(split, config, base.text, base.name)
    check_words(config.prompt.words, split.labels)
    if base.text.plain_template:
        on_event(Event("message", "The model has no chat template; Loratory uses a plain one (docs/rendering.md)"))
    if config.code.run and (problem := sandbox_problem()):
        fix = "set [code] run = false, which compares answers as texts"
        raise UserError("Programs cannot be run safely on this machine", "[code] run", found=problem, fix=fix)
    for sentence in template_notes(renderer, config, split):
        on_event(Event("message", sentence))
    split = with_rendered_answers(split, renderer)
    return _Loaded(config, machine, base, renderer, split, tuple(started_from))


def _encoder(config: Config) -> str:
    """The name of the sentence encoder; the one that is on this machine, if any, for "auto"."""
    if config.model.encoder != "auto":
        return config.model.encoder
    found = encoder_at_hand() if config.task == "classification" else None
    return found.short if found else NO_ENCODER


def _started_from(config: Config, start: StartingAdapter, on_event: EventCallback) -> tuple[Config, list[Finding]]:
    """The settings that the adapter decides, from which training goes on, and the finding that says so.

    Raises UserError for settings that contradict the adapter.
    """
    adapter, decided = merged_settings(config.adapter, start)
    message = f"Training goes on from the adapter in {start.folder}; what is measured before has it too"
    on_event(Event("message", message))
    if decided:  # not part of the record: a run that is resumed has these settings already
        on_event(Event("message", f"Settings taken from the adapter: {', '.join(decided)}"))
    return dataclasses.replace(config, adapter=adapter), [Finding("starts_from_adapter", "note", message)]


def with_prompt(job: Job, prompt: PromptConfig) -> Job:
    """The job with another prompt, which is not searched for any further.

    Raises UserError if the model's chat template or its context does not allow this prompt.
    """
    assert job.split.with_prompt is not None, "the prompt may change"
    if prompt == job.config.prompt:
        return dataclasses.replace(job, split=dataclasses.replace(job.split, with_prompt=None))
    if prompt.system is not None:
        check_system_is_shown(job.renderer)
    split = dataclasses.replace(job.split.with_prompt(prompt), with_prompt=None)
    split, fitted = _fitted(split, job.renderer, job.base, job.config)
    sequences = tuple(tuple(tokenize(example, job.renderer)) for example in split.train)
    layout = _verified_layout(job.base, [s for group in sequences for s in group], job.config)
    layout = _with_speed(layout, job.config.speed, job.machine)
    earlier = [check for check in job.checks if not check["name"].startswith(OVERLONG)]
    checks = (*earlier, *map(dataclasses.asdict, fitted))
    config = dataclasses.replace(job.config, prompt=prompt)
    return dataclasses.replace(job, config=config, split=split, train_sequences=sequences, layout=layout, checks=checks)


def _fitted(split: Split, renderer: Renderer, base: LoadedModel, config: Config) -> tuple[Split, list[Finding]]:
    """The split without what only the checks need, its examples within the model's context, and what was dropped or
    cut. Raises UserError."""
    split = split.map(lambda example: dataclasses.replace(example, cells=()))
    split, fitted = fit_split(split, renderer, base.text.max_length, config.data.overlong)
    check_tokens(split, renderer)
    return split, fitted


def _check(split: Split, renderer: Renderer, config: Config, on_event: EventCallback) -> list[Finding]:
    """Checks the data, and reports what is wrong with it and how it was read."""
    material = Material(split, renderer, config.task, config.data.folds > 0, bool(config.data.test))
    found = with_waivers(check_data(material), config.data.waive)
    for finding in found:
        if finding.severity != "note" or finding in split.findings:
            on_event(_event_of(finding))
    return found


def _event_of(finding: Finding) -> Event:
    return Event("message", finding.message, dataclasses.asdict(finding))


def _layout_and_speed(
    loaded: _Loaded, train_sequences: Sequence[Sequence[TokenizedExample]], on_event: EventCallback
) -> tuple[Layout, SpeedConfig]:
    """How batches are laid out, and the settings of speed with automatic ones resolved. Says why. Raises UserError."""
    config, model, machine = loaded.config, loaded.base.model, loaded.machine
    sequences = [s for group in train_sequences for s in group]
    layout = _verified_layout(loaded.base, sequences, config)
    full = config.adapter.kind == "full"
    speed, sentences = resolve_speed(config.speed, config.train, full, model, train_sequences, layout, machine)
    layout = _with_speed(layout, speed, machine)
    for sentence in (f"Batches: {layout.kind} ({layout.reason})", *sentences):
        on_event(Event("message", sentence))
    return layout, speed


def _with_speed(layout: Layout, speed: SpeedConfig, machine: Machine) -> Layout:
    """The layout with what the settings of speed, whose automatic ones are resolved, say about it."""
    return dataclasses.replace(
        layout,
        compiled=speed.compile == "on",
        gradient_checkpointing=speed.checkpointing == "on",
        autocast_dtype=machine.autocast_dtype,
    )


def _verified_layout(base: LoadedModel, sequences: Sequence[TokenizedExample], config: Config) -> Layout:
    """``choose_layout`` with the settings. Raises UserError if they require trees that are not exact for the model."""
    try:
        return choose_layout(base.model, sequences, config.train.batching, config.speed)
    except Mismatch as error:
        fix = 'set batching = "auto"'
        where = "[train] batching"
        raise UserError("Token trees are not exact for this model", where, found=str(error), fix=fix) from error


def environment(job: Job) -> dict[str, Any]:
    """The content of environment.json: model, machine, versions."""
    model: dict[str, Any] = {
        "name": job.base.name,
        "revision": job.base.revision,
        "weights_sha256": job.base.hashes[WEIGHTS],
    }
    batches = {"kind": job.layout.kind, "why": job.layout.reason}
    ending = {
        "text": "" if job.renderer.is_masked_lm else job.renderer.ending_text,
        "stop_ids": list(job.renderer.stop_ids),
        "why": job.renderer.note,
    }
    if job.base.gguf:
        model["gguf"] = job.base.gguf.record()
    git = git_state(Path.cwd())
    machine = describe_machine(job.machine)
    record = {"model": model, "demonstration": is_demonstration(job.config), **machine, "batches": batches}
    return {**record, "ending": ending, "versions": versions(), "git": git}


def data_record(job: Job) -> dict[str, Any]:
    """The content of data.json: the files, the split and the findings of the data checks."""
    data, split = job.config.data, job.split
    counts = {f"{name}_examples": len(getattr(split, name)) for name in ("train", "validation", "test")}
    return {
        "task": task_variant(job.config),
        "labels": list(split.labels),
        **counts,
        "files": file_records(split.files),
        "examples_sha256": _hash_of([*split.train, *split.validation, *split.test]),
        "checks": list(job.checks),
        "test_prompts": [e.messages[-1].content.replace(ANSWER_SLOT, "{mask}") for e in split.test],
        "folds": data.folds or None,
        "rendered": [
            {"source": s.source, "tokens": [list(pair) for pair in token_texts(s)]} for s in job.train_sequences[0][-1:]
        ],
        "completion": template_deviation(job.renderer),
    }


def _hash_of(examples: Sequence[Example]) -> str:
    """The hash of what the model sees and is to answer, which also covers hub datasets."""

    def part(message: Message) -> list[Any]:
        further = [message.fields, message.trained] if message.fields or not message.trained else []
        return [message.role, message.content, *further]

    parts = [[[part(m) for m in e.messages], e.answers, e.candidates] for e in examples]
    return sha256_of_text(json_text(parts))


@contextmanager
def timed_stage(run: Path, stage: str, on_event: EventCallback) -> Iterator[None]:
    """Reports the start of the stage and logs its seconds, even if it is interrupted."""
    on_event(Event("stage", stage))
    started = time.perf_counter()
    try:
        yield
    finally:
        append_metric(run, "stage", name=stage, seconds=time.perf_counter() - started)

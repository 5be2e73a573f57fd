"""Inference with a tuned model: ``loratory.load("runs/arxiv").answer({"title": ..., "abstract": ...})``."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from loratory.data import (
    ANSWER_SLOT,
    LABELS,
    MASK,
    Example,
    Message,
    Row,
    fill,
    has_answer_slot,
    placeholders,
    question,
    records_to_examples,
)
from loratory.errors import UserError
from loratory.evaluation import (
    Prediction,
    PromptedModel,
    choices,
    code_system,
    continuation_system,
    fill_mask_system,
    generation_system,
)
from loratory.events import Event, EventCallback, ProgressCallback, ignore_event, ignore_progress
from loratory.machine import different_versions, resolve_machine
from loratory.models import LoadedModel, load_adapter, load_model, load_with_start, read_card
from loratory.schema import dataclass_from
from loratory.settings import ModelConfig, PromptConfig, TrainConfig
from loratory.storage import CARD, hashes_of, is_finished, is_run, json_text, sha256_of_text, tuned_folder
from loratory.text import (
    Renderer,
    check_system_is_shown,
    check_turns_are_shown,
    fit_to_context,
    render_prompt,
    renderer_for,
    renderer_of_task,
    start_template_process,
    tokenize,
)
from loratory.tree import Layout, Rule, choose_layout, label_log_probs, stream

TOKEN_BUDGET = TrainConfig().token_budget
MOST_ANSWER_TOKENS = 1_000_000


@dataclass(frozen=True)
class Tuned:
    """A base model with a trained adapter, its prompt, its labels and its decision rule."""

    model: nn.Module
    base: LoadedModel
    renderer: Renderer
    prompt: PromptConfig
    task: str
    answer_column: str
    labels: tuple[str, ...]
    candidates: str | None
    """The column with the candidates of each record, if each record has its own; else None."""
    max_answer_tokens: int
    """Number of tokens of the longest answer in the training data."""
    rule: Rule
    prefers_choice: bool
    """Whether choosing beat free-form answers on validation; False if there is nothing to choose from."""
    identity: str
    """A hash of the files that decide an answer: the adapter's, its card and the base model's."""

    def answer(self, record: Mapping[str, Any]) -> str:
        """The answer to one record (column -> value). Raises UserError if a column is missing."""
        return self.answers([record])[0]

    def answers(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """The answers to several records, in the same order."""
        rows = [Row(record, f"record {i}") for i, record in enumerate(records, 1)]
        return [prediction.answer for prediction in self.predictions(rows)]

    def probabilities(self, record: Mapping[str, Any]) -> dict[str, float]:
        """The probability of each label or of each candidate of the record."""
        return self.choices([Row(record, "record")])[0].probabilities or {}

    def predictions(self, rows: Sequence[Row], progress: ProgressCallback = ignore_progress) -> list[Prediction]:
        """Predictions by the method that scored better on validation: choosing, or free-form answers."""
        if self.prefers_choice:
            return self.choices(rows, progress)
        if self.renderer.is_masked_lm:
            return self._fill(rows, progress)
        examples = self._examples(rows)
        prompting = self._prompting(Layout("padded", "generation only"))
        if self.renderer.reads_documents:
            return continuation_system(prompting).predict(examples, progress)
        system = code_system(prompting, None, None) if self.task == "code" else generation_system(prompting, None)
        return system.predict(examples, progress)

    def _fill(self, rows: Sequence[Row], progress: ProgressCallback) -> list[Prediction]:
        """Fills the answer slot of each text. Raises UserError if the training prompt has no answer slot."""
        if not has_answer_slot(self.prompt):
            fix = "use 'loratory fill'"
            raise UserError("This model was tuned on plain texts: its prompt has no {mask} to fill", fix=fix)
        examples = self._examples(rows)
        if not examples:
            return []
        return fill_mask_system(self._prompting(self._layout(examples, ("answer",))), tuned=True).predict(
            examples, progress
        )

    def choices(self, rows: Sequence[Row], progress: ProgressCallback = ignore_progress) -> list[Prediction]:
        """The label or candidate that the decision rule chooses for each row, with the probabilities of all of them.

        Raises UserError if the task has neither labels nor candidates.
        """
        examples = self._examples(rows)
        if not examples:
            return []
        if not examples[0].candidates:
            raise UserError("This task has free-form answers: there are no labels to choose from")
        layout = self._layout(examples, None)
        scores = label_log_probs(self.model, self.renderer, examples, layout, TOKEN_BUDGET, progress)
        return choices(scores, self.rule, examples)

    def ask(self, text: str, system: str | None, max_new_tokens: int) -> Iterator[str]:
        """Streams the answer to a text, with the system message used in training or the one given.

        If the training prompt has exactly one column, the text fills it; otherwise the text is the whole message.
        After pretraining, the text is continued as it is. Raises UserError for a masked language model.
        """
        if self.renderer.reads_documents:
            if system is not None:
                raise UserError("A model tuned on plain texts takes no system message", "--system", fix="remove it")
            return ask(self.model, self.renderer, text, None, max_new_tokens)
        system = self.training_system_message() if system is None else system
        filled = fill_only_column(self.prompt.user, text, self.labels)
        return ask(self.model, self.renderer, text if filled is None else filled, system, max_new_tokens)

    def training_system_message(self) -> str | None:
        """The system message used in training. Raises UserError if it contains columns, which a text cannot fill."""
        template = self.prompt.system or ""
        columns = [f"{{{name}}}" for name in placeholders(template, "the adapter's card") if name != LABELS]
        if columns:
            fix = "set a system message with --system"
            raise UserError("The system message used in training contains columns", found=", ".join(columns), fix=fix)
        return fill(template, {LABELS: ", ".join(self.labels)}) or None

    def _layout(self, examples: Sequence[Example], answers: tuple[str, ...] | None) -> Layout:
        """The layout, checked on the longest example with the given answers or with its own candidates."""
        longest = max(examples, key=lambda e: sum(len(m.content) for m in e.messages))
        probes = tokenize(dataclasses.replace(longest, answers=answers or longest.candidates), self.renderer)
        return choose_layout(self.base.model, probes, "auto")

    def _prompting(self, layout: Layout) -> PromptedModel:
        return PromptedModel(self.model, self.renderer, layout, (), self.max_answer_tokens, TOKEN_BUDGET)

    def _examples(self, rows: Sequence[Row]):
        if self.task == "dialogue":
            examples = [question(row, self.answer_column, self.prompt.system) for row in rows]
            check_turns_are_shown(examples, self.renderer)
        else:
            examples = records_to_examples(rows, self.prompt, self.answer_column, self.labels, self.candidates)
        return fit_to_context(examples, self.renderer, self.base.text.max_length, "cut_prompt").examples


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    on_event: EventCallback = ignore_event,
) -> Tuned:
    """Loads a tuned model from a run directory or its adapter folder.

    If answers may differ from those in the report, because the run is not finished or package versions have changed,
    ``on_event`` is told.

    Raises UserError if the folder has no tuned model, if the base model is missing, or (unless ``force``) if a file of
    the adapter or of the base model is not the one that was trained and measured.
    """
    folder = tuned_folder(Path(path))
    start_template_process()
    card = read_card(folder, force)
    if is_run(folder.parent) and not is_finished(folder.parent):
        on_event(Event("message", f"The run in {folder.parent} is not finished: how it answers may still change"))
    if different := different_versions(card.get("versions") or {}):
        text = f"The model was trained with other package versions, so answers may differ: {different}"
        on_event(Event("message", text))
    known = {f.name for f in dataclasses.fields(PromptConfig)}
    settings = {key: value for key, value in card["prompt"].items() if key in known}
    prompt = dataclass_from(PromptConfig, settings, str(folder / CARD), "prompt")
    name, revision = str(card["base"].get("name")), card["base"].get("revision")
    if card["adapter"] == "full":
        name, revision = str(folder), None
    machine = resolve_machine(device, dtype, 0)
    base = load_model(ModelConfig(name, revision, device), machine)
    model = base.model if card["adapter"] == "full" else load_adapter(base, folder, force)
    task = str(card.get("task", "classification"))
    renderer = renderer_of_task(task, base.text, prompt, str(folder / CARD))
    labels = tuple(map(str, card["labels"]))
    candidates = card.get("candidates")
    choose = card.get("choose") or {"rule": "sum", "prior": [0.0] * len(labels), "best": bool(labels or candidates)}
    rule = _rule(choose, len(labels), str(folder / CARD))
    longest = int(card.get("longest_answer") or max(map(len, labels), default=0))
    if not 0 <= longest <= MOST_ANSWER_TOKENS:
        raise UserError("The adapter's card is damaged", str(folder / CARD), "longest_answer in tokens", str(longest))
    renderer = dataclasses.replace(renderer, slot_length=longest) if renderer.is_masked_lm else renderer
    answer, best = card["answer"], bool(choose.get("best"))
    files = hashes_of(folder, [*(card.get("files") or {}), CARD])
    identity = sha256_of_text(json_text([files, dict(base.hashes)]))
    return Tuned(model, base, renderer, prompt, task, answer, labels, candidates, longest, rule, best, identity)


def _rule(choose: Mapping[str, Any], labels: int, where: str) -> Rule:
    """The decision rule in a card. Raises UserError if it is none."""
    try:
        prior, threshold = tuple(map(float, choose["prior"])), choose.get("threshold")
        rule = Rule(choose["rule"], prior, None if threshold is None else float(threshold))
        valid = rule.name in ("sum", "mean", "prior") and len(prior) in (0, labels) and all(map(math.isfinite, prior))
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError("The adapter's card is damaged", where, expected="choose: a rule, a prior and a threshold")
    return rule


def load_plain(name: str, on_event: EventCallback = ignore_event) -> tuple[LoadedModel, Renderer]:
    """Loads a model, or an adapter on its base model, and the renderer. Raises UserError if it cannot be loaded.

    ``on_event`` is told how the model was found.
    """
    start_template_process()
    base = load_with_start(ModelConfig(name), resolve_machine("auto", "auto", 0), on_event)
    for note in base.notes:
        on_event(Event("message", note))
    return base, renderer_for(base.text, PromptConfig())


def only_column(template: str | None) -> str | None:
    """The column in a prompt template, if there is exactly one; else None."""
    columns = {*placeholders(template or "", "the adapter's card")} - {LABELS, MASK}
    return columns.pop() if len(columns) == 1 else None


def fill_only_column(template: str | None, text: str, labels: Sequence[str]) -> str | None:
    """The prompt template with its only column replaced by the text; None unless it has exactly one column."""
    column = only_column(template)
    if template is None or column is None:
        return None
    return fill(template, {column: text, LABELS: ", ".join(labels), MASK: ANSWER_SLOT})


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raises UserError for a number that leaves no room for an answer."""
    if max_new_tokens < 1:
        found = str(max_new_tokens)
        raise UserError("The maximum number of tokens is too small", "--max-new-tokens", "1 or more", found)


def ask(model: nn.Module, renderer: Renderer, text: str, system: str | None, max_new_tokens: int) -> Iterator[str]:
    """Streams a model's answer to a user message.

    Raises UserError for a masked language model, or if ``max_new_tokens`` is below 1.
    """
    check_max_new_tokens(max_new_tokens)
    if renderer.is_masked_lm:
        raise UserError("A masked language model cannot hold a conversation", fix="use 'loratory fill'")
    if system:
        check_system_is_shown(renderer)
    messages = [Message("system", system)] if system else []
    prompt = render_prompt([*messages, Message("user", text)], renderer)
    return stream(model, prompt.token_ids, renderer, max_new_tokens)

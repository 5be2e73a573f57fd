"""The systems of a run, made for its job: the baselines and the tuned model."""

from collections.abc import Callable, Sequence

from torch import nn

from loratory.data import Example, draw_few_shot, has_answer_slot
from loratory.evaluation import (
    NotMeasurable,
    PromptedModel,
    System,
    blend_system,
    classifier_system,
    code_system,
    conversation_system,
    copy_rule,
    copy_system,
    document_system,
    embedding_classifier,
    encoder_classifier,
    fill_mask_system,
    generation_system,
    is_evaluated,
    label_scoring_system,
    linear_classifier,
    linear_multilabel_classifier,
    load_record,
    masked_text_system,
    multilabel_classifier_system,
    shots_that_fit,
    similarity_classifier,
)
from loratory.events import ProgressCallback
from loratory.metrics import task_variant
from loratory.models import load_encoder
from loratory.run.job import Job
from loratory.settings import NO_ENCODER, PROMPTING, REFERENCES, SYSTEMS, TUNED
from loratory.text import longest_answer

FEW_SHOT_SYSTEMS = ("few-shot", "few-shot-choose")
BASELINE_SYSTEMS = (*PROMPTING, *REFERENCES)
CLASSIFIERS = ("linear", "embed", "encoder")
NO_ENCODER_REASON = (
    "no sentence encoder is set or found; --model.encoder minilm takes one, which may be a download of 91 MB"
)


def selected_systems(job: Job, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that the settings select, without those that cannot be measured."""
    without = unusable_systems(job) if {*names} & {*FEW_SHOT_SYSTEMS, "encoder"} else {}
    return [name for name in names if name in _configured(job) and name not in without]


def unusable_systems(job: Job) -> dict[str, str]:
    """The systems that the settings select but that cannot be measured on this data, each with the reason."""
    selected = [name for name in FEW_SHOT_SYSTEMS if name in _configured(job)]
    reasons = {}
    if selected and has_answer_slot(job.split.prompt):
        # Models have not seen solved texts in front of a text with an answer slot.
        reasons = dict.fromkeys(selected, "the answer is inside the text")
    elif selected and not few_shot(job)[0]:
        reasons = dict.fromkeys(selected, "no example fits into the prompt")
    if "encoder" in _configured(job) and job.config.model.encoder == NO_ENCODER:
        reasons["encoder"] = NO_ENCODER_REASON
    return reasons


def measures_few_shot(job: Job) -> bool:
    """Whether the settings select a system that shows solved examples."""
    selected = {*FEW_SHOT_SYSTEMS} & {*_configured(job)}
    return bool(selected) and job.config.prompt.few_shot > 0


def _configured(job: Job) -> tuple[str, ...]:
    return job.config.run.systems or SYSTEMS[job.config.task]


def pending_systems(job: Job, names: Sequence[str]) -> list[str]:
    """Those of ``selected_systems`` that are not evaluated yet."""
    return [name for name in selected_systems(job, names) if not is_evaluated(job.run, name)]


def baseline_system(job: Job, name: str) -> Callable[[ProgressCallback], System]:
    """A function that makes a system that needs no tuning."""

    def make(progress: ProgressCallback) -> System:
        seed, budget = job.config.train.seed, job.config.train.token_budget
        if name == "copy":
            return copy_system(*copy_rule(job.split.train))
        if name == "linear" and job.config.task == "labels":
            multilabel = linear_multilabel_classifier(job.split.train, job.split.labels)
            return multilabel_classifier_system(multilabel, job.split.validation, progress)
        if name == "linear" and job.config.task == "choice":
            return classifier_system(similarity_classifier(job.split.train))
        if name == "linear":
            return classifier_system(linear_classifier(job.split.train, seed))
        if name == "embed":
            embed = embedding_classifier(job.base, job.renderer, job.split.train, job.layout, budget, seed, progress)
            return classifier_system(embed)
        if name == "encoder":
            encoder = load_encoder(job.config.model.encoder, job.machine)
            return classifier_system(encoder_classifier(encoder, job.split.train, seed, progress))
        shots, note = few_shot(job) if name.startswith("few-shot") else ((), None)
        return prompted(job, job.base.model, name, shots, note, progress)

    return make


def few_shot(job: Job) -> tuple[tuple[Example, ...], str]:
    """The examples that few-shot prompts show, and a note on how many fit."""
    prompt = job.config.prompt
    seed = job.config.train.seed if prompt.few_shot_seed == "auto" else prompt.few_shot_seed
    drawn = draw_few_shot(job.split.train, prompt.few_shot, seed)
    rows = [*job.split.validation, *job.split.test]
    shots = shots_that_fit(drawn, rows, job.renderer, job.base.text.max_length)
    return shots, f"{len(shots)} of {len(drawn)} few-shot examples fit"


def prompted(
    job: Job, model: nn.Module, name: str, shots: tuple[Example, ...], note: str | None, progress: ProgressCallback
) -> System:
    """The system that prompts ``model``. Task and name determine whether it generates, fills masks or scores labels."""
    budget = job.config.train.token_budget
    longest = longest_answer(job.split.train, job.renderer)
    prompting = PromptedModel(model, job.renderer, job.layout, shots, longest, budget)
    if task_variant(job.config) == "fill-text":
        return masked_text_system(prompting)
    if job.config.task == "pretrain":
        return document_system(prompting)
    if job.config.task == "code":
        return code_system(prompting, job.config.code.seconds if job.config.code.run else None, note)
    if job.config.task == "dialogue":
        return conversation_system(prompting)
    if name.endswith("choose"):
        return label_scoring_system(prompting, job.split.validation, job.config.task, note, progress)
    if job.renderer.is_masked_lm:
        return fill_mask_system(prompting, tuned=name in TUNED)
    return generation_system(prompting, note)


def blended(job: Job) -> Callable[[ProgressCallback], System]:
    """A function that makes the mix of the measured classifiers and of the tuned model.

    Raises NotMeasurable, when called, if the tuned model's choices were not measured.
    """

    def make(progress: ProgressCallback) -> System:
        if not is_evaluated(job.run, "tuned-choose"):
            raise NotMeasurable("the tuned model was not measured choosing among labels")
        records = [load_record(job.run, name) for name in CLASSIFIERS if is_evaluated(job.run, name)]
        simple = [record for record in records if record.training]
        tuned, seed = load_record(job.run, "tuned-choose"), job.config.train.seed
        return blend_system(simple, tuned, job.split, job.split.test, seed)

    return make


def tuned_system(job: Job, model: nn.Module, name: str) -> Callable[[ProgressCallback], System]:
    """A function that makes a system of the tuned model."""
    return lambda progress: prompted(job, model, name, (), None, progress)

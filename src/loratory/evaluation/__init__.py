"""Evaluation of every system by the same code, before and after tuning.

In: a ``System`` (a prompted model, a classifier, a copy rule) and examples. Out: predictions, in memory and on disk.
Read ``evaluate_system.py`` first, then ``systems.py``.
"""

from loratory.evaluation.baselines import (
    copy_rule,
    embedding_classifier,
    encoder_classifier,
    linear_classifier,
    linear_multilabel_classifier,
    similarity_classifier,
)
from loratory.evaluation.blend import log_prob_at_best_temperature
from loratory.evaluation.evaluate_system import EvalRecord, NotMeasurable, Prediction, System, evaluate
from loratory.evaluation.forgetting import read_retained_texts
from loratory.evaluation.records import changed_records, headline, is_evaluated, load_record, save_record, saved_rule
from loratory.evaluation.sandbox import sandbox_problem
from loratory.evaluation.systems import (
    PromptedModel,
    blend_system,
    choices,
    classifier_system,
    code_system,
    continuation_system,
    conversation_system,
    copy_system,
    document_system,
    fill_mask_system,
    generation_system,
    label_scoring_system,
    masked_text_system,
    multilabel_classifier_system,
    shots_that_fit,
)

__all__ = [
    "EvalRecord",
    "NotMeasurable",
    "Prediction",
    "PromptedModel",
    "System",
    "blend_system",
    "changed_records",
    "choices",
    "classifier_system",
    "code_system",
    "continuation_system",
    "conversation_system",
    "copy_rule",
    "copy_system",
    "document_system",
    "embedding_classifier",
    "encoder_classifier",
    "evaluate",
    "fill_mask_system",
    "generation_system",
    "headline",
    "is_evaluated",
    "label_scoring_system",
    "linear_classifier",
    "linear_multilabel_classifier",
    "load_record",
    "log_prob_at_best_temperature",
    "masked_text_system",
    "multilabel_classifier_system",
    "read_retained_texts",
    "sandbox_problem",
    "save_record",
    "saved_rule",
    "shots_that_fit",
    "similarity_classifier",
]

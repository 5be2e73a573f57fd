"""The stages of a run, which ``finetune.py`` puts together.

In: a ``Config``. Out: a ``Job`` (model and data, loaded and checked), a plan with time estimates, the systems to
evaluate, a trained model. Read ``job.py`` first, then
``opening.py``.
"""

from loratory.run.checks import chooses_on_validation, renderer_of_split
from loratory.run.job import Job, timed_stage
from loratory.run.opening import discard_evaluation, mark, open_job, reopen_job
from loratory.run.plan import make_plan
from loratory.run.prompt_search import choose_prompt
from loratory.run.retained import measure_retained, retained_texts
from loratory.run.seeds_and_folds import fold_jobs, missing_fold, pool_folds, seed_jobs
from loratory.run.selection import (
    BASELINE_SYSTEMS,
    baseline_system,
    blended,
    pending_systems,
    tuned_system,
    unusable_systems,
)
from loratory.run.training import is_trained, load_or_train, restore_base, run_training, trained_folder
from loratory.run.unsound import log_not_measured, not_measured

__all__ = [
    "BASELINE_SYSTEMS",
    "Job",
    "baseline_system",
    "blended",
    "choose_prompt",
    "chooses_on_validation",
    "discard_evaluation",
    "fold_jobs",
    "is_trained",
    "load_or_train",
    "log_not_measured",
    "make_plan",
    "mark",
    "measure_retained",
    "missing_fold",
    "not_measured",
    "open_job",
    "pending_systems",
    "pool_folds",
    "renderer_of_split",
    "reopen_job",
    "restore_base",
    "retained_texts",
    "run_training",
    "seed_jobs",
    "timed_stage",
    "trained_folder",
    "tuned_system",
    "unusable_systems",
]

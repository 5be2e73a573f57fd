"""Token trees: a prefix that several sequences share is computed only once.

In: ``TokenizedExample`` objects and a model. Out: losses, log-probabilities of candidate answers, generated text.
Read ``batches.py`` first, which builds the tree, then ``attention.py`` and ``forward.py``.
"""

from loratory.tree.batches import Batch, micro_batches, sequences_of_epoch, step_examples, steps_per_epoch
from loratory.tree.fill_mask import fill_masks, fill_slots, predict_masked_tokens
from loratory.tree.forward import (
    decoder_layers,
    prepared,
    prepared_for_training,
    supports_gradient_checkpointing,
    tree_forward,
)
from loratory.tree.generation import decode_pieces, generate, pad_id_of, stream, stream_ids
from loratory.tree.layout import Layout
from loratory.tree.loss import LossSum, batch_loss, batch_weight
from loratory.tree.scoring import (
    LabelScores,
    Rule,
    completion_log_probs,
    fit_rule,
    group_log_probs,
    label_log_probs,
    probabilities,
    scored_sequence,
)
from loratory.tree.verification import Mismatch, choose_layout

__all__ = [
    "Batch",
    "LabelScores",
    "Layout",
    "LossSum",
    "Mismatch",
    "Rule",
    "batch_loss",
    "batch_weight",
    "choose_layout",
    "completion_log_probs",
    "decode_pieces",
    "decoder_layers",
    "fill_masks",
    "fill_slots",
    "fit_rule",
    "generate",
    "group_log_probs",
    "label_log_probs",
    "micro_batches",
    "pad_id_of",
    "predict_masked_tokens",
    "prepared",
    "prepared_for_training",
    "probabilities",
    "scored_sequence",
    "sequences_of_epoch",
    "step_examples",
    "steps_per_epoch",
    "stream",
    "stream_ids",
    "supports_gradient_checkpointing",
    "tree_forward",
]

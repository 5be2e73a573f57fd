"""Inference with a tuned model, chat in the terminal, and a view of the tokens that a model sees.

In: a run directory or an adapter folder. Out: a ``Tuned`` model that answers records, streams text or holds a
conversation. Read ``tuned.py`` first.
"""

from loratory.predict.chat import converse, open_chat, welcome_message
from loratory.predict.chat_terminal import standard_terminal
from loratory.predict.to_file import answer_line, check_output, predict_to_file
from loratory.predict.tokens import highlighted, padded_arrays, token_records
from loratory.predict.tuned import Tuned, ask, load, load_plain

__all__ = [
    "Tuned",
    "answer_line",
    "ask",
    "check_output",
    "converse",
    "highlighted",
    "load",
    "load_plain",
    "open_chat",
    "padded_arrays",
    "predict_to_file",
    "standard_terminal",
    "token_records",
    "welcome_message",
]

"""Replies of a chat model, base or tuned, as they are generated."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.live import Live
from torch import nn

from loratory.models import adapter_disabled, has_adapter
from loratory.predict.chat_terminal import printable, side_by_side
from loratory.text import RenderedPrompt, Renderer, TokenizedExample, decode
from loratory.tree import decode_pieces, stream_ids

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class ChatModel:
    """Who answers, and in which words a person's text reaches it."""

    name: str
    model: nn.Module
    renderer: Renderer
    context: int
    """The longest sequence in tokens, prompt and answer together."""
    max_new_tokens: int
    template: str | None = None
    """The user prompt of the training."""
    labels: tuple[str, ...] = ()

    @property
    def is_tuned(self) -> bool:
        return has_adapter(self.model)


@dataclass(frozen=True, eq=False)
class Reply:
    """What one model said to a prompt."""

    speaker: str
    prompt: RenderedPrompt
    token_ids: tuple[int, ...]
    """As the model made them, with the one that ended the answer."""
    text: str
    interrupted: bool


def stream_reply(
    prompt: RenderedPrompt, speaker: str, chat_model: ChatModel, console: Console, stopped: Callable[[], bool]
) -> Reply:
    """The answer of one model, printed as it is made."""

    def show(piece: str) -> None:
        console.file.write(printable(piece))
        console.file.flush()

    try:
        return generate_reply(prompt, speaker, chat_model, show, stopped)
    finally:
        show("\n")


def stream_both_replies(
    prompt: RenderedPrompt, chat_model: ChatModel, console: Console, stopped: Callable[[], bool]
) -> list[Reply]:
    """The answers of base and tuned model in two columns, which grow in a terminal and are printed when complete."""
    texts, replies = {BASE: "", TUNED: ""}, []
    with Live(console=console, transient=True) if console.is_terminal else nullcontext() as live:
        for speaker in texts:

            def show(piece: str, speaker: str = speaker) -> None:
                texts[speaker] += printable(piece)
                if live:
                    live.update(side_by_side(texts))

            replies.append(generate_reply(prompt, speaker, chat_model, show, stopped))
    console.print(side_by_side(texts))
    return replies


def generate_reply(
    prompt: RenderedPrompt,
    speaker: str,
    chat_model: ChatModel,
    show: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Reply:
    """One answer, shown piece by piece. It ends after the token at which ``stopped`` says so."""
    token_ids: list[int] = []
    pieces: list[str] = []
    interrupted = stopped()

    def noted(made: Iterable[int]) -> Iterator[int]:
        for token_id in made:
            token_ids.append(token_id)
            yield token_id

    setting = adapter_disabled(chat_model.model) if speaker == BASE and chat_model.is_tuned else nullcontext()
    stream = stream_ids(chat_model.model, prompt.token_ids, chat_model.renderer, chat_model.max_new_tokens)
    with setting, closing(stream):
        for piece in () if interrupted else decode_pieces(noted(stream), chat_model.renderer):
            pieces.append(piece)
            show(piece)
            if stopped():
                interrupted = True
                break
    return Reply(speaker, prompt, tuple(token_ids), "".join(pieces).strip(), interrupted)


def reply_note(reply: Reply, chat_model: ChatModel) -> str:
    """What the text of an answer does not tell, in one line; may be empty."""
    whose = f"{reply.speaker}: " if chat_model.is_tuned else ""
    if reply.interrupted:
        return f"({whose}stopped)" if reply.text else f"({whose}stopped before a word was said)"
    if reply.token_ids[-1] not in chat_model.renderer.stop_ids:
        return f"({whose}cut after {len(reply.token_ids)} tokens)"
    return "" if reply.text else f"({whose}an empty answer)"


def seen_tokens(reply: Reply, renderer: Renderer) -> TokenizedExample:
    """Prompt and answer as the model saw and made them; the tokens of the answer have weight 1."""
    prompt, made = reply.prompt, reply.token_ids
    ends = len(prompt.text) + np.array(renderer.text_lengths(made), dtype=np.int64)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(made, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(made)]),
        printable(prompt.text + decode(renderer.tokenizer, made)),
        np.concatenate([prompt.char_spans, np.stack([ends[:-1], ends[1:]], axis=1)]),
        reply.speaker,
    )

"""Streams the replies of a chat model, base or tuned."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.live import Live
from torch import nn

from loratory.models import adapter_disabled, has_adapter
from loratory.predict.chat_terminal import side_by_side
from loratory.printable import printable
from loratory.text import RenderedPrompt, Renderer, TokenizedExample, decode
from loratory.tree import decode_pieces, stream_ids

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class ChatModel:
    """The model that answers, and the prompt template that the user's text fills."""

    name: str
    model: nn.Module
    renderer: Renderer
    context: int
    """Maximum number of tokens of prompt and answer together."""
    max_new_tokens: int
    template: str | None = None
    """The user prompt template used in training."""
    labels: tuple[str, ...] = ()

    @property
    def is_tuned(self) -> bool:
        return has_adapter(self.model)


@dataclass(frozen=True, eq=False)
class Reply:
    """One model's reply to a prompt."""

    speaker: str
    prompt: RenderedPrompt
    token_ids: tuple[int, ...]
    """As generated, including the stop token."""
    text: str
    interrupted: bool


def stream_reply(
    prompt: RenderedPrompt, speaker: str, chat_model: ChatModel, console: Console, stopped: Callable[[], bool]
) -> Reply:
    """Generates the reply of one model and prints it as it is generated."""

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
    """Generates the replies of the base and the tuned model in two columns; updates them live in a terminal."""
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
    """Generates one reply and shows it piece by piece; ends after the token at which ``stopped`` returns True."""
    token_ids: list[int] = []
    pieces: list[str] = []
    interrupted = stopped()

    def recorded(stream: Iterable[int]) -> Iterator[int]:
        for token_id in stream:
            token_ids.append(token_id)
            yield token_id

    adapter_state = adapter_disabled(chat_model.model) if speaker == BASE and chat_model.is_tuned else nullcontext()
    stream = stream_ids(chat_model.model, prompt.token_ids, chat_model.renderer, chat_model.max_new_tokens)
    with adapter_state, closing(stream):
        for piece in () if interrupted else decode_pieces(recorded(stream), chat_model.renderer):
            pieces.append(piece)
            show(piece)
            if stopped():
                interrupted = True
                break
    return Reply(speaker, prompt, tuple(token_ids), "".join(pieces).strip(), interrupted)


def reply_note(reply: Reply, chat_model: ChatModel) -> str:
    """A one-line note on how the reply ended: stopped, truncated or empty; otherwise an empty string."""
    prefix = f"{reply.speaker}: " if chat_model.is_tuned else ""
    if reply.interrupted:
        return f"({prefix}stopped)" if reply.text else f"({prefix}stopped before any text was generated)"
    if reply.token_ids[-1] not in chat_model.renderer.stop_ids:
        return f"({prefix}truncated after {len(reply.token_ids)} tokens)"
    return "" if reply.text else f"({prefix}empty answer)"


def seen_tokens(reply: Reply, renderer: Renderer) -> TokenizedExample:
    """Prompt and reply as one token sequence; the generated tokens have loss weight 1."""
    prompt, generated = reply.prompt, reply.token_ids
    ends = len(prompt.text) + np.array(renderer.text_lengths(generated), dtype=np.int64)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(generated, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(generated)]),
        printable(prompt.text + decode(renderer.tokenizer, generated)),
        np.concatenate([prompt.char_spans, np.stack([ends[:-1], ends[1:]], axis=1)]),
        reply.speaker,
    )

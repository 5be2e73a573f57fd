"""Talk with a model or a tuned run in the terminal.

A conversation is one frozen ``State``, replaced by every line. Answers go to standard output, everything else is told.
"""

import dataclasses
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import nn

from loratory.config import nearest
from loratory.data.examples import Message
from loratory.errors import UserError
from loratory.machine.device import interrupt_requested
from loratory.models import adapters
from loratory.predict.tokens import coloured
from loratory.predict.tuned import fill_only_column, load, load_plain, only_column
from loratory.text.rendering import RenderedPrompt, TokenizedExample, render_prompt
from loratory.text.template import Renderer, check_system_is_shown, decode
from loratory.tree.generation import decode_pieces, stream_ids

try:
    import readline  # gives input() line editing and a history
except ImportError:  # Windows
    readline = None

BASE, TUNED = "base", "tuned"
COMMANDS = {
    "base": "the base model answers from now on, without the adapter",
    "adapter": "the tuned model answers from now on",
    "compare": "every answer by both, side by side; again: by one",
    "system": "TEXT: another system message (no TEXT: none), and a new conversation",
    "raw": "your text is the message as it stands, instead of filling the trained prompt; again: it fills it",
    "show": "the exact tokens of the last exchange; the answer's are on green",
    "reset": "a new conversation",
    "help": "this list",
    "quit": "the end, as Ctrl-D",
}
HELP = "\n".join(
    [
        *(f"  /{name:<8} {what}" for name, what in COMMANDS.items()),
        "A line that ends in \\ goes on in the next one; a line that begins with a space is never a command.",
        "Ctrl-C stops an answer: what was said stays in the conversation. Where nothing was, the message is forgotten.",
        "With /compare the conversation goes on with the answer of the model that /base or /adapter chose.",
    ]
)
# Characters that would steer the terminal, as their pictures; one for one, so that places in a text stay right.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


@dataclass(frozen=True)
class Partner:
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
    def has_adapter(self) -> bool:
        return adapters.has_adapter(self.model)


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model said to a prompt."""

    speaker: str
    prompt: RenderedPrompt
    token_ids: tuple[int, ...]
    """As the model made them, with the one that ended the answer."""
    text: str
    interrupted: bool


@dataclass(frozen=True)
class State:
    """A conversation so far."""

    system: str | None
    speaker: str
    """BASE or TUNED: with whose answers it goes on."""
    fills: bool
    """Whether a text fills the trained prompt; else it is the message."""
    turns: tuple[Message, ...] = ()
    """User and assistant in turn, without the system message."""
    comparing: bool = False
    last: tuple[Answer, ...] = ()
    """The answers of the last exchange."""


@dataclass(frozen=True)
class Terminal:
    """Where lines come from and words go."""

    read: Callable[[str], str]
    """The next line after showing a prompt, as ``input`` does."""
    console: Console
    tell: Callable[[str], None]
    interruption: Callable[[], AbstractContextManager[Callable[[], bool]]]
    """Open while an answer is made; what it gives says whether the person wants it to stop."""


# ---- the conversation ------------------------------------------------------------------------------------------------


def open_chat(
    run: Path | None, model: str, system: str | None, max_new_tokens: int, force: bool
) -> tuple[Partner, State]:
    """Loads a run or a plain model. Raises UserError as loading does, and for a system message that is not shown."""
    if max_new_tokens < 1:
        raise UserError("No answer has so few tokens", "--max-new-tokens", "1 or more", str(max_new_tokens))
    if run is None:
        base, renderer = load_plain(model)
        partner = Partner(model, base.model, renderer, base.text.max_length, max_new_tokens)
        state = State(system or None, BASE, fills=False)
    else:
        tuned = load(run, force=force)
        partner = Partner(
            f"{run} on {tuned.base.name}" if adapters.has_adapter(tuned.model) else str(run),
            tuned.model,
            tuned.renderer,
            tuned.base.text.max_length,
            max_new_tokens,
            tuned.prompt.user,
            tuned.labels,
        )
        system = tuned.trained_system() if system is None else system
        state = State(system or None, TUNED, fills=only_column(tuned.prompt.user) is not None)
    if partner.renderer.masked:
        raise UserError("A masked language model holds no conversation", partner.name, fix="loratory fill")
    if state.system:
        check_system_is_shown(partner.renderer)
    return partner, state


def opening(partner: Partner, state: State) -> str:
    """What a person should know before the first line."""
    lines = [f"Talking with {partner.name}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."]
    if state.system:
        lines.append(f"System message: {state.system}")
    if partner.template:
        how = "fills the prompt (/raw: it does not)" if state.fills else "is the message as it stands; training filled"
        lines.append(f"Your text {how}:\n{textwrap.indent(partner.template, '  ')}")
        lines.append("Earlier turns stay in the prompt, which the training never showed; /reset forgets them.")
    return "\n".join(lines)


def converse(partner: Partner, state: State, terminal: Terminal) -> State:
    """Answers line after line until /quit or the end of the input; a mistake is told and changes nothing.

    Raises KeyboardInterrupt where the person interrupts outside an answer, or twice within one.
    """
    while (line := read_message(terminal.read, prompt_sign(partner, state))) is not None:
        try:
            command, text = parse(line)
            if command == "quit":
                break
            if command == "show":
                print_tokens(state, partner.renderer, terminal.console)
            elif command:
                state, said = obey(command, text, state, partner)
                terminal.tell(said)
            elif text:
                state = exchange(text, state, partner, terminal)
        except UserError as error:
            terminal.tell(str(error))
    return state


def prompt_sign(partner: Partner, state: State) -> str:
    """What stands before a line that is typed: who will answer it."""
    if not partner.has_adapter:
        return "> "
    return f"{BASE} and {TUNED}> " if state.comparing else f"{state.speaker}> "


def read_message(read: Callable[[str], str], sign: str) -> str | None:
    """One line, with the next one where it ends in a backslash; None at the end of the input. Raises UserError."""
    lines: list[str] = []
    while not lines or lines[-1].endswith("\\"):
        try:
            line = read("... " if lines else sign)
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UserError("The input is not UTF-8", found=str(error)) from error
        lines.append(line.encode("utf-8", "replace").decode("utf-8"))  # half a character has no encoding
    return "\n".join(line.removesuffix("\\") for line in lines) if lines else None


def parse(line: str) -> tuple[str, str]:
    """A command's name and its text, or "" and the message. Raises UserError for a command that is none."""
    found = re.match(r"/(\S*)\s*(.*)", line, re.DOTALL)
    if found is None:
        return "", line.strip()
    name, text = found[1].lower(), found[2].strip()
    if name not in COMMANDS:
        fix = nearest(f"/{name}", [f"/{known}" for known in COMMANDS]) or "/help lists the commands"
        raise UserError(f"Unknown command /{name}", fix=fix)
    if text and name != "system":
        raise UserError(f"/{name} takes no text", found=text, fix="begin the line with a space to send it as a message")
    return name, text


def obey(command: str, text: str, state: State, partner: Partner) -> tuple[State, str]:
    """The state after a command that changes it, and what to tell. Raises UserError where it cannot be done here."""
    if command in ("base", "adapter", "compare") and not partner.has_adapter:
        raise UserError(f"/{command} needs an adapter", found=partner.name, fix="loratory chat RUN, tuned with LoRA")
    if command == "raw" and only_column(partner.template) is None:
        raise UserError("/raw has no effect here: your text is the message as it stands")
    match command:
        case "base":
            return dataclasses.replace(state, speaker=BASE), "The base model answers."
        case "adapter":
            return dataclasses.replace(state, speaker=TUNED), "The tuned model answers."
        case "compare":
            said = "One model answers." if state.comparing else "Both models answer."
            return dataclasses.replace(state, comparing=not state.comparing), said
        case "raw":
            said = "Your text is the message as it stands." if state.fills else f"Your text fills: {partner.template}"
            return dataclasses.replace(state, fills=not state.fills), said
        case "system":
            if text:
                check_system_is_shown(partner.renderer)
            said = "A new conversation with this system message." if text else "A new conversation without one."
            return dataclasses.replace(state, system=text or None, turns=()), said
        case "reset":
            return dataclasses.replace(state, turns=()), "A new conversation."
    return state, HELP


def message_of(text: str, state: State, partner: Partner) -> Message:
    """The user's message: the text as it stands, or the trained prompt with the text in it."""
    filled = fill_only_column(partner.template, text, partner.labels) if state.fills else None
    return Message("user", text if filled is None else filled)


def fit_history(
    turns: tuple[Message, ...], count: Callable[[tuple[Message, ...]], int], limit: int
) -> tuple[Message, ...]:
    """The latest turns whose prompt has at most ``limit`` tokens by ``count``; question and answer leave together."""
    while turns and count(turns) > limit:
        turns = turns[2:]
    return turns


def exchange(text: str, state: State, partner: Partner, terminal: Terminal) -> State:
    """One message and its answer. Raises UserError where the message alone does not fit the context."""
    message = message_of(text, state, partner)
    system = (Message("system", state.system),) if state.system else ()

    def prompt(turns: tuple[Message, ...]) -> RenderedPrompt:
        return render_prompt([*system, *turns, message], partner.renderer)

    # An answer may take as much as it is allowed, but no more than half of the context at the history's expense.
    limit = partner.context - min(partner.max_new_tokens, partner.context // 2)
    turns = fit_history(state.turns, lambda turns: len(prompt(turns).token_ids), limit)
    with terminal.interruption() as stopped:
        if state.comparing:
            answers = compared(prompt(turns), partner, terminal.console, stopped)
        else:
            answers = [answered(prompt(turns), state.speaker, partner, terminal.console, stopped)]
    for said in filter(None, (remark(answer, partner) for answer in answers)):
        terminal.tell(said)
    if left_out := len(state.turns) - len(turns):
        terminal.tell(f"(the {left_out} oldest turns no longer fit the context of {partner.context} tokens: left out)")
    chosen = next(answer for answer in answers if answer.speaker == state.speaker)
    if chosen.text or not chosen.interrupted:
        turns = (*turns, message, Message("assistant", chosen.text))
    return dataclasses.replace(state, turns=turns, last=tuple(answers))


# ---- answers ---------------------------------------------------------------------------------------------------------


def answered(
    prompt: RenderedPrompt, speaker: str, partner: Partner, console: Console, stopped: Callable[[], bool]
) -> Answer:
    """The answer of one model, printed as it is made."""

    def show(piece: str) -> None:
        console.file.write(printable(piece))
        console.file.flush()

    try:
        return speak(prompt, speaker, partner, show, stopped)
    finally:
        show("\n")


def compared(prompt: RenderedPrompt, partner: Partner, console: Console, stopped: Callable[[], bool]) -> list[Answer]:
    """The answers of base and tuned model in two columns, which grow in a terminal and are printed when complete."""
    texts, answers = {BASE: "", TUNED: ""}, []
    with Live(console=console, transient=True) if console.is_terminal else nullcontext() as live:
        for speaker in texts:

            def show(piece: str, speaker: str = speaker) -> None:
                texts[speaker] += printable(piece)
                if live:
                    live.update(side_by_side(texts))

            answers.append(speak(prompt, speaker, partner, show, stopped))
    console.print(side_by_side(texts))
    return answers


def speak(
    prompt: RenderedPrompt, speaker: str, partner: Partner, show: Callable[[str], None], stopped: Callable[[], bool]
) -> Answer:
    """One answer, shown piece by piece. It ends after the token at which ``stopped`` says so."""
    token_ids: list[int] = []
    pieces: list[str] = []
    interrupted = stopped()

    def noted(made: Iterable[int]) -> Iterator[int]:
        for token_id in made:
            token_ids.append(token_id)
            yield token_id

    setting = adapters.without_adapter(partner.model) if speaker == BASE and partner.has_adapter else nullcontext()
    stream = stream_ids(partner.model, prompt.token_ids, partner.renderer, partner.max_new_tokens)
    with setting, closing(stream):
        for piece in () if interrupted else decode_pieces(noted(stream), partner.renderer):
            pieces.append(piece)
            show(piece)
            if stopped():
                interrupted = True
                break
    return Answer(speaker, prompt, tuple(token_ids), "".join(pieces).strip(), interrupted)


def remark(answer: Answer, partner: Partner) -> str:
    """What the text of an answer does not tell, in one line; may be empty."""
    whose = f"{answer.speaker}: " if partner.has_adapter else ""
    if answer.interrupted:
        return f"({whose}stopped)" if answer.text else f"({whose}stopped before a word was said)"
    if answer.token_ids[-1] not in partner.renderer.stop_ids:
        return f"({whose}cut after {len(answer.token_ids)} tokens)"
    return "" if answer.text else f"({whose}an empty answer)"


# ---- the screen ------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text with characters that steer a terminal as pictures, but for tab and line end; as long as before."""
    return text.translate(PICTURES)


def side_by_side(texts: Mapping[str, str]) -> Table:
    """Named texts in columns of equal width."""
    table = Table(expand=True)
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts.values()))
    return table


def seen_tokens(answer: Answer, renderer: Renderer) -> TokenizedExample:
    """Prompt and answer as the model saw and made them; the tokens of the answer have weight 1."""
    prompt, made = answer.prompt, answer.token_ids
    ends = len(prompt.text) + np.array(renderer.text_lengths(made), dtype=np.int64)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(made, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(made)]),
        printable(prompt.text + decode(renderer.tokenizer, made)),
        np.concatenate([prompt.char_spans, np.stack([ends[:-1], ends[1:]], axis=1)]),
        answer.speaker,
    )


def print_tokens(state: State, renderer: Renderer, console: Console) -> None:
    """Prints the last exchange token by token. Raises UserError before the first one."""
    if not state.last:
        raise UserError("Nothing was said yet")
    for answer in state.last:
        seen = seen_tokens(answer, renderer)
        counts = f"{len(seen.token_ids)} tokens, {len(answer.token_ids)} of them the answer's, on green"
        console.print(f"{answer.speaker}: {counts}", style="bold", highlight=False, soft_wrap=True)
        console.print(coloured(seen), end="\n\n", soft_wrap=True)


def standard_terminal() -> Terminal:
    """Lines from standard input, with a prompt where a person types; answers to standard output, all else to error."""
    typed = sys.stdin.isatty()
    prompted = typed and sys.stdout.isatty()
    if prompted and readline:
        readline.parse_and_bind("set enable-bracketed-paste on")  # several lines pasted at once are one message

    def read(sign: str) -> str:
        try:
            return input(sign if prompted else "")
        except EOFError:
            if prompted:
                tell("")  # what the shell shows next begins on a line of its own
            raise

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # Where nobody types, an interruption means the whole.
    interruption = interrupt_requested if typed else lambda: nullcontext(lambda: False)
    return Terminal(read, Console(), tell, interruption)

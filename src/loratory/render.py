"""Example -> TokenizedExample. The only caller of the chat template: training and inference get the same bytes.

For masked language models there is no template: the prompt is a text with a blank, which the answer fills.

T: tokens of one sequence.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import numpy as np
from jaxtyping import Float32, Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory import cloze
from loratory.config import PromptConfig, nearest
from loratory.errors import UserError
from loratory.examples import BLANK, TOOLS, Example, Message
from loratory.models import LoadedTokenizer

# Text that no template produces by itself, to find where a template puts what it is given.
PROBE = {"system": "probe-of-the-system-text", "user": "probe-of-the-user-text", "assistant": "probe-of-the-answer"}
# Tokens for filling in the middle, as families of models have them: before the beginning, the end, and the middle.
MIDDLE_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
# What Transformers itself hands to every template; not a person's to set.
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now", "raise_exception",
}  # fmt: skip


@dataclass(frozen=True)
class TokenizedExample:
    """One sequence to train on or to score: prompt, answer, end."""

    token_ids: Int64[np.ndarray, "T"]
    loss_weights: Float32[np.ndarray, "T"]
    """0 on what is not trained."""
    text: str
    char_spans: Int64[np.ndarray, "T 2"]
    """The characters of ``text`` that each token stands for."""
    source: str
    shown_ids: Int64[np.ndarray, "T"] | None = None
    """For masked language models, what is read: the mask token in place of every trained token."""
    rotation: tuple[int, int] = (0, 1)
    """(r, n): trained in the epochs e with e % n == r. A text's sequences, which hide other tokens, take turns."""


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer with everything that decides the bytes."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, Any]
    date: str
    """The day that a template with a date shows, YYYY-MM-DD."""
    ending: tuple[int, ...]
    """The tokens after an answer, trained; the last one stops generation."""
    stop_ids: tuple[int, ...]
    """Generation stops on any of these."""
    note: str
    """How the ending was found."""
    lead: str = ""
    """White space that the template puts between prompt and answer; trained and scored with the answer."""
    masked: bool = False
    """Whether it is for a masked language model, without template and ending."""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What fills the blank for a label, where that is not the label itself."""
    masks: int = 1
    """How many mask tokens a blank has."""
    longest: int = 2**31
    """Tokens that the model reads at once; longer plain texts are cut into pieces."""

    @functools.cached_property
    def ending_text(self) -> str:
        """The text of the ending after an answer; alone, some tokenizers decode it without its first space."""
        before = self.encode(PROBE["assistant"])[0].tolist()
        return decode(self.tokenizer, [*before, *self.ending])[len(decode(self.tokenizer, before)) :]

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that the tokenizer cuts out before anything else, longest first."""
        return tuple(sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))  # type: ignore[operator]

    @functools.lru_cache(maxsize=10_000)  # noqa: B019 - one Renderer lives as long as a run
    def tail_answer_ids(self, tail: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Ids of ``tail``, and those of ``answer`` after it or None where the two merge into one token."""
        alone, both = self.encode(tail)[0], self.encode(tail + answer)[0]
        if both[: len(alone)].tolist() != alone.tolist():
            return tuple(alone.tolist()), None
        return tuple(alone.tolist()), tuple(both[len(alone) :].tolist())

    @functools.lru_cache(maxsize=100)  # noqa: B019
    def longest_answer(self, tail: str, answers: tuple[str, ...]) -> int:
        """Tokens of the longest of the answers after ``tail``."""
        texts = [self.lead + answer for answer in answers]
        ids = (self.tail_answer_ids(tail, text)[1] or self.encode(text)[0] for text in texts)
        return max(map(len, ids), default=0)

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def text_lengths(self, token_ids: tuple[int, ...]) -> list[int]:
        """Characters that the first 0, 1, 2, ... of the tokens stand for."""
        lengths = [len(decode(self.tokenizer, token_ids[:n])) for n in range(len(token_ids) + 1)]
        return np.minimum.accumulate(lengths[::-1])[::-1].tolist()

    def encode(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a rendered text; the template has put the special tokens in already."""
        if self.boundary is None:
            return self.encode_part(text)
        cuts = [0, *(m.start() for m in self.boundary.finditer(text) if m.start()), len(text)]
        parts = [self.encode_part(text[a:b]) for a, b in itertools.pairwise(cuts)]
        spans = [span + start for (_, span), start in zip(parts, cuts, strict=False)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(spans)

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        """Special tokens before which a text may be cut without changing its ids: those that take no notice of what
        stands to their left. A tokenizer cuts them out before anything else, so parts that recur are encoded once.
        """
        tokens = self.tokenizer.added_tokens_decoder.values()
        clean = [t.content for t in tokens if t.special and not (t.lstrip or t.single_word or t.normalized)]
        return re.compile("|".join(map(re.escape, sorted(clean, key=len, reverse=True)))) if clean else None

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def encode_part(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a text, in one call of the tokenizer."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(found["input_ids"], dtype=np.int64), spans


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special: bool = False) -> str:
    """The text of the ids."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))


def renderer_for(text: LoadedTokenizer, prompt: PromptConfig, where: str = "task file") -> Renderer:
    """The renderer of a causal or of a masked language model. Raises UserError."""
    if not text.masked:
        return make_renderer(text.tokenizer, text.stop_ids, prompt, where)
    if prompt.system is not None:
        fix = "put its text into [prompt] user"
        raise UserError("A masked language model takes no system message", f"{where}, prompt.system", fix=fix)
    return Renderer(
        text.tokenizer,
        {},
        "",
        (),
        (),
        "a masked language model",
        masked=True,
        words=prompt.words,
        longest=text.max_length,
    )


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], prompt: PromptConfig, where: str = "task file"
) -> Renderer:
    """Checks template and arguments on a probe conversation and finds the ending. Raises UserError.

    The ending is what the template puts after an answer, up to and including the first of the model's stop ids; else
    up to and including the first special token, which joins the stop ids; else the tokenizer's end-of-sequence token.
    """
    date = datetime.date.today().isoformat() if prompt.date == "auto" else prompt.date
    try:
        day = datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError as error:
        raise UserError("prompt.date is no date", where, "YYYY-MM-DD or auto", repr(date)) from error
    source = template_source(tokenizer)
    _check_template_kwargs(source, prompt.template_kwargs, where)
    shown = _with_date(source, day)
    frozen: dict[str, Any] = {"chat_template": shown} if shown != source else {}
    renderer = Renderer(tokenizer, {**prompt.template_kwargs, **frozen}, date, (), tuple(stop_ids), "")
    _check_user_is_shown(renderer)
    return _with_ending(dataclasses.replace(renderer, lead=_lead(renderer)))


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template. Raises UserError where the tokenizer has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError("The tokenizer has no chat template", getattr(tokenizer, "name_or_path", None))
    return template


def _parse(source: str) -> jinja2.nodes.Template:
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
    try:
        return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise UserError("The chat template is malformed", found=str(error)[:300]) from error


def _with_date(source: str, day: datetime.datetime) -> str:
    """The template with the day in place of what it asks strftime_now for: a run must show the same day whenever used.

    Raises UserError where the format is computed, so that the day cannot be put in.
    """
    call = r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)"""
    shown = re.sub(call, lambda m: repr(day.strftime(m[2])), source)
    if "strftime_now" in shown and any(
        isinstance(call.node, jinja2.nodes.Name) and call.node.name == "strftime_now"
        for call in _parse(shown).find_all(jinja2.nodes.Call)
    ):
        raise UserError("The chat template shows the date in a format that cannot be fixed", fix="choose another model")
    return shown


@functools.cache
def _arguments(source: str) -> frozenset[str]:
    """The names that a template looks up and that a person may set."""
    return frozenset(jinja2.meta.find_undeclared_variables(_parse(source)) - RESERVED)


def _check_template_kwargs(source: str, arguments: Mapping[str, Any], where: str) -> None:
    """Templates ignore arguments that they do not know, silently; so a misspelt one is found here."""
    for name in arguments:
        if name not in (known := _arguments(source)):
            fix = nearest(name, known) or f"it knows: {', '.join(sorted(known)) or 'none'}"
            raise UserError(
                f"The chat template knows no argument {name!r}", f"{where}, prompt.template_kwargs", fix=fix
            )


def apply_template(renderer: Renderer, messages: Iterable[Message], prompt: bool) -> str:
    """The chat template's text for the messages; ``prompt``: ending where the answer begins. Raises UserError."""
    messages = tuple(messages)
    turns = [{"role": m.role, "content": m.content} for m in messages if m.role != TOOLS]
    tools = [tool for m in messages if m.role == TOOLS for tool in json.loads(m.content)] or None
    try:
        text = renderer.tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=prompt, **renderer.template_kwargs
        )
    except Exception as error:  # a template is someone else's program: it can divide by zero or recurse without end
        has_system = any(t["role"] == "system" for t in turns)
        fix = "put the system text into [prompt] user" if has_system else None
        raise UserError("The chat template refuses these messages", found=str(error)[:300], fix=fix) from error
    assert isinstance(text, str)
    return text


def _check_user_is_shown(renderer: Renderer) -> None:
    text = apply_template(renderer, [Message("user", PROBE["user"])], prompt=True)
    if PROBE["user"] not in text:
        raise UserError(
            "The chat template does not show the user's text", found=repr(text[:200]), fix="choose another model"
        )


def check_system_is_shown(renderer: Renderer) -> None:
    """Raises UserError where the template refuses system messages or drops them."""
    probe = [Message("system", PROBE["system"]), Message("user", PROBE["user"])]
    if PROBE["system"] not in apply_template(renderer, probe, prompt=True):
        raise UserError("The chat template drops the system message", fix="put its text into [prompt] user")


def check_tools_are_shown(renderer: Renderer) -> None:
    """Raises UserError where the template takes no notice of tools."""
    question = Message("user", PROBE["user"])
    tool = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
    text = apply_template(renderer, [Message(TOOLS, json.dumps([tool])), question], prompt=True)
    if "probe_tool" not in text:
        raise UserError("The chat template does not show tools", fix="choose another model, or remove the column tools")


def _lead(renderer: Renderer) -> str:
    """The white space between prompt and answer in the template's own conversations."""
    question, answer = Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])
    prompt = apply_template(renderer, [question], prompt=True)
    whole = apply_template(renderer, [question, answer], prompt=False)
    between = whole.removeprefix(prompt).partition(answer.content)[0] if whole.startswith(prompt) else ""
    return between if between.isspace() else ""


def _with_ending(renderer: Renderer) -> Renderer:
    turns = [Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])]
    before, found, tail = apply_template(renderer, turns, prompt=False).rpartition(PROBE["assistant"])
    # In context, because alone some tokenizers put a space before it.
    ids = renderer.tail_answer_ids(before + found, tail)[1] if found else ()
    ids = renderer.encode(tail)[0].tolist() if ids is None else ids
    special = {i for i, token in renderer.tokenizer.added_tokens_decoder.items() if token.special}
    for stops, note in (
        (set(renderer.stop_ids), "the template's own stop token"),
        (special, "the template's special token after an answer, added to the stop ids"),
    ):
        for end, token_id in enumerate(ids, 1):
            if token_id in stops:
                stop_ids = tuple(sorted({*renderer.stop_ids, token_id}))
                return dataclasses.replace(renderer, ending=tuple(ids[:end]), stop_ids=stop_ids, note=note)
    eos = renderer.tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise UserError(
            "Neither the chat template nor the tokenizer says how an answer ends", fix="choose another model"
        )
    stop_ids = tuple(sorted({*renderer.stop_ids, eos}))
    note = "the tokenizer's end-of-sequence token, because the template puts no stop after an answer"
    return dataclasses.replace(renderer, ending=(eos,), stop_ids=stop_ids, note=note)


# ---- sequences -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RenderedPrompt:
    """The bytes that inference sees."""

    text: str
    token_ids: Int64[np.ndarray, "T"]
    char_spans: Int64[np.ndarray, "T 2"]
    tail: str | None
    """From the last special token on: tokenized independently of what stands before it. None without one."""
    lead: str
    """White space that goes with the answer."""


def render_prompt(messages: Sequence[Message], renderer: Renderer, source: str = "") -> RenderedPrompt:
    """Text and ids up to where the answer begins; for masked language models with the blank as one mask token.

    Raises UserError (two beginning-of-sequence tokens).
    """
    if renderer.masked:
        found = cloze.prompt(renderer.tokenizer, messages[-1].content, source)
        return RenderedPrompt(found.text, found.token_ids, found.char_spans, None, "")
    if BLANK in messages[-1].content:
        text = _around_the_middle(messages, renderer, source)
        return RenderedPrompt(text, *renderer.encode(text), text[text.rindex(middle_tokens(renderer)[2]) :], "")
    text = apply_template(renderer, messages, prompt=True)
    ids, spans = renderer.encode(text)
    bos = renderer.tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
        raise UserError("The chat template begins with two beginning-of-sequence tokens", source or None)
    start = max((text.rfind(special) for special in renderer.special_texts), default=-1)
    return RenderedPrompt(text, ids, spans, text[start:] if start >= 0 else None, renderer.lead)


def middle_tokens(renderer: Renderer) -> tuple[str, str, str]:
    """The tokens that stand before a beginning, before an end, and before what is to be filled in between.

    Raises UserError where the tokenizer has none.
    """
    known = renderer.tokenizer.get_added_vocab()  # type: ignore[operator]
    for tokens in MIDDLE_TOKENS:
        if all(token in known for token in tokens):
            return tokens
    fix = "let the prompt end where the answer begins, or choose a model that was trained for it"
    raise UserError("The tokenizer has no tokens for filling in the middle", "prompt.user, {mask}", fix=fix)


def _around_the_middle(messages: Sequence[Message], renderer: Renderer, source: str) -> str:
    """Beginning, end, and the token after which the middle is written (Bavarian et al., "Efficient Training of Language
    Models to Fill in the Middle", 2022)."""
    if len(messages) > 1 or messages[0].content.count(BLANK) > 1:
        found = "other messages" if len(messages) > 1 else "several of them"
        raise UserError("A prompt with {mask} is one message with one of them", source or None, found=found)
    tokens = middle_tokens(renderer)
    start, _, end = messages[0].content.partition(BLANK)
    bos = renderer.tokenizer.bos_token
    first = renderer.tokenizer("a")["input_ids"][:1]
    begins = bos if bos and first == [renderer.tokenizer.bos_token_id] else ""
    return f"{begins}{tokens[0]}{start}{tokens[1]}{end}{tokens[2]}"


def completion_ids(prompt: RenderedPrompt, answer: str, renderer: Renderer) -> tuple[list[int], bool]:
    """The ids that follow the prompt: answer and ending; and whether the answer was tokenized in context.

    In context means: encode(prompt + answer) begins with the prompt's ids, and the rest is the answer. Where the
    tokenizer would merge the two, the answer is tokenized alone, because inference sees the prompt's ids and no others.
    The answer takes the template's white space before it along.
    """
    answer = prompt.lead + answer
    if prompt.tail is None:
        both = renderer.encode(prompt.text + answer)[0]
        merged = both[: len(prompt.token_ids)].tolist() != prompt.token_ids.tolist()
        ids = None if merged else both[len(prompt.token_ids) :].tolist()
    else:
        tail_ids, ids = renderer.tail_answer_ids(prompt.tail, answer)
        if prompt.token_ids[-len(tail_ids) :].tolist() != list(tail_ids):
            ids = None
    in_context = ids is not None and len(ids) > 0
    answer_ids = list(ids) if ids else renderer.encode(answer)[0].tolist()
    return answer_ids + list(renderer.ending), in_context


def template_deviation(renderer: Renderer) -> str | None:
    """How prompt, answer and ending differ from the template's own rendering; None where that begins with them.

    No mistake, as training and use have the same bytes, but the model has not seen these before.
    """
    question, answer = Message("user", PROBE["user"]), PROBE["assistant"]
    prompt = render_prompt([question], renderer)
    ids = [*prompt.token_ids.tolist(), *completion_ids(prompt, answer, renderer)[0]]
    ours = prompt.text + renderer.lead + answer + renderer.ending_text
    own = apply_template(renderer, [question, Message("assistant", answer)], prompt=False)
    if renderer.encode(own)[0][: len(ids)].tolist() == ids:
        return None
    same = next((i for i, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b), min(len(ours), len(own)))
    here, there = (repr(text[same:][:80].replace(answer, "ANSWER")) for text in (ours, own))
    thinks = "enable_thinking" in _arguments(template_source(renderer.tokenizer)).difference(renderer.template_kwargs)
    hint = "; template_kwargs.enable_thinking = false may mend it" if thinks else ""
    return f"Training and use have {here} where the chat template's own conversations have {there}{hint}"


def tokenize(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """One sequence for each assistant turn and each right answer, rendered as inference at that turn sees it.

    Raises UserError for a turn without a trained token.
    """
    if renderer.masked:
        return _tokenize_masked(example, renderer)
    turns, sequences = example.messages, []
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = render_prompt(turns[:i], renderer, example.source)
            sequences.append(join(prompt, turn.content.strip(), renderer, example.source))
    prompt = render_prompt(turns, renderer, example.source)
    return [*sequences, *(join(prompt, answer.strip(), renderer, example.source) for answer in example.answers)]


def with_room_for(examples: Sequence[Example], renderer: Renderer) -> Renderer:
    """For masked language models: with blanks of as many masks as the longest of the answers has tokens."""
    if not renderer.masked or _is_plain_text(examples[0]):
        return renderer
    texts = set()
    for e in examples:
        lead = cloze.split_blank(e.messages[-1].content, e.source).lead
        texts |= {lead + word(answer, renderer) for answer in e.candidates or e.answers}
    return dataclasses.replace(renderer, masks=max(len(renderer.encode_part(text)[0]) for text in texts))


@functools.lru_cache(maxsize=10_000)  # the same labels for every example
def respelled(text: str, renderer: Renderer) -> str:
    """What the tokenizer makes of a text, there and back."""
    return decode(renderer.tokenizer, renderer.encode_part(f" {text}")[0].tolist(), skip_special=True).strip()


def _tokenize_masked(example: Example, renderer: Renderer) -> list[TokenizedExample]:
    """The text with each right answer in its blank; without a blank, sequences that hide every token once."""
    text, source = example.messages[-1].content, example.source
    if not _is_plain_text(example):
        blank = cloze.split_blank(text, source)
        words = [word(answer, renderer) for answer in example.answers]
        found = [cloze.fill_in(renderer.tokenizer, blank, w, renderer.masks, source) for w in words]
        return [_masked_sequence(hidden, source, (0, 1)) for hidden in found]
    pieces = list(cloze.turns(renderer.tokenizer, text, renderer.longest))
    if not pieces:
        raise UserError("The text has no tokens, so nothing would be trained", source, found=repr(text[:80]))
    return [_masked_sequence(hidden, source, (i, len(own))) for own in pieces for i, hidden in enumerate(own)]


def _is_plain_text(example: Example) -> bool:
    """Whether the text is its own answer: any token of it may be hidden."""
    return example.answers == (example.messages[-1].content,)


def _masked_sequence(found: cloze.Hidden, source: str, rotation: tuple[int, int]) -> TokenizedExample:
    weights = found.hidden.astype(np.float32)
    return TokenizedExample(found.token_ids, weights, found.text, found.char_spans, source, found.shown_ids, rotation)


def word(answer: str, renderer: Renderer) -> str:
    """What fills a masked language model's blank for an answer."""
    return renderer.words.get(answer, answer)


def join(prompt: RenderedPrompt, answer: str, renderer: Renderer, source: str) -> TokenizedExample:
    """Prompt, answer and ending as one sequence; answer and ending have weight 1. Raises UserError if nothing would."""
    completion, _ = completion_ids(prompt, answer, renderer)
    if len(completion) == len(renderer.ending):
        raise UserError("The answer has no tokens, so nothing would be trained", source, found=repr(answer))
    completed = prompt.lead + answer + renderer.ending_text
    text = prompt.text + completed
    lengths = np.array(renderer.text_lengths(tuple(completion)), dtype=np.int64)
    lengths[1:] += max(0, len(completed) - lengths[-1])  # decoded alone, some first tokens lose their space
    ends = len(prompt.text) + lengths
    spans = np.stack([ends[:-1], ends[1:]], axis=1)
    return TokenizedExample(
        np.concatenate([prompt.token_ids, np.array(completion, dtype=np.int64)]),
        np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt.token_ids), len(completion)]),
        text,
        np.concatenate([prompt.char_spans, spans]),
        source,
    )


def pieces(sequence: TokenizedExample) -> list[tuple[str, bool]]:
    """The text of each token and whether it is trained; together they are the whole text, each character once."""
    found, shown = [], 0
    for end, weight in zip(sequence.char_spans[:, 1].tolist(), sequence.loss_weights.tolist(), strict=True):
        found.append((sequence.text[shown:end], weight > 0))  # some tokenizers' spans overlap, others leave gaps
        shown = max(shown, end)
    return found


# ---- length ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """Examples that fit the context, and what was done to make them."""

    examples: tuple[Example, ...]
    dropped: int
    cut: int


def example_length(example: Example, renderer: Renderer) -> int:
    """Tokens of the prompt with the longest of the answers that may follow it, ending included."""
    if renderer.masked:
        return _masked_length(example, renderer)
    prompt = render_prompt(example.messages, renderer, example.source)
    answers = example.candidates or example.answers
    if prompt.tail is not None:
        return len(prompt.token_ids) + renderer.longest_answer(prompt.tail, answers) + len(renderer.ending)
    return len(prompt.token_ids) + max((len(completion_ids(prompt, a, renderer)[0]) for a in answers), default=0)


def _masked_length(example: Example, renderer: Renderer) -> int:
    """A plain text always fits: it is cut into pieces."""
    if _is_plain_text(example):
        if not len(renderer.encode_part(example.messages[-1].content)[0]):
            raise UserError("The text is empty, so nothing could be hidden", example.source, fix="remove the row")
        return 0
    blank = cloze.split_blank(example.messages[-1].content, example.source)
    answers = example.candidates or example.answers
    longest = max((len(renderer.encode_part(blank.lead + word(a, renderer))[0]) for a in answers), default=1)
    return len(cloze.with_masks(renderer.tokenizer, blank, max(longest, renderer.masks)).token_ids)


def fit_to_context(examples: Sequence[Example], renderer: Renderer, limit: int, overlong: str) -> Fitted:
    """Applies the setting ``overlong`` to examples of more than ``limit`` tokens. Raises UserError if it is "error"."""
    lengths = [example_length(example, renderer) for example in examples]
    long = [i for i, length in enumerate(lengths) if length > limit]
    if long and overlong == "error":
        worst = max(long, key=lambda i: lengths[i])
        raise UserError(
            f"{len(long)} of {len(examples)} examples are longer than the model's context",
            examples[worst].source,
            expected=f"at most {limit} tokens with the answer",
            found=f"{lengths[worst]} tokens here, the longest",
            fix='set [data] overlong = "cut_prompt" or "drop", or shorten the prompt',
        )
    if overlong == "drop":
        return Fitted(tuple(e for i, e in enumerate(examples) if lengths[i] <= limit), len(long), 0)
    cut = {i: _cut_prompt(examples[i], lengths[i] - limit, renderer, limit) for i in long}
    return Fitted(tuple(cut.get(i, e) for i, e in enumerate(examples)), 0, len(cut))


def _cut_prompt(example: Example, excess: int, renderer: Renderer, limit: int) -> Example:
    """Shortens the last user message until the example fits: its end, or what stands around a blank (``_cuttable``).

    Raises UserError if nothing would be left.
    """
    last = max(i for i, m in enumerate(example.messages) if m.role == "user")
    content = example.messages[last].content
    before, content, after, end = _cuttable(content) if BLANK in content else ("", content, "", True)
    spans = renderer.encode(content)[1]
    keep = len(spans) - excess
    while keep > 0:
        kept = content[: spans[keep - 1][1]].rstrip() if end else content[spans[-keep][0] :].lstrip()
        shorter = dataclasses.replace(example.messages[last], content=before + kept + after)
        messages = (*example.messages[:last], shorter, *example.messages[last + 1 :])
        candidate = dataclasses.replace(example, messages=messages)
        over = example_length(candidate, renderer) - limit
        if over <= 0:
            return candidate
        keep -= over
    raise UserError(
        "The prompt does not fit the model's context even without the row's text", example.source, f"{limit} tokens"
    )


def _cuttable(text: str) -> tuple[str, str, str, bool]:
    """What stands before, in, and after the part of a text with a blank that may be cut, and whether from its end.

    It is what stands above the line of the blank; without a line above it, the longer side of the blank.
    """
    start = text.index(BLANK)
    end = start + len(BLANK)
    line = text.rfind("\n", 0, start)
    if line > 0:
        return "", text[:line], text[line:], True
    if len(text) - end > start:
        return text[:end], text[end:], "", True
    return "", text[:start], text[start:], False

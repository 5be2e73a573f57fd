"""The template matrix: properties of rendering, tested with 71 real chat templates and 5 real tokenizers.

``PYTHONPATH=tests python tests/text/test_templates.py > docs/templates.md`` writes the table, which a test compares
with the current results and pytest prints at the end.
"""

import copy
import dataclasses
import datetime
import functools
import html
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, TABLE, needs_shared
from tiny import byte_tokenizer
from transformers.utils import chat_template_utils

from loratory.data.examples import Example, Message
from loratory.errors import UserError
from loratory.models.loading import LoadedTokenizer, load_tokenizer
from loratory.settings import ModelConfig, PromptConfig
from loratory.text.rendering import TokenizedExample, completion_ids, render_prompt, template_deviation, tokenize
from loratory.text.template import Renderer, check_system_is_shown, make_renderer
from loratory.tree.generation import decode_answer, greedy_settings

DATA = SHARED / "data"
DOCUMENT = Path(__file__).parents[2] / "docs" / "templates.md"
DAY, ANOTHER_DAY = datetime.datetime(2025, 1, 1), datetime.datetime(2031, 2, 3)


# ---- the tokenizer of each template ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The properties of a model that affect the rendering of its template; tokens are separated by spaces.

    The vocabulary is that of one of the available tokenizers; the special tokens are the model's own.
    """

    tokenizer: str
    bos: str | None = None
    """None: the one of the tokenizer; the same applies to ``eos``."""
    eos: str | None = None
    special: str = ""
    plain: str = ""
    """Added tokens that are not special, such as reasoning tags."""
    stops: str | None = None
    """The stop tokens in the model's generation config. None: those in the folder ``generation_configs``, if any."""


QWEN = Family("qwen2.5-instruct", plain="<think> </think>", stops="<|im_end|> <|endoftext|>")
LLAMA_2 = Family("phi-3.5-mini", eos="</s>")  # has Llama 2's vocabulary
LLAMA_3 = Family("llama-3.2-instruct", stops="<|end_of_text|> <|eom_id|> <|eot_id|>")
PHI_3 = Family("phi-3.5-mini", stops="<|end|> <|assistant|> <|endoftext|>")
GEMMA = Family(
    "qwen2.5-instruct", "<bos>", "<eos>", special="<start_of_turn> <end_of_turn>", stops="<eos> <end_of_turn>"
)
COHERE = Family(
    "qwen2.5-instruct", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>",
    special="<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|SYSTEM_TOKEN|> <|CHATBOT_TOKEN|> <|START_RESPONSE|> "
    "<|END_RESPONSE|>",
)  # fmt: skip
# The family of a template is given by the first key that its name starts with.
FAMILIES = {
    "trl/cohere": COHERE,
    "trl/deepseekv3": Family(
        "qwen2.5-instruct", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
        special="<｜User｜> <｜Assistant｜>", plain="<think> </think>",
    ),
    "trl/diffusion_gemma": Family(
        "qwen2.5-instruct", "<bos>", "<eos>", special="<|turn> <turn|> <|channel> <channel|>", stops="<eos> <turn|>"
    ),
    "trl/gemma": GEMMA,
    "trl/glm4moe": Family(
        "qwen2.5-instruct", eos="<|endoftext|>",
        special="[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
        plain="<think> </think>", stops="<|endoftext|> <|user|> <|observation|>",
    ),
    "trl/gptoss": Family(
        "qwen2.5-instruct", "<|startoftext|>", "<|return|>",
        special="<|start|> <|end|> <|message|> <|channel|> <|call|>", stops="<|return|> <|call|>",
    ),
    "trl/idefics3": LLAMA_3,
    "trl/lfm2": Family("qwen2.5-instruct", "<|startoftext|>"),
    "trl/llama3": LLAMA_3,
    "trl/llava_next": LLAMA_2,
    "trl/nemotron_3": QWEN,
    "trl/phi3": PHI_3,
    "trl/qwen": QWEN,
    "chat_templates/chatml": Family("phi-3.5-mini", eos="<|im_end|>", special="<|im_start|>"),
    "chat_templates/chatqa": Family("llama-3.2-instruct", eos="<|end_of_text|>"),
    "chat_templates/falcon": Family("gpt2"),
    "chat_templates/gemma": GEMMA,
    "chat_templates/granite": Family(
        "gpt2", eos="<|end_of_text|>", special="<|start_of_role|> <|end_of_role|>", stops="<|end_of_text|>"
    ),
    "chat_templates/llama-3": Family("llama-3.2-instruct"),
    "chat_templates/openchat": Family(
        "phi-3.5-mini", eos="</s>", special="<|end_of_turn|>", stops="</s> <|end_of_turn|>"
    ),
    "chat_templates/phi-3-small": Family(
        "qwen2.5-instruct", "<|endoftext|>", "<|endoftext|>",
        special="<|system|> <|user|> <|assistant|> <|end|>", stops="<|endoftext|> <|end|>",
    ),
    "chat_templates/phi-3": Family("phi-3.5-mini"),
    "chat_templates/qwen2.5": QWEN,
    "chat_templates/": LLAMA_2,
}  # fmt: skip
# Real tokenizers, with the architecture and the stop ids in their models' settings.
REAL: dict[str, tuple[str, list[int]]] = {
    "qwen2.5-instruct": ("qwen2", [151645, 151643]),
    "llama-3.2-instruct": ("llama", [128001, 128008, 128009]),
    "phi-3.5-mini": ("phi3", [32007, 32001, 32000]),
    "gpt2": ("gpt2", [50256]),
    "bert-base-uncased": ("bert", []),
}
TEMPLATES = sorted(
    path.relative_to(DATA / "templates").with_suffix("").as_posix() for path in DATA.glob("templates/*/*.jinja")
)
NAMES = [*TEMPLATES, *(f"tokenizers/{name}" for name in REAL)] if SHARED.exists() else []
# Templates that cannot be used: the text of the error, and the reason.
ONLY_LISTS = ("drops the user message", "supports content only as a list of parts, not as text")
REJECTED = {
    "trl/idefics3": ONLY_LISTS,
    "trl/idefics3_training": ONLY_LISTS,
    "trl/llava_next": ONLY_LISTS,
    "trl/llava_next_training": ONLY_LISTS,
    "tokenizers/bert-base-uncased": (
        "defines how an answer ends",
        "a masked language model, which fills [MASK] tokens and has no stop token",
    ),
}
# Templates that put the beginning-of-sequence token before every turn, not only before the conversation.
BEGIN_TURNS = ("chat_templates/llama-2-chat", "chat_templates/saiga")
NO_SYSTEM = ("trl/gemma", "trl/gemma_training")


@functools.cache
def from_model_folder(name: str) -> LoadedTokenizer:
    """A real tokenizer, loaded as in a run: from a model folder, with the stop ids in the model's settings."""
    model_type, stops = REAL[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in (DATA / "tokenizers" / name).iterdir():
            (folder / path.name).symlink_to(path)
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "eos_token_id": None}))
        if stops:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        loaded_tokenizer = load_tokenizer(ModelConfig(str(folder)))
    eos = loaded_tokenizer.tokenizer.eos_token_id
    assert set(loaded_tokenizer.stop_ids) == {*stops, *([eos] if eos is not None else [])}
    return loaded_tokenizer


@functools.cache
def read(name: str) -> Any:
    """A tokenizer with the special tokens of all families that use it."""
    tokenizer = from_model_folder(name).tokenizer
    families = [family for family in FAMILIES.values() if family.tokenizer == name]
    texts = [" ".join([f.special, f.bos or "", f.eos or "", f.stops or ""]).split() for f in families]
    known = set(tokenizer.get_vocab())
    tokenizer.add_tokens(sorted({t for text in texts for t in text} - known), special_tokens=True)
    tokenizer.add_tokens(sorted({t for family in families for t in family.plain.split()} - known))
    return tokenizer


def family_of(name: str) -> Family:
    return next(family for start, family in FAMILIES.items() if name.startswith(start))


def template_of(name: str) -> str:
    text = (DATA / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    # The files in this folder are indented for readability and meant to be used without indentation and newlines.
    return text.replace("    ", "").replace("\n", "") if name.startswith("chat_templates/") else text


@functools.cache
def loaded(name: str) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer with the template, and the stop ids in the model's settings."""
    if name.startswith("tokenizers/"):
        text = from_model_folder(name.removeprefix("tokenizers/"))
        return text.tokenizer, text.stop_ids
    family = family_of(name)
    shared = read(family.tokenizer)
    tokenizer = copy.copy(shared)
    tokenizer._special_tokens_map = dict(shared._special_tokens_map)  # copied, because it is changed below
    tokenizer.bos_token = family.bos or shared.bos_token
    tokenizer.eos_token = family.eos or shared.eos_token
    tokenizer.chat_template = template_of(name)
    config = DATA / "templates" / "chat_templates" / "generation_configs" / f"{Path(name).name}.json"
    if family.stops is not None:
        stops = tokenizer.convert_tokens_to_ids(family.stops.split())
    else:
        # These ids refer to the vocabulary of the tokenizer used here.
        stops = json.loads(config.read_text())["stop_token_ids"] if config.exists() else []
    return tokenizer, tuple(sorted({*stops, tokenizer.eos_token_id}))


@functools.cache
def renderer_of(name: str) -> Renderer:
    return make_renderer(*loaded(name), PromptConfig(date=DAY.date().isoformat()))


# ---- reference: rendering by Transformers ----------------------------------------------------------------------------


@contextmanager
def on(day: datetime.datetime) -> Iterator[None]:
    """Context manager that sets the date that templates see."""

    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return day

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Today)
        yield


def transformers_rendering(
    name: str, messages: Sequence[Message], prompt: bool, day=DAY, **arguments: Any
) -> tuple[str, list[int]]:
    """Text and ids from the tokenizer's own ``apply_chat_template`` on the given day."""
    tokenizer, _ = loaded(name)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    with on(day):
        text, ids = (
            tokenizer.apply_chat_template(
                turns, add_generation_prompt=prompt, tokenize=tokens, return_dict=False, **arguments
            )
            for tokens in (False, True)
        )
    return text, ids


USERS = ("Is it so?", "  Zeile 1 \n\n{x} ü 日本 🤖\n", "the last question")
ANSWERS = ("yes", "New York", "two\nlines", "ü 日本語 🤖", "1.5 %")
SINGLE = tuple((Message("user", text),) for text in USERS)
CONVERSATION = (*SINGLE[0], Message("assistant", " no\n"), *SINGLE[1], Message("assistant", "New York"), *SINGLE[2])
SYSTEM = Message("system", "Answer with one of: a, b.")


def sequences(messages: Sequence[Message], answer: str, renderer: Renderer) -> list[TokenizedExample]:
    return tokenize(Example(tuple(messages), (answer,), (), "a.csv:2"), renderer)


def trained(sequence: TokenizedExample) -> list[int]:
    return sequence.token_ids[sequence.loss_weights > 0].tolist()


# ---- the properties: each raises AssertionError or returns how it holds ----------------------------------------------


def same_bytes(name: str) -> str:
    """In training and inference, the prompt's text and ids equal those of the tokenizer's own rendering."""
    renderer = renderer_of(name)
    for messages in (*SINGLE, CONVERSATION):
        text, ids = transformers_rendering(name, messages, prompt=True)
        prompt = render_prompt(messages, renderer)
        assert prompt.text == text
        assert prompt.token_ids.tolist() == ids
        sequence = sequences(messages, "yes", renderer)[-1]
        assert sequence.token_ids[: len(ids)].tolist() == ids
        assert not sequence.loss_weights[: len(ids)].any() and sequence.loss_weights[len(ids) :].all()
    return "ok"


def stop_is_trained(name: str) -> str:
    """The last trained token, and no earlier one, stops generation; also without a generation config."""
    tokenizer, given = loaded(name)
    has_stop = [_check_ending(name, stops) for stops in {given, (tokenizer.eos_token_id,)}]
    return "ok" if renderer_of(name).ending[-1] in given and all(has_stop) else "reported"


def _check_ending(name: str, given: tuple[int, ...]) -> bool:
    """Whether the template itself puts a stop token after an answer."""
    tokenizer, _ = loaded(name)
    renderer = make_renderer(tokenizer, given, PromptConfig(date=DAY.date().isoformat()))
    stops = set(renderer.stop_ids)
    assert stops == {*given, renderer.ending[-1]}
    assert set(greedy_settings(renderer.stop_ids, 0, 1).eos_token_id) == stops
    for answer in ANSWERS:
        ids = trained(sequences(SINGLE[0], answer, renderer)[0])
        assert tuple(ids[-len(renderer.ending) :]) == renderer.ending
        assert [i for i in ids if i in stops] == [ids[-1]]
        assert decode_answer(ids, renderer).strip() == answer
    text, ids = transformers_rendering(name, (*SINGLE[0], Message("assistant", "yes")), prompt=False)
    tail = text.rpartition("yes")[2]
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    for candidates in (given, special):
        ends = [tail.find(t) + len(t) for t in tokenizer.convert_ids_to_tokens(list(candidates)) if t in tail]
        if ends:
            # Some special tokens absorb the white space around them.
            assert "".join(renderer.ending_text.split()) == "".join(tail[: min(ends)].split())
            size = len(renderer.ending)
            assert any(tuple(ids[i : i + size]) == renderer.ending for i in range(len(ids)))
            return True
    assert renderer.ending == (tokenizer.eos_token_id,)
    assert "puts no stop token" in renderer.note
    return False


def one_bos(name: str) -> str:
    """The beginning-of-sequence token appears at most once, at the start."""
    renderer = renderer_of(name)
    bos, eos = renderer.tokenizer.bos_token_id, renderer.tokenizer.eos_token_id
    counts = []
    for messages in (*SINGLE, CONVERSATION) if bos != eos else SINGLE:
        ids = render_prompt(messages, renderer).token_ids.tolist()
        assert bos is None or ids[:2] != [bos, bos]
        assert bos not in ids or ids[0] == bos
        counts.append(ids.count(bos))
    if name in BEGIN_TURNS:
        assert max(counts) > 1
        return "own"
    assert max(counts) <= 1
    return "ok"


def prompt_is_a_prefix(name: str) -> str:
    """The template's own rendering begins with prompt, answer and ending, or the difference is reported."""
    renderer = renderer_of(name)
    deviation = template_deviation(renderer)
    for answer in ANSWERS:
        prompt = render_prompt(SINGLE[0], renderer)
        completion, in_context = completion_ids(prompt, answer, renderer)
        sequence = sequences(SINGLE[0], answer, renderer)[0]
        assert sequence.token_ids.tolist() == [*prompt.token_ids.tolist(), *completion]
        assert sequence.text == prompt.text + renderer.leading_space + answer + renderer.ending_text
        with_answer = renderer.tokenizer(prompt.text + renderer.leading_space + answer, add_special_tokens=False)[
            "input_ids"
        ]
        alone = renderer.tokenizer(renderer.leading_space + answer, add_special_tokens=False)["input_ids"]
        start = len(prompt.token_ids)
        assert in_context == (with_answer[:start] == prompt.token_ids.tolist())
        assert completion == [*(with_answer[start:] if in_context else alone), *renderer.ending]
        _, ids = transformers_rendering(name, (*SINGLE[0], Message("assistant", answer)), prompt=False)
        assert (ids[: len(sequence.token_ids)] == sequence.token_ids.tolist()) == (deviation is None)
    if deviation:
        assert "ANSWER" in deviation or repr(renderer.ending_text) in deviation
        assert ("enable_thinking = false" in deviation) == ("enable_thinking" in switches_of(name))
    return "reported" if deviation else "ok"


def system_is_shown(name: str) -> str:
    """A system message appears in the prompt, or an error reports that it does not."""
    renderer = renderer_of(name)
    if name in NO_SYSTEM:
        with pytest.raises(UserError, match=r"rejects these messages|drops the system message") as caught:
            check_system_is_shown(renderer)
        assert "[prompt] user" in str(caught.value.fix)
        return "rejected"
    check_system_is_shown(renderer)
    for messages in ((SYSTEM, *SINGLE[0]), (SYSTEM, *CONVERSATION)):
        text, ids = transformers_rendering(name, messages, prompt=True)
        prompt = render_prompt(messages, renderer)
        assert SYSTEM.content in prompt.text
        assert (prompt.text, prompt.token_ids.tolist()) == (text, ids)
    return "ok"


def turns_are_sequences(name: str) -> str:
    """Each assistant turn is a sequence, rendered as at inference; only its answer and ending are trained."""
    renderer = renderer_of(name)
    turns = sequences(CONVERSATION, "ü 日本", renderer)
    assert len(turns) == 3
    for sequence, end, answer in zip(turns, (1, 3, 5), ("no", "New York", "ü 日本"), strict=True):
        text, ids = transformers_rendering(name, CONVERSATION[:end], prompt=True)
        assert sequence.text == text + renderer.leading_space + answer + renderer.ending_text
        assert sequence.token_ids[: len(ids)].tolist() == ids
        alone = sequences(CONVERSATION[:end], answer, renderer)[-1]
        assert alone.token_ids.tolist() == sequence.token_ids.tolist()
        assert trained(sequence) == sequence.token_ids[len(ids) :].tolist()
        assert "no" in text or end == 1, "earlier answers are part of the prompt"
    return "ok"


SWITCHES: dict[str, Any] = {
    "enable_thinking": False, "preserve_thinking": True, "truncate_history_thinking": False, "low_effort": True,
    "medium_effort": True, "reasoning_effort": "high", "model_identity": "a parrot", "date_string": "03 Feb 2031",
    "add_vision_id": True,
}  # fmt: skip


def switches_of(name: str) -> list[str]:
    """The arguments that appear in the template's source."""
    source = re.sub(r"{#.*?#}", "", loaded(name)[0].chat_template, flags=re.DOTALL)
    return [switch for switch in SWITCHES if switch in source]


def arguments_are_frozen(name: str) -> str:
    """The bytes are the same on another day and with saved settings; a misspelled argument is an error."""
    tokenizer, stops = loaded(name)
    switches = switches_of(name)
    for arguments in ({}, {switch: SWITCHES[switch] for switch in switches}):
        config = PromptConfig(template_kwargs=arguments, date=DAY.date().isoformat())
        saved = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
        again = PromptConfig(**json.loads(json.dumps(saved)))
        texts = set()
        for day in (DAY, ANOTHER_DAY):
            with on(day):
                texts |= {render_prompt(CONVERSATION, make_renderer(tokenizer, stops, c)).text for c in (config, again)}
        assert texts == {transformers_rendering(name, CONVERSATION, prompt=True, **arguments)[0]}
    for switch in [*switches, "no_such_argument"]:
        with pytest.raises(UserError, match="has no argument") as caught:
            make_renderer(tokenizer, stops, PromptConfig(template_kwargs={switch + "q": True}))
        assert (repr(switch) in str(caught.value.fix)) == (switch in SWITCHES)
    return "ok"


def trained_text_is_the_answer(name: str) -> str:
    """The trained ids decode to answer and ending, and their character spans cover the same text."""
    renderer = renderer_of(name)
    for answer in ANSWERS:
        sequence = sequences(SINGLE[0], answer, renderer)[0]
        assert renderer.tokenizer.decode(trained(sequence)).lstrip() == answer + renderer.ending_text
        spans = sequence.char_spans[sequence.loss_weights > 0]
        covered = "".join(sequence.text[start:end] for start, end in spans)
        assert covered == renderer.leading_space + answer + renderer.ending_text
        assert sequence.text.endswith(answer + renderer.ending_text)
    return "ok"


PROPERTIES: dict[str, Callable[[str], str]] = {
    "bytes": same_bytes,
    "stop": stop_is_trained,
    "BOS": one_bos,
    "prefix": prompt_is_a_prefix,
    "system": system_is_shown,
    "turns": turns_are_sequences,
    "frozen": arguments_are_frozen,
    "decode": trained_text_is_the_answer,
}


@functools.cache
def cell(name: str, column: str) -> str:
    """The result for a template and a property. A known unusable template must be rejected with the right error."""
    if name in REJECTED:
        with pytest.raises(UserError, match=REJECTED[name][0]):
            renderer_of(name)
        return "rejected"
    return PROPERTIES[column](name)


# ---- the matrix ------------------------------------------------------------------------------------------------------


def notes(name: str) -> str:
    """Notes on a template for the last column."""
    if name in REJECTED:
        return f"rejected: {REJECTED[name][1]}"
    renderer = renderer_of(name)
    parts = []
    if (deviation := template_deviation(renderer)) is not None:
        parts.append(deviation)
    if name in BEGIN_TURNS:
        parts.append("puts BOS before every turn")
    if (
        transformers_rendering(name, SINGLE[0], True)[0]
        != transformers_rendering(name, SINGLE[0], True, ANOTHER_DAY)[0]
    ):
        parts.append("shows the date")
    if switches := switches_of(name):
        parts.append(f"arguments: {', '.join(switches)}")
    return "; ".join(parts)


def total(table: dict[str, dict[str, str]]) -> str:
    rejected = sum(set(cells.values()) == {"rejected"} for cells in table.values())
    templates = sum(not name.startswith("tokenizers/") for name in table)
    return (
        f"{templates} templates + {len(table) - templates} tokenizers: {len(table) - rejected} usable, "
        f"{rejected} rejected, {len(NAMES) - len(table)} skipped"
    )


def table_lines(table: dict[str, dict[str, str]]) -> list[str]:
    """The matrix for a terminal, one line per template."""
    lines = [f"{'':38}" + "".join(f"{column:9}" for column in PROPERTIES)]
    lines += [f"{name:38}" + "".join(f"{cells.get(c, '-'):9}" for c in PROPERTIES) for name, cells in table.items()]
    return [*lines, total(table)]


def document() -> str:
    """The text of docs/templates.md."""
    table = {name: {column: cell(name, column) for column in PROPERTIES} for name in NAMES}

    rows = []
    for name, cells in table.items():
        ending = "" if name in REJECTED else f"<code>{html.escape(renderer_of(name).ending_text)}</code>"
        row = [name, ending, *(cells[column] for column in PROPERTIES), html.escape(notes(name), quote=False)]
        rows.append(f"| {' | '.join(text.replace('|', '&#124;') for text in row)} |")
    properties = "\n".join(f"- **{column}**: {(check.__doc__ or '').strip()}" for column, check in PROPERTIES.items())
    return f"""# Tested chat templates

This page is generated by `PYTHONPATH=tests python tests/text/test_templates.py > docs/templates.md`, and a test checks
that it is current. Templates are named after their files. Each is rendered with a real tokenizer to which the special
tokens of the template's model have been added.

**{total(table)}.**

{properties}

`ok`: the property holds. `reported`: the template puts no stop token after an answer, or writes something else around
an answer; training and inference still agree, and a run reports the difference. `own`: the template deviates, and its
own rendering is used unchanged. `rejected`: an error states the reason.

| name | ending | {" | ".join(PROPERTIES)} | notes |
|{" --- |" * (len(PROPERTIES) + 3)}
{chr(10).join(rows)}
"""


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, str]]]:
    """Collects the results; pytest prints them at the end."""
    results: dict[str, dict[str, str]] = {}
    yield results
    request.config.stash[TABLE] = table_lines(results)


@pytest.mark.thorough
@needs_shared
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", PROPERTIES)
def test_the_property_holds_for_the_template(name: str, column: str, table):
    table.setdefault(name, {})[column] = "FAILED"
    table[name][column] = cell(name, column)


@needs_shared
def test_no_template_is_missing():
    counts = [sum(name.startswith(folder) for name in NAMES) for folder in ("trl/", "chat_templates/", "tokenizers/")]
    assert counts == [53, 18, len(list((DATA / "tokenizers").iterdir()))]


@needs_shared
def test_the_templates_page_is_current():
    assert DOCUMENT.read_text(encoding="utf-8") == document(), (
        "run: PYTHONPATH=tests python tests/text/test_templates.py > docs/templates.md"
    )


@needs_shared
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("trl/qwen3_5", "trl/qwen3_6", "trl/nemotron_3"))])
def test_a_template_closes_its_thinking_block_if_thinking_is_disabled(name: str):
    off = PromptConfig(template_kwargs={"enable_thinking": False}, date=DAY.date().isoformat())
    assert template_deviation(make_renderer(*loaded(name), off)) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0]['content'].index('no such text') }}",
        "{{ messages[0]['content'].__class__.__mro__ }}",
        "{% include 'another' %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_a_failing_template_raises_a_user_error(source: str):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    for arguments in ({}, {"an_argument": 1}):
        with pytest.raises(UserError, match="chat template"):
            make_renderer(tokenizer, (), PromptConfig(template_kwargs=arguments))


def test_a_computed_date_format_is_rejected():
    tokenizer = byte_tokenizer()
    template = tokenizer.chat_template
    for call in ("strftime_now(given)", "strftime_now('%d' ~ '%m')", "strftime_now (format='%d')"):
        tokenizer.chat_template = template + "{{ " + call + " }}"
        with pytest.raises(UserError, match="cannot be frozen"):
            make_renderer(tokenizer, (), PromptConfig())
    for harmless in ("{# strftime_now(format) #}", "{% if strftime_now is defined %}{% endif %}"):
        tokenizer.chat_template = template + harmless
        make_renderer(tokenizer, (), PromptConfig())


if __name__ == "__main__":
    print(document(), end="")

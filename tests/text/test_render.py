"""Rendering: the tokenizer's own template byte for byte, the answer and its end trained, nothing else, never cut."""

import copy
import datetime
import functools
from typing import Any

import numpy as np
import pytest
from conftest import SHARED, needs_shared
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from loratory.config import PromptConfig
from loratory.data.examples import Example, Message, with_shots
from loratory.errors import UserError
from loratory.models.loading import PLAIN_TEMPLATE
from loratory.text.context import Fitted, example_length, fit_to_context
from loratory.text.rendering import TokenizedExample, completion_ids, render_prompt, tokenize
from loratory.text.template import Renderer, check_system_is_shown, make_renderer

pytestmark = needs_shared
quick = settings(derandomize=True, deadline=None, max_examples=20)
DAY = PromptConfig(date="2025-01-01")
DATA = SHARED / "data"
# Tokens that templates of other models put to use; the tokenizer "qwen2.5+" knows them.
TOKENS = [
    "<think>",
    "</think>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
]
# name -> tokenizer, template (None: its own), template arguments,
# and whether the template is plain: what it puts after prompt and answer is what is trained.
SETTINGS: dict[str, tuple[str, str | None, dict[str, Any], bool]] = {
    "qwen2.5": ("qwen2.5-instruct", None, {}, True),
    "llama-3.2": ("llama-3.2-instruct", None, {}, True),
    "phi-3.5": ("phi-3.5-mini", None, {}, True),
    "trl/qwen2_5": ("qwen2.5-instruct", "trl/qwen2_5", {}, True),
    "trl/qwen3": ("qwen2.5+", "trl/qwen3", {}, False),
    "trl/qwen3, no thinking": ("qwen2.5+", "trl/qwen3", {"enable_thinking": False}, True),
    "trl/llama3": ("llama-3.2-instruct", "trl/llama3", {}, True),
    "trl/gemma": ("qwen2.5+", "trl/gemma", {}, True),
    "trl/gemma without its tokens": ("qwen2.5-instruct", "trl/gemma", {}, False),
    "trl/gptoss": ("qwen2.5-instruct", "trl/gptoss", {}, False),
    "trl/phi3": ("qwen2.5+", "trl/phi3", {}, True),
    "chatml": ("qwen2.5-instruct", "chat_templates/chatml", {}, False),
    "plain, gpt2": ("gpt2", "plain", {}, True),
    "plain, stories260K": ("../models/stories260K", "plain", {}, True),
}
NAMES = list(SETTINGS)
PLAIN = [name for name in NAMES if SETTINGS[name][3]]
made: dict[str, Renderer] = {}


@functools.cache
def read(name: str) -> Any:
    """A tokenizer as it is on disk; read once, and not to be changed."""
    folder = (DATA / "tokenizers" / name.replace("+", "-instruct")).resolve()
    tokenizer = AutoTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=False)
    if name.endswith("+"):
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    return tokenizer


def with_template(tokenizer: Any, template: str | None) -> Any:
    """The same tokenizer under another template."""
    own = copy.copy(tokenizer)
    own.chat_template = template
    return own


def template_of(name: str) -> str:
    return PLAIN_TEMPLATE if name == "plain" else (DATA / "templates" / f"{name}.jinja").read_text()


def renderer_of(name: str) -> Renderer:
    """The renderer of a setting; made once."""
    if name not in made:
        tokenizer_name, template, arguments, _ = SETTINGS[name]
        tokenizer = read(tokenizer_name)
        if template:
            tokenizer = with_template(tokenizer, template_of(template))
        prompt = PromptConfig(template_kwargs=arguments, date=DAY.date)
        made[name] = make_renderer(tokenizer, (tokenizer.eos_token_id,), prompt)
    return made[name]


over_all = pytest.mark.parametrize("name", NAMES)
over_plain = pytest.mark.parametrize("name", PLAIN)
over_three = pytest.mark.parametrize("name", ["qwen2.5", "llama-3.2", "phi-3.5"])
over_tokenizers = pytest.mark.parametrize(
    "name", ["qwen2.5", "llama-3.2", "phi-3.5", "trl/gptoss", "plain, gpt2", "plain, stories260K"]
)


def on_qwen(template: str | None) -> Any:
    return with_template(read("qwen2.5-instruct"), template)


def asked(*contents: str, answer: str = "yes") -> Example:
    """User, assistant, user, ... and the answer."""
    roles = ("user", "assistant")
    return Example(tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)), (answer,), (), "a.csv:2")


def own_ids(name: str, messages: tuple[Message, ...], prompt: bool) -> list[int]:
    """What the tokenizer itself makes of the messages on the first day of 2025."""
    tokenizer_name, template, arguments, _ = SETTINGS[name]
    tokenizer = read(tokenizer_name)
    source = template_of(template) if template else tokenizer.chat_template
    day = {"date_string": "01 Jan 2025"} if "date_string" in source else {}
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(
        turns,
        chat_template=source.replace('strftime_now("%Y-%m-%d")', '"2025-01-01"'),
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=False,
        **arguments,
        **day,
    )


def trained(sequence: TokenizedExample) -> list[int]:
    return sequence.token_ids[sequence.loss_weights > 0].tolist()


words = st.text(st.sampled_from(list("abc ,.?\n\t{}ünï日🤖")), min_size=1, max_size=12)
answers = words.map(str.strip).filter(bool)


# ---- the prompt ------------------------------------------------------------------------------------------------------


@over_all
@given(words, answers, words)
@case("<|im_end|> x", "<|assistant|>", " <s>Answer:\n")
@quick
def test_the_prompt_is_byte_for_byte_the_tokenizers_own(name: str, first: str, answer: str, second: str):
    renderer = renderer_of(name)
    for one in (asked(first), asked(first, answer, second)):
        expected = own_ids(name, one.messages, prompt=True)
        assert render_prompt(one.messages, renderer).token_ids.tolist() == expected
        assert tokenize(one, renderer)[-1].token_ids[: len(expected)].tolist() == expected


@over_three
def test_the_prompt_with_a_system_message_is_the_tokenizers_own(name: str):
    renderer = renderer_of(name)
    messages = (Message("system", " One of: a, b.\n"), Message("user", "Is it so?"))
    assert render_prompt(messages, renderer).token_ids.tolist() == own_ids(name, messages, prompt=True)


@over_all
def test_a_prompt_has_at_most_one_beginning(name: str):
    renderer = renderer_of(name)
    bos = renderer.tokenizer.bos_token_id
    ids = render_prompt(asked("Is it so?").messages, renderer).token_ids.tolist()
    assert ids.count(bos) <= 1 and bos not in ids[1:]


def test_a_template_with_two_beginnings_is_refused():
    tokenizer = read("llama-3.2-instruct")
    twice = with_template(tokenizer, "{{ bos_token }}" + PLAIN_TEMPLATE)
    with pytest.raises(UserError, match="two beginning-of-sequence"):
        render_prompt(asked("Q").messages, make_renderer(twice, (tokenizer.eos_token_id,), DAY))


# ---- what is trained -------------------------------------------------------------------------------------------------


@over_plain
@pytest.mark.parametrize("answer", ["yes", "New York", "two\nlines", "ü 日本語", "1.5"])
def test_prompt_answer_and_ending_begin_the_templates_own_rendering(name: str, answer: str):
    renderer = renderer_of(name)
    found = tokenize(asked("Is it so?", answer=answer), renderer)[0]
    whole = own_ids(name, (*asked("Is it so?").messages, Message("assistant", answer)), prompt=False)
    assert found.token_ids.tolist() == whole[: len(found.token_ids)]
    left_over = renderer.tokenizer.decode(whole[len(found.token_ids) :])
    assert "yes" not in left_over and len(left_over.strip()) <= len("<|endoftext|>")


@over_tokenizers
@given(st.lists(words, min_size=1, max_size=1), answers)
@case(["Q"], "naïve 🤖 ok")
@case(["Q"], "🏳️‍🌈")
@case(["Q"], "Hello , world . do n't")
@quick
def test_answer_and_ending_are_trained_and_the_prompt_is_not(name: str, texts: list[str], answer: str):
    renderer = renderer_of(name)
    found = tokenize(asked(*texts, answer=answer), renderer)[0]
    start = len(own_ids(name, asked(*texts).messages, prompt=True))
    assert not found.loss_weights[:start].any() and (found.loss_weights[start:] == 1).all()
    assert tuple(trained(found)[-len(renderer.ending) :]) == renderer.ending
    assert trained(found)[-1] in renderer.stop_ids
    assert renderer.tokenizer.decode(trained(found)[: -len(renderer.ending)]).strip() == answer


@over_tokenizers
@given(answers)
@case("naïve 🤖 ok")
@case("🏳️‍🌈")
@case("日本語 \t x")
@quick
def test_the_characters_of_the_trained_tokens_are_answer_and_ending(name: str, answer: str):
    renderer = renderer_of(name)
    found = tokenize(asked("Is it so?", answer=answer), renderer)[0]
    spans = found.char_spans[found.loss_weights > 0]
    assert (spans[:, 0] <= spans[:, 1]).all()
    assert "".join(found.text[start:end] for start, end in spans) == renderer.lead + answer + renderer.ending_text
    assert spans[-1][1] == len(found.text)


@over_tokenizers
@given(st.lists(words, min_size=1, max_size=2), st.lists(answers, min_size=1, max_size=4))
@case(["Q"], ["yes", "yes it is", "ye", "yes"])
@quick
def test_an_answer_is_tokenized_in_its_context_where_the_prompts_ids_stay(
    name: str, texts: list[str], drawn: list[str]
):
    renderer = renderer_of(name)
    for text in texts:
        prompt = render_prompt(asked(text).messages, renderer)
        for answer in (*drawn, *drawn):
            ids, in_context = completion_ids(prompt, answer, renderer)
            both = renderer.tokenizer(prompt.text + answer, add_special_tokens=False)["input_ids"]
            start = len(prompt.token_ids)
            holds = both[:start] == prompt.token_ids.tolist() and len(both) > start
            alone = renderer.tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert in_context == holds
            assert ids == [*(both[start:] if holds else alone), *renderer.ending]


def test_an_answer_that_would_merge_with_the_prompt_is_tokenized_alone():
    # "A: " followed by "yes" is the token " yes", but inference sees the prompt's own space.
    tokenizer = on_qwen("{% for m in messages %}{{ m['content'] }}\n{% endfor %}A: ")
    renderer = make_renderer(tokenizer, (tokenizer.eos_token_id,), DAY)
    prompt = render_prompt(asked("Q").messages, renderer)
    assert prompt.tail is None
    ids, in_context = completion_ids(prompt, "yes", renderer)
    assert (ids, in_context) == ([*tokenizer("yes")["input_ids"], *renderer.ending], False)


@over_all
@pytest.mark.parametrize("answer", [" yes ", "yes\n", "\n\tyes"])
def test_outer_white_space_of_an_answer_changes_nothing(name: str, answer: str):
    renderer = renderer_of(name)
    found, expected = (tokenize(asked("Is it so?", answer=a), renderer)[0] for a in (answer, "yes"))
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.text == expected.text


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_answer_without_tokens_is_refused_with_its_place(answer: str):
    with pytest.raises(UserError, match="no tokens") as caught:
        tokenize(asked("Is it so?", answer=answer), renderer_of("qwen2.5"))
    assert caught.value.where == "a.csv:2"


# ---- the ending ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2.5", "phi-3.5", "plain, gpt2", "plain, stories260K"])
def test_a_padding_token_that_is_the_stop_token_cannot_remove_it(name: str):
    renderer = renderer_of(name)
    before = tokenize(asked("Is it so?"), renderer)[0]
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(renderer.ending[-1])
    found = tokenize(asked("Is it so?"), make_renderer(tokenizer, renderer.stop_ids, DAY))[0]
    assert trained(found) == trained(before) and trained(found)[-1] == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("name", "ending", "note"),
    [
        ("qwen2.5", "<|im_end|>", "the template's own stop token"),
        ("llama-3.2", "<|eot_id|>", "the template's own stop token"),
        ("trl/gemma", "<end_of_turn>", "the template's special token"),
        ("trl/gemma without its tokens", "<|im_end|>", "the tokenizer's end-of-sequence token"),
        ("plain, gpt2", "<|endoftext|>", "the template's own stop token"),
        ("plain, stories260K", "</s>", "the template's own stop token"),
    ],
)
def test_an_answer_ends_as_the_template_ends_it(name: str, ending: str, note: str):
    renderer = renderer_of(name)
    assert renderer.ending_text == ending
    assert note in renderer.note
    assert set(renderer.stop_ids) == {renderer.tokenizer.eos_token_id, renderer.ending[-1]}


def test_a_stop_id_that_the_model_adds_to_the_tokenizers_ends_the_answer():
    tokenizer = read("phi-3.5-mini")
    end, eos = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id
    renderer = make_renderer(tokenizer, (eos, end), DAY)
    assert renderer.ending == (end,) and set(renderer.stop_ids) == {eos, end}


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = copy.deepcopy(read("../models/stories260K"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="how an answer ends"):
        make_renderer(tokenizer, (), DAY)


# ---- several turns ---------------------------------------------------------------------------------------------------


@over_all
@given(st.lists(answers, min_size=5, max_size=5))
@quick
def test_every_assistant_turn_is_its_own_sequence_as_inference_sees_it(name: str, texts: list[str]):
    renderer = renderer_of(name)
    whole = tokenize(asked(*texts, answer="yes"), renderer)
    prefixes = [asked(texts[0], answer=texts[1]), asked(*texts[:3], answer=texts[3]), asked(*texts)]
    assert len(whole) == 3
    for found, prefix in zip(whole, prefixes, strict=True):
        alone = tokenize(prefix, renderer)[-1]
        assert found.token_ids.tolist() == alone.token_ids.tolist()
        assert found.loss_weights.tolist() == alone.loss_weights.tolist()


@over_three
def test_a_few_shot_prompt_is_a_conversation_of_the_same_template(name: str):
    renderer = renderer_of(name)
    shots = [asked("Q1", answer="no"), asked("Q2", answer="yes")]
    found = with_shots(asked("Q3"), shots)
    expected = own_ids(name, asked("Q1", "no", "Q2", "yes", "Q3").messages, prompt=True)
    assert render_prompt(found.messages, renderer).token_ids.tolist() == expected


# ---- template arguments and dates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fix"), [("enable_thinkin", "'enable_thinking'"), ("zzz", "it knows:"), ("messages", ""), ("tools", "")]
)
def test_an_argument_that_the_template_does_not_know_is_refused(name: str, fix: str):
    tokenizer = renderer_of("trl/qwen3").tokenizer
    with pytest.raises(UserError, match=f"no argument '{name}'") as caught:
        make_renderer(tokenizer, (tokenizer.eos_token_id,), PromptConfig(template_kwargs={name: False}), "task.toml")
    assert fix in str(caught.value.fix)
    assert caught.value.where == "task.toml, prompt.template_kwargs"


def test_a_template_argument_changes_the_prompt_as_the_template_says():
    messages = asked("Is it so?").messages
    with_it, without = (render_prompt(messages, renderer_of(f"trl/qwen3{x}")).text for x in (", no thinking", ""))
    assert with_it == without + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "shown"), [("llama-3.2", "Today Date: 01 Jan 2025\n"), ("trl/gptoss", "Current date: 2025-01-01\n")]
)
def test_the_day_in_a_prompt_is_frozen(name: str, shown: str, monkeypatch):
    renderer = renderer_of(name)
    turns, texts, own = [{"role": "user", "content": "Q"}], set(), set()
    for day in (3, 4):

        class Today(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 2, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Today)
        tokenizer = renderer.tokenizer
        own.add(tokenizer.apply_chat_template(turns, tokenize=False))
        again = make_renderer(tokenizer, (tokenizer.eos_token_id,), DAY)
        for one in (renderer, again):
            texts.add(render_prompt(asked("Q").messages, one).text)
    assert len(own) == 2, "the template shows the day"
    assert len(texts) == 1 and shown in texts.pop()


def test_the_day_is_today_where_none_is_set_and_a_wrong_one_is_refused():
    tokenizer = renderer_of("qwen2.5").tokenizer
    found = {datetime.date.today().isoformat()}
    date = make_renderer(tokenizer, (0,), PromptConfig()).date
    assert date in found | {datetime.date.today().isoformat()}
    for wrong in ("01.02.2025", "2025-13-01", "today", ""):
        with pytest.raises(UserError, match=r"prompt\.date is no date"):
            make_renderer(tokenizer, (0,), PromptConfig(date=wrong))


# ---- templates that refuse or drop -----------------------------------------------------------------------------------


def test_a_template_that_refuses_system_messages_says_where_their_text_can_go():
    with pytest.raises(UserError, match="refuses these messages") as caught:
        check_system_is_shown(renderer_of("trl/gemma"))
    assert "[prompt] user" in str(caught.value.fix)


def test_a_template_that_drops_system_messages_is_refused():
    keeps = renderer_of("qwen2.5")
    check_system_is_shown(keeps)
    drops = on_qwen(
        "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] + m['content'] }}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    with pytest.raises(UserError, match="drops the system message") as caught:
        check_system_is_shown(make_renderer(drops, keeps.stop_ids, DAY))
    assert "[prompt] user" in str(caught.value.fix)


def test_a_template_that_drops_the_users_text_is_refused():
    source = template_of("trl/idefics3")
    with pytest.raises(UserError, match="does not show the user's text"):
        make_renderer(on_qwen(source), (0,), DAY)


@pytest.mark.parametrize("source", ["{{ messages", "{{ nothing.of.this }}", "{{ raise_exception('no') }}"])
def test_a_broken_template_is_a_mistake_and_no_crash(source: str):
    with pytest.raises(UserError):
        make_renderer(on_qwen(source), (0,), DAY)
    with pytest.raises(UserError):
        make_renderer(on_qwen(source), (0,), PromptConfig(template_kwargs={"a": 1}))


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(UserError, match="no chat template"):
        make_renderer(on_qwen(None), (0,), DAY)


# ---- length ----------------------------------------------------------------------------------------------------------

LONG = " ".join(["some", "ordinary", "words", "again"] * 30)


@over_all
def test_the_length_is_that_of_the_longest_candidate_with_its_ending(name: str):
    renderer = renderer_of(name)
    one = Example(asked("Is it so?").messages, ("no",), ("a much longer label", "no"), "a.csv:2")
    longest = tokenize(asked("Is it so?", answer="a much longer label"), renderer)[0]
    assert example_length(one, renderer) == len(longest.token_ids)
    assert example_length(Example(one.messages, ("no",), (), ""), renderer) < len(longest.token_ids)


def three(renderer: Renderer) -> tuple[list[Example], int]:
    """A short example, a long one, one in between, and a limit that the long one alone exceeds, by one token."""
    found = [asked("Short?"), asked(LONG, answer="maybe not"), asked(LONG[:200])]
    return found, example_length(found[1], renderer) - 1


@over_all
def test_over_long_examples_are_an_error_that_counts_them(name: str):
    renderer = renderer_of(name)
    found, limit = three(renderer)
    assert fit_to_context(found, renderer, limit + 1, "error") == Fitted(tuple(found), 0, 0)
    with pytest.raises(UserError, match="1 of 3 examples") as caught:
        fit_to_context(found, renderer, limit, "error")
    assert caught.value.where == "a.csv:2"
    assert str(limit) in str(caught.value.expected) and str(limit + 1) in str(caught.value.found)


@over_all
def test_over_long_examples_are_dropped_and_counted_where_asked(name: str):
    renderer = renderer_of(name)
    found, limit = three(renderer)
    assert fit_to_context(found, renderer, limit, "drop") == Fitted((found[0], found[2]), 1, 0)
    assert fit_to_context(found, renderer, limit + 1, "drop") == Fitted(tuple(found), 0, 0)


@over_tokenizers
@given(st.integers(1, 100), st.lists(words, min_size=1, max_size=6))
@quick
def test_a_cut_prompt_loses_the_end_of_the_users_text_and_nothing_else(name: str, excess: int, parts):
    renderer = renderer_of(name)
    content = LONG[:300] + " ".join(parts) + " end"
    one = asked("Q1", "no", content, answer="maybe not")
    short = asked("Short?")
    limit = example_length(one, renderer) - excess
    try:
        fitted = fit_to_context([short, one], renderer, limit, "cut_prompt")
    except UserError:
        bare = asked("Q1", "no", content[:1], answer="maybe not")
        assert example_length(bare, renderer) > limit - 3, "an example that could be cut was refused"
        return
    assert (fitted.dropped, fitted.cut, fitted.examples[0]) == (0, 1, short)
    cut = fitted.examples[1]
    assert (cut.answers, cut.source, cut.messages[:-1]) == (one.answers, one.source, one.messages[:-1])
    left = cut.messages[-1].content
    assert left and content.startswith(left)
    assert limit - 12 <= example_length(cut, renderer) <= limit
    before, after = (render_prompt(e.messages, renderer).text for e in (one, cut))
    tail = before[before.rindex(" end") + len(" end") :]
    assert after.endswith(left + tail)
    whole = tokenize(cut, renderer)[-1]
    assert trained(whole) == trained(tokenize(one, renderer)[-1])


def test_a_prompt_that_cannot_be_cut_enough_is_refused_with_its_place():
    renderer = renderer_of("qwen2.5")
    one = Example((Message("system", LONG), Message("user", "Q")), ("yes",), (), "a.csv:7")
    with pytest.raises(UserError, match="even without the row's text") as caught:
        fit_to_context([one], renderer, 50, "cut_prompt")
    assert caught.value.where == "a.csv:7"


def test_the_arrays_are_of_the_stated_kinds():
    found = tokenize(asked("Is it so?"), renderer_of("qwen2.5"))[0]
    assert (found.token_ids.dtype, found.loss_weights.dtype, found.char_spans.dtype) == (
        np.int64, np.float32, np.int64,
    )  # fmt: skip
    assert found.token_ids.shape == found.loss_weights.shape == found.char_spans.shape[:1]
    assert found.source == "a.csv:2"


@over_tokenizers
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.text(max_size=8) | st.sampled_from([" ", "\n", "  x", "\n\nx ", "▁"])),
        max_size=5,
    )
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_text_encoded_in_parts_has_the_ids_and_spans_of_the_whole(name: str, drawn: list[tuple[int, str]]):
    renderer = renderer_of(name)
    special = sorted(renderer.tokenizer.get_added_vocab()) or ["<|x|>"]
    text = "".join(special[i % len(special)] + rest if i else rest for i, rest in drawn)
    found = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = renderer.encode(text)
    assert ids.tolist() == found["input_ids"]
    assert [tuple(span) for span in spans.tolist()] == found["offset_mapping"]

"""Rendering: prompts match the tokenizer's template byte for byte, and only answer and ending are trained."""

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
from tiny import byte_tokenizer
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from loratory.data.examples import Example, Message, with_shots
from loratory.errors import UserError
from loratory.models.loading import PLAIN_TEMPLATE
from loratory.settings import PromptConfig
from loratory.text.context import Fitted, example_length, fit_to_context
from loratory.text.rendering import TokenizedExample, completion_ids, render_prompt, tokenize
from loratory.text.template import Renderer, check_system_is_shown, make_renderer

pytestmark = needs_shared
quick = settings(derandomize=True, deadline=None, max_examples=20)
DAY = PromptConfig(date="2025-01-01")
DATA = SHARED / "data"
# Special tokens of other models' templates, added to the tokenizer "qwen2.5+".
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
# name -> tokenizer, template (None: the tokenizer's own), template arguments, and whether the template is plain:
# whether its own rendering of a conversation begins with the trained sequence.
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
renderers: dict[str, Renderer] = {}


@functools.cache
def read(name: str) -> Any:
    """A tokenizer as it is on disk. It is cached, so it must not be modified."""
    folder = (DATA / "tokenizers" / name.replace("+", "-instruct")).resolve()
    tokenizer = AutoTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=False)
    if name.endswith("+"):
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    return tokenizer


def with_template(tokenizer: Any, template: str | None) -> Any:
    """A copy of the tokenizer with another template."""
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


def template_of(name: str) -> str:
    return PLAIN_TEMPLATE if name == "plain" else (DATA / "templates" / f"{name}.jinja").read_text()


def renderer_of(name: str) -> Renderer:
    """The cached renderer of a setting."""
    if name not in renderers:
        tokenizer_name, template, arguments, _ = SETTINGS[name]
        tokenizer = read(tokenizer_name)
        if template:
            tokenizer = with_template(tokenizer, template_of(template))
        prompt = PromptConfig(template_kwargs=arguments, date=DAY.date)
        renderers[name] = make_renderer(tokenizer, (tokenizer.eos_token_id,), prompt)
    return renderers[name]


over_all = pytest.mark.parametrize("name", NAMES)
over_plain = pytest.mark.parametrize("name", PLAIN)
over_three = pytest.mark.parametrize("name", ["qwen2.5", "llama-3.2", "phi-3.5"])
over_tokenizers = pytest.mark.parametrize(
    "name", ["qwen2.5", "llama-3.2", "phi-3.5", "trl/gptoss", "plain, gpt2", "plain, stories260K"]
)


def on_qwen(template: str | None) -> Any:
    return with_template(read("qwen2.5-instruct"), template)


def example_of(*contents: str, answer: str = "yes") -> Example:
    """A conversation of user, assistant, user, ... turns, and its answer."""
    roles = ("user", "assistant")
    return Example(tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)), (answer,), (), "a.csv:2")


def transformers_ids(name: str, messages: tuple[Message, ...], prompt: bool) -> list[int]:
    """The ids that Transformers produces for the messages on January 1, 2025."""
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


@pytest.mark.thorough
@over_all
@given(words, answers, words)
@case("<|im_end|> x", "<|assistant|>", " <s>Answer:\n")
@quick
def test_the_prompt_is_byte_for_byte_the_tokenizers_own(name: str, first: str, answer: str, second: str):
    renderer = renderer_of(name)
    for example in (example_of(first), example_of(first, answer, second)):
        expected = transformers_ids(name, example.messages, prompt=True)
        assert render_prompt(example.messages, renderer).token_ids.tolist() == expected
        assert tokenize(example, renderer)[-1].token_ids[: len(expected)].tolist() == expected


@over_three
def test_a_prompt_with_a_system_message_matches_transformers(name: str):
    renderer = renderer_of(name)
    messages = (Message("system", " One of: a, b.\n"), Message("user", "Is it so?"))
    assert render_prompt(messages, renderer).token_ids.tolist() == transformers_ids(name, messages, prompt=True)


@over_all
def test_a_prompt_has_at_most_one_bos_token(name: str):
    renderer = renderer_of(name)
    bos = renderer.tokenizer.bos_token_id
    ids = render_prompt(example_of("Is it so?").messages, renderer).token_ids.tolist()
    assert ids.count(bos) <= 1 and bos not in ids[1:]


def test_a_template_with_two_bos_tokens_is_rejected():
    tokenizer = read("llama-3.2-instruct")
    twice = with_template(tokenizer, "{{ bos_token }}" + PLAIN_TEMPLATE)
    with pytest.raises(UserError, match="two beginning-of-sequence"):
        render_prompt(example_of("Q").messages, make_renderer(twice, (tokenizer.eos_token_id,), DAY))


# ---- trained tokens --------------------------------------------------------------------------------------------------


@over_plain
@pytest.mark.parametrize("answer", ["yes", "New York", "two\nlines", "ü 日本語", "1.5"])
def test_the_templates_own_rendering_begins_with_prompt_answer_and_ending(name: str, answer: str):
    renderer = renderer_of(name)
    sequence = tokenize(example_of("Is it so?", answer=answer), renderer)[0]
    whole = transformers_ids(name, (*example_of("Is it so?").messages, Message("assistant", answer)), prompt=False)
    assert sequence.token_ids.tolist() == whole[: len(sequence.token_ids)]
    left_over = renderer.tokenizer.decode(whole[len(sequence.token_ids) :])
    assert "yes" not in left_over and len(left_over.strip()) <= len("<|endoftext|>")


@over_tokenizers
@given(st.lists(words, min_size=1, max_size=1), answers)
@case(["Q"], "naïve 🤖 ok")
@case(["Q"], "🏳️‍🌈")
@case(["Q"], "Hello , world . do n't")
@quick
def test_answer_and_ending_are_trained_and_the_prompt_is_not(name: str, texts: list[str], answer: str):
    renderer = renderer_of(name)
    sequence = tokenize(example_of(*texts, answer=answer), renderer)[0]
    start = len(transformers_ids(name, example_of(*texts).messages, prompt=True))
    assert not sequence.loss_weights[:start].any() and (sequence.loss_weights[start:] == 1).all()
    assert tuple(trained(sequence)[-len(renderer.ending) :]) == renderer.ending
    assert trained(sequence)[-1] in renderer.stop_ids
    assert renderer.tokenizer.decode(trained(sequence)[: -len(renderer.ending)]).strip() == answer


@over_tokenizers
@given(answers)
@case("naïve 🤖 ok")
@case("🏳️‍🌈")
@case("日本語 \t x")
@quick
def test_the_spans_of_the_trained_tokens_cover_answer_and_ending(name: str, answer: str):
    renderer = renderer_of(name)
    sequence = tokenize(example_of("Is it so?", answer=answer), renderer)[0]
    spans = sequence.char_spans[sequence.loss_weights > 0]
    assert (spans[:, 0] <= spans[:, 1]).all()
    covered = "".join(sequence.text[start:end] for start, end in spans)
    assert covered == renderer.leading_space + answer + renderer.ending_text
    assert spans[-1][1] == len(sequence.text)


@over_tokenizers
@given(st.lists(words, min_size=1, max_size=2), st.lists(answers, min_size=1, max_size=4))
@case(["Q"], ["yes", "yes it is", "ye", "yes"])
@quick
def test_an_answer_is_tokenized_in_context_if_the_prompts_ids_do_not_change(
    name: str, texts: list[str], drawn: list[str]
):
    renderer = renderer_of(name)
    for text in texts:
        prompt = render_prompt(example_of(text).messages, renderer)
        for answer in (*drawn, *drawn):
            ids, in_context = completion_ids(prompt, answer, renderer)
            both = renderer.tokenizer(prompt.text + answer, add_special_tokens=False)["input_ids"]
            start = len(prompt.token_ids)
            unmerged = both[:start] == prompt.token_ids.tolist() and len(both) > start
            alone = renderer.tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert in_context == unmerged
            assert ids == [*(both[start:] if unmerged else alone), *renderer.ending]


def test_an_answer_that_would_merge_with_the_prompt_is_tokenized_alone():
    # "A: " followed by "yes" becomes the token " yes", but inference sees the space as part of the prompt.
    tokenizer = on_qwen("{% for m in messages %}{{ m['content'] }}\n{% endfor %}A: ")
    renderer = make_renderer(tokenizer, (tokenizer.eos_token_id,), DAY)
    prompt = render_prompt(example_of("Q").messages, renderer)
    assert prompt.tail is None
    ids, in_context = completion_ids(prompt, "yes", renderer)
    assert (ids, in_context) == ([*tokenizer("yes")["input_ids"], *renderer.ending], False)


@over_all
@pytest.mark.parametrize("answer", [" yes ", "yes\n", "\n\tyes"])
def test_outer_white_space_of_an_answer_is_ignored(name: str, answer: str):
    renderer = renderer_of(name)
    sequence, expected = (tokenize(example_of("Is it so?", answer=a), renderer)[0] for a in (answer, "yes"))
    assert sequence.token_ids.tolist() == expected.token_ids.tolist()
    assert sequence.text == expected.text


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_answer_without_tokens_is_rejected_with_its_location(answer: str):
    with pytest.raises(UserError, match="no tokens") as caught:
        tokenize(example_of("Is it so?", answer=answer), renderer_of("qwen2.5"))
    assert caught.value.where == "a.csv:2"


# ---- the ending ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2.5", "phi-3.5", "plain, gpt2", "plain, stories260K"])
def test_the_stop_token_is_trained_even_if_it_is_also_the_padding_token(name: str):
    renderer = renderer_of(name)
    before = tokenize(example_of("Is it so?"), renderer)[0]
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(renderer.ending[-1])
    sequence = tokenize(example_of("Is it so?"), make_renderer(tokenizer, renderer.stop_ids, DAY))[0]
    assert trained(sequence) == trained(before) and trained(sequence)[-1] == tokenizer.pad_token_id


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
def test_the_ending_is_the_one_of_the_template(name: str, ending: str, note: str):
    renderer = renderer_of(name)
    assert renderer.ending_text == ending
    assert note in renderer.note
    assert set(renderer.stop_ids) == {renderer.tokenizer.eos_token_id, renderer.ending[-1]}


def test_an_additional_stop_id_of_the_model_ends_the_answer():
    tokenizer = read("phi-3.5-mini")
    end, eos = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id
    renderer = make_renderer(tokenizer, (eos, end), DAY)
    assert renderer.ending == (end,) and set(renderer.stop_ids) == {eos, end}


def test_a_tokenizer_without_an_ending_is_rejected():
    tokenizer = copy.deepcopy(read("../models/stories260K"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="how an answer ends"):
        make_renderer(tokenizer, (), DAY)


# ---- multiple turns --------------------------------------------------------------------------------------------------


@over_all
@given(st.lists(answers, min_size=5, max_size=5))
@quick
def test_every_assistant_turn_is_its_own_sequence_as_inference_sees_it(name: str, texts: list[str]):
    renderer = renderer_of(name)
    whole = tokenize(example_of(*texts, answer="yes"), renderer)
    prefixes = [example_of(texts[0], answer=texts[1]), example_of(*texts[:3], answer=texts[3]), example_of(*texts)]
    assert len(whole) == 3
    for sequence, prefix in zip(whole, prefixes, strict=True):
        alone = tokenize(prefix, renderer)[-1]
        assert sequence.token_ids.tolist() == alone.token_ids.tolist()
        assert sequence.loss_weights.tolist() == alone.loss_weights.tolist()


@over_three
def test_a_few_shot_prompt_is_a_conversation_of_the_same_template(name: str):
    renderer = renderer_of(name)
    shots = [example_of("Q1", answer="no"), example_of("Q2", answer="yes")]
    few_shot = with_shots(example_of("Q3"), shots)
    expected = transformers_ids(name, example_of("Q1", "no", "Q2", "yes", "Q3").messages, prompt=True)
    assert render_prompt(few_shot.messages, renderer).token_ids.tolist() == expected


# ---- template arguments and dates ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fix"), [("enable_thinkin", "'enable_thinking'"), ("zzz", "use one of:"), ("messages", ""), ("tools", "")]
)
def test_an_unknown_template_argument_is_rejected(name: str, fix: str):
    tokenizer = renderer_of("trl/qwen3").tokenizer
    with pytest.raises(UserError, match=f"no argument '{name}'") as caught:
        make_renderer(tokenizer, (tokenizer.eos_token_id,), PromptConfig(template_kwargs={name: False}), "task.toml")
    assert fix in str(caught.value.fix)
    assert caught.value.where == "task.toml, prompt.template_kwargs"


def test_a_template_argument_changes_the_prompt():
    messages = example_of("Is it so?").messages
    with_argument, without = (render_prompt(messages, renderer_of(f"trl/qwen3{x}")).text for x in (", no thinking", ""))
    assert with_argument == without + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "shown"), [("llama-3.2", "Today Date: 01 Jan 2025\n"), ("trl/gptoss", "Current date: 2025-01-01\n")]
)
def test_the_date_in_a_prompt_is_frozen(name: str, shown: str, monkeypatch):
    renderer = renderer_of(name)
    turns, texts, unfrozen = [{"role": "user", "content": "Q"}], set(), set()
    for day in (3, 4):

        class Today(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 2, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Today)
        tokenizer = renderer.tokenizer
        unfrozen.add(tokenizer.apply_chat_template(turns, tokenize=False))
        again = make_renderer(tokenizer, (tokenizer.eos_token_id,), DAY)
        for either in (renderer, again):
            texts.add(render_prompt(example_of("Q").messages, either).text)
    assert len(unfrozen) == 2, "without freezing, the template shows the current day"
    assert len(texts) == 1 and shown in texts.pop()


def test_the_date_defaults_to_today_and_an_invalid_one_is_rejected():
    tokenizer = renderer_of("qwen2.5").tokenizer
    before = datetime.date.today().isoformat()
    date = make_renderer(tokenizer, (0,), PromptConfig()).date
    assert date in {before, datetime.date.today().isoformat()}
    for invalid in ("01.02.2025", "2025-13-01", "today", ""):
        with pytest.raises(UserError, match=r"prompt\.date is not a date"):
            make_renderer(tokenizer, (0,), PromptConfig(date=invalid))


# ---- templates that reject or drop -----------------------------------------------------------------------------------


def test_the_error_for_rejected_system_messages_says_where_to_move_their_text():
    with pytest.raises(UserError, match="rejects these messages") as caught:
        check_system_is_shown(renderer_of("trl/gemma"))
    assert "[prompt] user" in str(caught.value.fix)


def test_a_template_that_drops_system_messages_is_rejected():
    keeps = renderer_of("qwen2.5")
    check_system_is_shown(keeps)
    drops = on_qwen(
        "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] + m['content'] }}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    with pytest.raises(UserError, match="drops the system message") as caught:
        check_system_is_shown(make_renderer(drops, keeps.stop_ids, DAY))
    assert "[prompt] user" in str(caught.value.fix)


def test_a_template_that_drops_the_user_message_is_rejected():
    source = template_of("trl/idefics3")
    with pytest.raises(UserError, match="drops the user message"):
        make_renderer(on_qwen(source), (0,), DAY)


@pytest.mark.parametrize("source", ["{{ messages", "{{ nothing.of.this }}", "{{ raise_exception('no') }}"])
def test_a_broken_template_raises_a_user_error(source: str):
    with pytest.raises(UserError):
        make_renderer(on_qwen(source), (0,), DAY)
    with pytest.raises(UserError):
        make_renderer(on_qwen(source), (0,), PromptConfig(template_kwargs={"a": 1}))


def test_a_tokenizer_without_a_template_is_rejected():
    with pytest.raises(UserError, match="no chat template"):
        make_renderer(on_qwen(None), (0,), DAY)


# ---- length ----------------------------------------------------------------------------------------------------------

LONG = " ".join(["some", "ordinary", "words", "again"] * 30)


@over_all
def test_the_length_includes_the_longest_candidate_and_the_ending(name: str):
    renderer = renderer_of(name)
    example = Example(example_of("Is it so?").messages, ("no",), ("a much longer label", "no"), "a.csv:2")
    longest = tokenize(example_of("Is it so?", answer="a much longer label"), renderer)[0]
    assert example_length(example, renderer) == len(longest.token_ids)
    assert example_length(Example(example.messages, ("no",), (), ""), renderer) < len(longest.token_ids)


def three_examples(renderer: Renderer) -> tuple[list[Example], int]:
    """A short, a long and a medium example, and a limit that only the long one exceeds, by one token."""
    examples = [example_of("Short?"), example_of(LONG, answer="maybe not"), example_of(LONG[:200])]
    return examples, example_length(examples[1], renderer) - 1


@over_all
def test_overlong_examples_raise_an_error_with_their_number(name: str):
    renderer = renderer_of(name)
    examples, limit = three_examples(renderer)
    assert fit_to_context(examples, renderer, limit + 1, "error") == Fitted(tuple(examples), 0, 0)
    with pytest.raises(UserError, match="1 of 3 examples") as caught:
        fit_to_context(examples, renderer, limit, "error")
    assert caught.value.where == "a.csv:2"
    assert str(limit) in str(caught.value.expected) and str(limit + 1) in str(caught.value.found)


@over_all
def test_overlong_examples_are_dropped_and_counted(name: str):
    renderer = renderer_of(name)
    examples, limit = three_examples(renderer)
    assert fit_to_context(examples, renderer, limit, "drop") == Fitted((examples[0], examples[2]), 1, 0)
    assert fit_to_context(examples, renderer, limit + 1, "drop") == Fitted(tuple(examples), 0, 0)


@over_tokenizers
@given(st.integers(1, 100), st.lists(words, min_size=1, max_size=6))
@quick
def test_cutting_a_prompt_removes_only_the_end_of_the_user_message(name: str, excess: int, parts):
    renderer = renderer_of(name)
    content = LONG[:300] + " ".join(parts) + " end"
    example = example_of("Q1", "no", content, answer="maybe not")
    short = example_of("Short?")
    limit = example_length(example, renderer) - excess
    try:
        fitted = fit_to_context([short, example], renderer, limit, "cut_prompt")
    except UserError:
        bare = example_of("Q1", "no", content[:1], answer="maybe not")
        assert example_length(bare, renderer) > limit - 3, "an example that could be cut was rejected"
        return
    assert (fitted.dropped, fitted.cut, fitted.examples[0]) == (0, 1, short)
    cut = fitted.examples[1]
    assert (cut.answers, cut.source, cut.messages[:-1]) == (example.answers, example.source, example.messages[:-1])
    remaining = cut.messages[-1].content
    assert remaining and content.startswith(remaining)
    assert limit - 12 <= example_length(cut, renderer) <= limit
    before, after = (render_prompt(e.messages, renderer).text for e in (example, cut))
    tail = before[before.rindex(" end") + len(" end") :]
    assert after.endswith(remaining + tail)
    whole = tokenize(cut, renderer)[-1]
    assert trained(whole) == trained(tokenize(example, renderer)[-1])


def test_a_prompt_that_cannot_be_cut_enough_is_rejected_with_its_location():
    renderer = renderer_of("qwen2.5")
    example = Example((Message("system", LONG), Message("user", "Q")), ("yes",), (), "a.csv:7")
    with pytest.raises(UserError, match="even without the row's text") as caught:
        fit_to_context([example], renderer, 50, "cut_prompt")
    assert caught.value.where == "a.csv:7"


def test_the_arrays_have_the_documented_dtypes_and_shapes():
    sequence = tokenize(example_of("Is it so?"), renderer_of("qwen2.5"))[0]
    assert (sequence.token_ids.dtype, sequence.loss_weights.dtype, sequence.char_spans.dtype) == (
        np.int64, np.float32, np.int64,
    )  # fmt: skip
    assert sequence.token_ids.shape == sequence.loss_weights.shape == sequence.char_spans.shape[:1]
    assert sequence.source == "a.csv:2"


@over_tokenizers
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.text(max_size=8) | st.sampled_from([" ", "\n", "  x", "\n\nx ", "▁"])),
        max_size=5,
    )
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_encoding_a_text_in_parts_gives_the_ids_and_spans_of_the_whole(name: str, drawn: list[tuple[int, str]]):
    renderer = renderer_of(name)
    special = sorted(renderer.tokenizer.get_added_vocab()) or ["<|x|>"]
    text = "".join(special[i % len(special)] + rest if i else rest for i, rest in drawn)
    expected = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = renderer.encode(text)
    assert ids.tolist() == expected["input_ids"]
    assert [tuple(span) for span in spans.tolist()] == expected["offset_mapping"]


def test_the_lengths_of_the_prefixes_of_a_long_text_are_those_of_decoding_them():
    renderer = make_renderer(byte_tokenizer(), (2,), PromptConfig())
    ids = tuple(renderer.encode("Zwei wörter 日本語 🤖, and more. " * 8)[0].tolist())
    direct = [len(renderer.tokenizer.decode(list(ids[:n]))) for n in range(len(ids) + 1)]
    expected = [min(direct[n:]) for n in range(len(ids) + 1)]
    assert len(ids) > 300 and renderer.text_lengths(ids) == expected

"""Tool calls and other turns with more than text: the target is what the template writes after the prompt."""

import copy
import json
from typing import Any

import pytest
from conftest import SHARED, needs_shared
from tiny import CHATML, byte_tokenizer

from loratory.data.conversations import conversation, question
from loratory.data.examples import Example
from loratory.data.rows import Row
from loratory.data.splits import Split
from loratory.errors import UserError
from loratory.models.loading import PLAIN_TEMPLATE
from loratory.settings import PromptConfig
from loratory.text.context import example_length
from loratory.text.renderer import Renderer, decode
from loratory.text.rendering import render_prompt, tokenize
from loratory.text.template import apply_template, make_renderer
from loratory.text.turns import check_turns_are_shown, with_rendered_answers

TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"topic": "loans"}}}
ASK, REPLY = {"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Four weeks."}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "28 days", "tool_call_id": "c1"}
# A template with tools, in ChatML. {calls} writes the calls, {text} the text of an assistant turn.
SHOWING = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message.tool_calls %}{calls}{% else %}{text}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{opening}{% endif %}"
)
WRITTEN = 'CALL {"name": "find", "arguments": {"topic": "loans"}}'
FUNCTION = "{% set call = message.tool_calls[0].function %}"
AS_OBJECT = 'CALL {"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}'
AS_TEXT = """CALL {{ '{"name": "' + call.name + '", "arguments": ' + call.arguments + '}' }}"""
CONTENT = "{{ message.content }}"


def renderer_of(calls: str = AS_OBJECT, text: str = CONTENT, opening: str = "") -> Renderer:
    template = SHOWING.replace("{calls}", FUNCTION + calls).replace("{text}", text).replace("{opening}", opening)
    return with_template(template)


def with_template(template: str) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return make_renderer(tokenizer, (2,), PromptConfig())


def chat(*turns: dict[str, Any], **columns: Any) -> Example:
    example = conversation(Row({"messages": list(turns), **columns}, "f:1"))
    assert example is not None
    return example


def rendered(example: Example, renderer: Renderer) -> Example:
    return with_rendered_answers(Split((example,), (), (), (), PromptConfig()), renderer).train[0]


def targets(example: Example, renderer: Renderer) -> list[str]:
    """The trained text of each sequence; checks that it follows the prompt that inference sees."""
    texts, example = [], rendered(example, renderer)
    for sequence in tokenize(example, renderer):
        start = int((sequence.loss_weights == 0).sum())
        assert not sequence.loss_weights[:start].any() and sequence.loss_weights[start:].all()
        assert int(sequence.token_ids[-1]) in renderer.stop_ids
        text = decode(renderer.tokenizer, sequence.token_ids[start:].tolist())
        assert sequence.text.endswith(text)
        texts.append(text)
    return texts


def test_a_tool_call_is_trained_as_the_template_writes_it():
    renderer, example = renderer_of(), chat(ASK, CALLING, RESULT, REPLY, tools=[TOOL])
    assert check_turns_are_shown([example], renderer) == []
    assert targets(example, renderer) == [f"{WRITTEN}<|im_end|>", "Four weeks.<|im_end|>"]
    first, last = tokenize(example, renderer)
    assert last.text.startswith(first.text + "\n<|im_start|>tool\n28 days<|im_end|>")
    turns = [ASK, CALLING, RESULT, REPLY]
    own = renderer.tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False)
    assert last.text + "\n" == own


def test_a_conversation_may_end_with_a_tool_call():
    renderer, example = renderer_of(), chat(ASK, CALLING)
    assert targets(example, renderer) == [f"{WRITTEN}<|im_end|>"]
    assert rendered(example, renderer).answers == (WRITTEN,)
    assert rendered(rendered(example, renderer), renderer) == rendered(example, renderer)
    [sequence] = tokenize(example, renderer)
    assert example_length(rendered(example, renderer), renderer) == len(sequence.token_ids)


def test_the_prompt_of_each_turn_is_that_of_inference():
    renderer, turns = renderer_of(), [ASK, CALLING, RESULT, REPLY, ASK, CALLING]
    sequences = tokenize(chat(*turns, tools=[TOOL]), renderer)
    for sequence, end in zip(sequences, (1, 3, 5), strict=True):
        asked = question(Row({"messages": turns[:end], "tools": json.dumps([TOOL])}, "f:1"))
        prompt = render_prompt(asked.messages, renderer).token_ids.tolist()
        assert sequence.token_ids[: len(prompt)].tolist() == prompt and not sequence.loss_weights[: len(prompt)].any()
        assert sequence.loss_weights[len(prompt) :].all()


def test_an_untrained_call_is_only_context():
    example = chat(ASK, {**CALLING, "weight": 0}, RESULT, REPLY)
    renderer = renderer_of()
    assert targets(example, renderer) == ["Four weeks.<|im_end|>"] and WRITTEN in tokenize(example, renderer)[0].text


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (AS_OBJECT, CONTENT),
        (AS_TEXT, CONTENT),  # fails for arguments that are an object
        ("{% if 'x' in message.content %}{% endif %}" + AS_OBJECT, CONTENT),  # fails for a null
        ("{{ '' if message.content is none else message.content + 'x' }}" + AS_OBJECT, CONTENT),  # needs a null
        ("{% if message.content is defined %}{{ message.content }}{% endif %}" + AS_OBJECT, CONTENT),  # writes None
        ("{{ message['content'] | trim }}" + AS_TEXT, CONTENT),
    ],
)
def test_calls_are_given_in_the_form_that_the_template_takes(calls: str, text: str):
    assert targets(chat(ASK, CALLING), renderer_of(calls, text)) == [f"{WRITTEN}<|im_end|>"]


def test_the_text_beside_a_call_is_shown_or_its_loss_is_said():
    example = chat(ASK, {**CALLING, "content": "Let me see."}, RESULT, REPLY)
    [said] = check_turns_are_shown([example], renderer_of())
    assert "leaves out the text beside tool calls (1 in the data)" in said
    both = renderer_of(CONTENT + AS_OBJECT)
    assert check_turns_are_shown([example], both) == [] and targets(example, both)[0].startswith("Let me see.CALL")


def test_reasoning_is_trained_where_the_template_shows_it_and_its_loss_is_said():
    example = chat(ASK, {**REPLY, "reasoning_content": "hm"})
    text = "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}" + CONTENT
    renderer = renderer_of(text=text)
    assert check_turns_are_shown([example], renderer) == []
    assert targets(example, renderer) == ["<think>hm</think>Four weeks.<|im_end|>"]
    [said] = check_turns_are_shown([example], renderer_of())
    assert "does not show 'reasoning_content' of assistant turns" in said
    assert targets(example, renderer_of()) == ["Four weeks.<|im_end|>"]


def test_a_prompt_that_opens_a_block_is_followed_by_what_replaces_a_plain_answer():
    assert targets(chat(ASK, CALLING), renderer_of(opening="<think>\n")) == [f"{WRITTEN}<|im_end|>"]


def test_a_call_may_have_an_ending_of_its_own():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.tool_calls %}"
        + FUNCTION + AS_OBJECT + "<|endoftext|>{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )  # fmt: skip
    renderer = make_renderer(tokenizer, (0, 2), PromptConfig())
    found = targets(chat(ASK, CALLING, RESULT, REPLY), renderer)
    assert found == [f"{WRITTEN}<|endoftext|>", "Four weeks.<|im_end|>"]


# ---- refusals --------------------------------------------------------------------------------------------------------

WITHOUT_TOOL_TURNS = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
)
ALTERNATING = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
FROM_USER = "{% set messages = messages[1:] if messages[0].role == 'assistant' else messages %}" + CHATML


@pytest.mark.parametrize(
    ("template", "turns", "columns", "message"),
    [
        (CHATML, [ASK, CALLING, RESULT, REPLY], {}, "does not support tool calls"),
        (PLAIN_TEMPLATE, [ASK, CALLING], {}, "does not support tool calls"),
        (CHATML, [ASK, REPLY], {"tools": [TOOL]}, "does not support tools"),
        (WITHOUT_TOOL_TURNS, [ASK, REPLY, RESULT, REPLY], {}, "leaves out the turns of tools"),
        (ALTERNATING, [ASK, REPLY, RESULT, REPLY], {}, "rejects the turns of tools"),
        (ALTERNATING, [REPLY, ASK, REPLY], {}, "rejects conversations that begin with an assistant turn"),
        (FROM_USER, [REPLY, ASK, REPLY], {}, "leaves out an assistant turn at the beginning"),
        (
            FROM_USER.replace("assistant", "system"),
            [{"role": "system", "content": "S"}, ASK, REPLY],
            {},
            "drops the system",
        ),
    ],
)
def test_a_template_that_drops_a_turn_is_refused(template: str, turns: list, columns: dict, message: str):
    renderer, example = with_template(template), chat(*turns, **columns)
    with pytest.raises(UserError, match=message):
        check_turns_are_shown([example], renderer)


def test_a_rejected_conversation_is_named():
    example = chat(ASK, ASK, REPLY)
    with pytest.raises(UserError, match="rejects these messages") as caught:
        tokenize(example, with_template(ALTERNATING))
    assert caught.value.where == "f:1" and caught.value.found == "Roles must alternate"


def test_a_greeting_is_shown_and_not_trained():
    example = chat({"role": "assistant", "content": "Hello"}, ASK, REPLY)
    renderer = with_template(CHATML)
    assert check_turns_are_shown([example], renderer) == [] and targets(example, renderer) == ["Four weeks.<|im_end|>"]
    assert tokenize(example, renderer)[0].text.startswith("<|im_start|>assistant\nHello")


# ---- real templates --------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        (
            "qwen2.5-instruct",
            None,
            '<tool_call>\n{"name": "find", "arguments": {"topic": "loans"}}\n</tool_call><|im_end|>',
        ),
        ("llama-3.2-instruct", None, '{"name": "find", "parameters": {"topic": "loans"}}<|eot_id|>'),
        (
            "qwen2.5-instruct",
            "qwen3_vl",
            '<tool_call>\n{"name": "find", "arguments": {"topic": "loans"}}\n</tool_call><|im_end|>',
        ),
    ],
)
def test_calls_with_real_templates_are_those_of_transformers(name: str, template: str | None, expected: str):
    from transformers import AutoTokenizer

    tokenizer = copy.copy(AutoTokenizer.from_pretrained(SHARED / "data" / "tokenizers" / name))
    if template:
        tokenizer.chat_template = (SHARED / "data" / "templates" / "trl" / f"{template}.jinja").read_text()
    renderer = make_renderer(tokenizer, (tokenizer.eos_token_id,), PromptConfig(date="2025-01-01"))
    turns = [{k: v for k, v in turn.items() if v is not None} for turn in (ASK, CALLING, RESULT, REPLY, ASK, CALLING)]
    example = chat(*turns, tools=[TOOL])
    assert targets(example, renderer)[-1] == targets(example, renderer)[0] == expected
    whole = apply_template(renderer, [*example.messages, *([example.turn] if example.turn else [])], prompt=False)
    own = tokenizer.apply_chat_template(turns, tools=[TOOL], tokenize=False, **{
        k: v for k, v in renderer.template_kwargs.items() if k == "chat_template"
    })  # fmt: skip
    assert whole == own and own.startswith(tokenize(example, renderer)[-1].text)

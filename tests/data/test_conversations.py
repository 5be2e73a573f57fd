"""Conversations in the formats of OpenAI, ShareGPT and TRL: what becomes context, what is trained, what is said."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.data.conversations import conversation, conversation_columns, question
from loratory.data.examples import Example, Message
from loratory.data.rows import Row
from loratory.data.splits import Split, load_split
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig


def turn(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, REPLY = turn("user", "Q"), turn("assistant", "A")
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"topic": "loans"}}}
SPOKEN = (Message("user", "Q"),)


def read(values: dict[str, Any], column: str = "", system: str | None = None) -> Example:
    example = conversation(Row(values, "f:1"), column, system)
    assert example is not None
    return example


def chat(*turns: Any) -> Example:
    return read({"messages": list(turns)})


def split_of(tmp_path: Path, rows: list[dict], **settings: Any) -> Split:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_split(DataConfig((str(path),), **settings), PromptConfig(), 0, task="dialogue")


def said(split: Split) -> dict[str, str]:
    return {finding.name: finding.message for finding in split.findings}


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_the_last_turn_of_a_conversation_is_the_answer():
    result = chat(turn("system", "S"), ASK, turn("assistant", " A \n"))
    assert result == Example((Message("system", "S"), *SPOKEN), ("A",), (), "f:1")


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [ASK, REPLY]},
        {"messages": json.dumps([ASK, REPLY])},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"conversation": [{"from": "Human ", "value": "Q"}, {"from": "GPT", "value": "A"}]},
        {"messages": [{"from": "user", "content": "Q"}, {"role": "model", "value": "A"}]},
        {"messages": [{**ASK, "name": None, "tool_calls": None}, {**REPLY, "function_call": None, "tool_calls": []}]},
        {"messages": [{**ASK, "weight": float("nan")}, {**REPLY, "weight": float("nan")}]},
        {"messages": None, "conversations": [ASK, REPLY]},
        {
            "messages": [
                turn("user", [{"type": "text", "text": "Q"}]),
                turn("Assistant", [{"type": "text", "text": "A"}]),
            ]
        },
        {"chosen": [ASK, REPLY], "rejected": [ASK, turn("assistant", "no")]},
        {"prompt": "Q", "chosen": [ASK, REPLY]},
        {"prompt": [ASK], "completion": [REPLY]},
        {"prompt": [ASK], "chosen": [REPLY], "rejected": [turn("assistant", "no")]},
        {"prompt": [ASK], "chosen": [ASK, REPLY]},
        {"prompt": json.dumps([ASK]), "completion": json.dumps([REPLY])},
        {"messages": [ASK, REPLY], "tools": "", "system": None},
        {"messages": [ASK, REPLY], "tools": "[]", "system": " "},
    ],
)
def test_every_format_gives_the_same_example(values: dict[str, Any]):
    assert read(values) == Example(SPOKEN, ("A",), (), "f:1")


@pytest.mark.parametrize("name", ["gpt", "assistant", "model", "chatgpt", "bing", "bard", "BARD"])
def test_the_names_of_assistants(name: str):
    assert read({"conversations": [{"from": "human", "value": "Q"}, {"from": name, "value": "A"}]}).answer == "A"


@pytest.mark.parametrize("name", ["observation", "tool", "function", "Observation"])
def test_results_of_tools_are_turns_of_tools(name: str):
    assert chat(ASK, REPLY, {"from": name, "value": "28"}, REPLY).messages[2] == Message("tool", "28")


def test_the_column_that_is_named_is_read():
    assert read({"messages": [ASK], "dialog": [ASK, REPLY]}, "dialog").answer == "A"
    assert read({"prompt": [ASK], "completion": [REPLY]}, "completion").messages[0].content == "Q"
    with pytest.raises(UserError, match="no conversation"):
        read({"messages": [ASK, REPLY]}, "chat")
    with pytest.raises(UserError, match="no conversation"):
        read({"text": "x"})


def test_the_parts_of_a_text_are_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "image_url": None}]
    assert chat(turn("user", parts), REPLY).messages[0].content == "one two"


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video", "file", "thinking"])
def test_a_part_that_is_not_text_is_refused_by_its_place(kind: str):
    with pytest.raises(UserError, match="something other than text") as caught:
        chat(ASK, REPLY, turn("user", [{"type": "text", "text": "x"}, {"type": kind, kind: "x"}]), REPLY)
    assert caught.value.where == "f:1, turn 3" and kind in str(caught.value.found)


def test_a_misspelled_role_suggests_the_most_similar_one():
    with pytest.raises(UserError, match="Unknown role") as caught:
        chat(ASK, turn("asistant", "A"))
    assert caught.value.where == "f:1, turn 2"
    assert (caught.value.found, caught.value.fix) == ("'asistant'", "did you mean 'assistant'?")


@pytest.mark.parametrize(
    "turns",
    [
        [ASK, turn("assistant", " \n")],
        [ASK, turn("assistant", "", name="x")],
        [ASK, turn("assistant", None)],
        [ASK, {"role": "assistant"}],
        [ASK, turn("assistant", 7)],
        [ASK, turn("assistant", {"a": 1})],
        [turn(None, "Q"), REPLY],
        [turn(["user"], "Q"), REPLY],
        ["Q", "A"],
        [],
        {},
        None,
        "Q",
    ],
)
def test_an_invalid_conversation_is_rejected_with_its_source(turns: Any):
    with pytest.raises(UserError) as caught:
        conversation(Row({"messages": turns}, "f:1"))
    assert str(caught.value.where).startswith("f:1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["role", "from", "content", "value", "tool_calls", "function_call", "weight", "train", "name", "id", "function"]
)
turn_values = st.sampled_from(["user", "gpt", "function_call", "observation", "x", '{"name": "f"}', 0, 1]) | json_values


@pytest.mark.thorough
@given(st.lists(st.dictionaries(keys, turn_values) | json_values, max_size=4), json_values, json_values)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_any_turns_give_an_example_or_an_error_that_names_the_row(turns: list, tools: Any, system: Any):
    try:
        example = conversation(Row({"messages": turns, "tools": tools, "system": system}, "f:1"))
    except UserError as error:
        assert str(error.where).startswith("f:1")
    else:
        assert example is None or (example.answer and hash(example.messages) is not None)


# ---- system, tools ---------------------------------------------------------------------------------------------------

OWN = turn("system", "own")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": [ASK, REPLY]}, "given"),
        ({"messages": [ASK, REPLY], "system": ""}, "given"),
        ({"messages": [ASK, REPLY], "system": "row's"}, "row's"),
        ({"conversations": [ASK, REPLY], "system_prompt": "row's"}, "row's"),
        ({"messages": [OWN, ASK, REPLY], "system": "row's"}, "own"),
        ({"messages": [OWN, ASK, REPLY]}, "own"),
        ({"prompt": [OWN, ASK], "completion": [REPLY]}, "own"),
        ({"messages": [turn("developer", "own"), ASK, REPLY]}, "own"),
    ],
)
def test_a_conversation_has_its_own_system_text_else_its_rows_else_the_prompts(values: dict[str, Any], expected: str):
    messages = read(values, system="given").messages
    assert [m for m in messages if m.role == "system"] == [Message("system", expected)] == [messages[0]]


TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "values",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [TOOL["function"]]},
        {"tools": [{"type": "function", **TOOL["function"]}]},
        {"functions": [TOOL["function"]]},
        {"functions": json.dumps([TOOL["function"]]), "tools": None},
        {
            "tools": [
                {**TOOL, "function": {**TOOL["function"], "strict": None, "parameters": {"type": "object", "x": None}}}
            ]
        },
    ],
)
def test_tools_of_every_form_are_the_same(values: dict[str, Any]):
    first, *rest = read({"messages": [ASK, REPLY], **values}).messages
    assert (first.role, json.loads(first.content), tuple(rest)) == ("tools", [TOOL], SPOKEN)


@pytest.mark.parametrize("value", ['{"name": "weather"}', [1], "[", 7, {"name": "x"}])
def test_tools_that_are_not_a_list_of_objects_are_rejected(value: Any):
    with pytest.raises(UserError, match=r"list of objects|Malformed JSON") as caught:
        read({"messages": [ASK, REPLY], "tools": value})
    assert str(caught.value.where).startswith("f:1")


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "tool_calls": [{**CALL, "function": {"name": "find", "arguments": '{"topic": "loans"}'}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"function": {"arguments": {"topic": "loans", "x": None}, "name": "find"}, "id": "c1"}],
        },
        {"role": "assistant", "tool_calls": [{"id": "c1", "name": "find", "arguments": {"topic": "loans"}}]},
        {"from": "function_call", "value": json.dumps({"id": "c1", "name": "find", "arguments": {"topic": "loans"}})},
        {
            "from": "Function_Call",
            "value": json.dumps([{"id": "c1", "name": "find", "arguments": '{"topic": "loans"}'}]),
        },
        {"role": "assistant", "function_call": {"id": "c1", "name": "find", "arguments": '{"topic": "loans"}'}},
    ],
)
def test_tool_calls_of_every_form_are_the_same(calling: dict[str, Any]):
    example = chat(ASK, calling, {"role": "tool", "tool_call_id": "c1", "content": "28 days"}, REPLY)
    call, result = example.messages[1:]
    assert (call.role, call.content, call.further) == ("assistant", "", {"tool_calls": [CALL]})
    assert (result.role, result.content, result.further) == ("tool", "28 days", {"tool_call_id": "c1"})
    last = chat(ASK, calling)
    assert last.turn == call and last.messages == SPOKEN and "find" in last.answer


def test_a_null_in_arguments_given_as_text_stays():
    call = {"name": "find", "arguments": '{"topic": null}'}
    [found] = chat(ASK, {"role": "assistant", "tool_calls": [call]}, REPLY).messages[1].further["tool_calls"]
    assert found["function"]["arguments"] == {"topic": None}


@pytest.mark.parametrize(
    "calls",
    [[{}], [7], 7, "{", [{"name": ""}], [{"name": "f", "arguments": "x"}], [{"name": "f", "arguments": [1]}],
     [{"function": "f"}], [{"function": {"arguments": "{}"}}]],
)  # fmt: skip
def test_a_malformed_tool_call_is_rejected_by_its_place(calls: Any):
    with pytest.raises(UserError) as caught:
        chat(ASK, {"role": "assistant", "tool_calls": calls}, ASK, REPLY)
    assert str(caught.value.where).startswith("f:1, turn 2")


@pytest.mark.parametrize("content", [{"days": 28}, [28, None], 28, True])
def test_the_result_of_a_tool_that_is_not_a_text_is_json(content: Any):
    assert chat(ASK, REPLY, turn("tool", content), REPLY).messages[2].content == json.dumps(content)


# ---- what is trained -------------------------------------------------------------------------------------------------


def trained(example: Example) -> list[str]:
    return [m.content for m in example.messages if m.role == "assistant" and m.trained] + list(example.answers)


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 1, "train": False}])
def test_an_untrained_turn_is_only_context(mark: dict[str, Any]):
    bad = turn("assistant", "bad", **mark)
    example = chat(ASK, bad, ASK, {**REPLY, "weight": 1, "train": True})
    assert trained(example) == ["A"] and example.messages[1] == Message("assistant", "bad", trained=False)
    assert chat(ASK, REPLY, ASK, bad) == chat(ASK, REPLY)
    assert conversation(Row({"messages": [ASK, bad]}, "f:1")) is None


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": "high"}, {"train": "no"}, {"weight": [1]}, {"weight": 2}])
def test_other_weights_are_rejected(mark: dict[str, Any]):
    with pytest.raises(UserError, match="must be") as caught:
        chat(ASK, {**REPLY, **mark})
    assert caught.value.where == "f:1, turn 2"


def test_only_the_completion_is_trained():
    values = {"prompt": [ASK, turn("assistant", "old"), ASK], "completion": [REPLY, ASK, turn("assistant", "B")]}
    assert trained(read(values)) == ["A", "B"]
    assert trained(read({"chosen": [ASK, REPLY, ASK, turn("assistant", "B")]})) == ["A", "B"]


def test_a_greeting_is_context():
    example = chat(OWN, turn("assistant", "Hello"), ASK, REPLY)
    assert [m.content for m in example.messages] == ["own", "Hello", "Q"] and trained(example) == ["A"]


def test_turns_after_the_last_trained_one_are_left_out():
    assert chat(ASK, REPLY, ASK) == chat(ASK, REPLY, turn("tool", "x"), ASK) == chat(ASK, REPLY)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_in_one_line_each(tmp_path):
    rows = [{"messages": [ASK, REPLY]} for _ in range(20)]
    rows[3:6] = [{"messages": [ASK, REPLY, ASK]}] * 3
    rows[6] = {"messages": [ASK, REPLY, ASK, turn("assistant", "bad", weight=0)]}
    rows[7] = {"messages": [turn("assistant", "Hello"), ASK, REPLY]}
    rows[8:10] = [{"messages": [ASK]}, {"messages": [ASK, turn("assistant", "bad", weight=0)]}]
    rows[10] = {"messages": [OWN, ASK, REPLY], "system": "other"}
    rows[11] = {"messages": [{**ASK, "timestamp": 7, "id": "x"}, {**REPLY, "timestamp": 8, "refusal": None}]}
    rows[12] = {"messages": [{**ASK, "weight": 1}, {**REPLY, "name": "Ann"}], "rejected": [REPLY], "note": None}
    split = split_of(tmp_path, rows)
    assert [f.message for f in split.findings] == [
        "3 of 20 conversations end with a user turn; it is left out",
        "1 of 20 conversations end with an assistant turn that is not trained; it is left out",
        "1 of 20 conversations begin with an assistant turn; it is context and not trained",
        "2 of 20 conversations have no assistant turn to train on; they are set aside",
        "1 of 20 conversations have a system turn and another system text in their row; the turn is used",
        "Keys of turns that are not used, with the number of turns: timestamp (2), id (1)",
        "Columns that are not used, with the number of rows: rejected (1)",
        "Only assistant turns are trained. Other turns are marked for it by: weight (1)",
    ]
    assert split.findings[0].places == tuple(f"{tmp_path / 'chats.jsonl'}:{n}" for n in (4, 5, 6))
    assert len(split.train) + len(split.validation) + len(split.test) == 18


def test_plain_conversations_need_no_remark(tmp_path):
    assert said(split_of(tmp_path, [{"messages": [ASK, REPLY]}] * 20)) == {}


def test_a_file_without_any_answer_is_rejected(tmp_path):
    with pytest.raises(UserError, match="No conversation has an assistant turn"):
        split_of(tmp_path, [{"messages": [ASK]}] * 20)


def test_a_parquet_file_gives_the_examples_of_the_json_file(tmp_path):
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    other = {**CALL, "function": {"name": "count", "arguments": {"of": 3}}}
    rows = [
        {"messages": [ASK, calling, turn("tool", "28", tool_call_id="c1"), REPLY], "tools": [TOOL], "system": None},
        {"messages": [ASK, {**calling, "tool_calls": [other]}], "tools": [TOOL["function"]]},
        {"messages": [ASK, turn("assistant", "bad", weight=0), ASK, REPLY], "system": "S"},
    ] * 7
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "chats.parquet")
    found = load_split(DataConfig((str(tmp_path / "chats.parquet"),)), PromptConfig(), 0, task="dialogue")
    expected = split_of(tmp_path, rows)
    for name in ("train", "validation", "test"):
        assert [(e.messages, e.answers, e.turn) for e in getattr(found, name)] == [
            (e.messages, e.answers, e.turn) for e in getattr(expected, name)
        ]
    assert found.findings == ()


# ---- questions, and the columns of a file ----------------------------------------------------------------------------


def test_a_question_is_the_conversation_up_to_the_turn_to_answer():
    expected = chat(ASK, REPLY, ASK, REPLY).messages
    for turns in ([ASK, REPLY, ASK], [ASK, REPLY, ASK, turn("assistant", "")]):
        assert question(Row({"messages": turns}, "f:1")) == Example(expected, (), (), "f:1")
    for values in ({"prompt": [ASK]}, {"prompt": [ASK], "completion": [REPLY]}, {"messages": [ASK]}):
        assert question(Row(values, "f:1"), system="S").messages == (Message("system", "S"), *SPOKEN)
    with pytest.raises(UserError, match="no user turn"):
        question(Row({"messages": [OWN]}, "f:1"))


def test_a_conversation_that_ends_with_a_tool_turn_can_be_answered():
    turns = [ASK, {"from": "function_call", "value": '{"name": "find"}'}, {"from": "observation", "value": "sun"}]
    found = question(Row({"conversations": turns, "tools": [TOOL]}, "f:1"))
    assert [m.role for m in found.messages] == ["tools", "user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"messages": [ASK, REPLY], "id": 1}, ("messages",)),
        ({"text": "x", "conversations": [{"from": "human", "value": "Q"}]}, ("conversations",)),
        ({"dialog": json.dumps([ASK, REPLY]), "text": "x"}, ("dialog",)),
        ({"prompt": [ASK], "completion": [REPLY]}, ("prompt", "completion")),
        ({"prompt": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, ("prompt", "chosen")),
        ({"prompt": "Q", "chosen": [ASK, REPLY], "rejected": [ASK, REPLY]}, ("chosen",)),
        ({"prompt": "Q", "completion": "A"}, ()),
        ({"prompt": [ASK]}, ()),
        ({"text": "x", "tags": ["a"], "entities": [{"from": 3, "value": 1}]}, ()),
        ({"messages": []}, ()),
        ({"text": "[not json"}, ()),
    ],
)
def test_the_columns_of_conversations_are_recognized(values: dict[str, Any], expected: tuple[str, ...]):
    assert conversation_columns([Row(values, "f:1"), Row(values, "f:2")]) == expected

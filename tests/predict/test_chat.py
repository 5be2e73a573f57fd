"""Chat in the terminal: prompts, history, commands, and interrupting an answer."""

import dataclasses
import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import CHATML, byte_tokenizer

from loratory.cli.main import main
from loratory.data.examples import Message
from loratory.errors import UserError
from loratory.machine.device import resolve_machine
from loratory.models import adapters
from loratory.models.loading import load_model, load_tokenizer
from loratory.predict.chat import (
    COMMANDS,
    Conversation,
    converse,
    fit_history,
    open_chat,
    parse_command,
    read_message,
    user_message,
    welcome_message,
)
from loratory.predict.chat_terminal import Terminal, side_by_side
from loratory.predict.replies import BASE, TUNED, ChatModel, seen_tokens
from loratory.predict.tokens import TRAINED, highlighted
from loratory.predict.tuned import load
from loratory.printable import printable
from loratory.settings import AdapterConfig, ModelConfig, PromptConfig
from loratory.signals import interrupt_requested
from loratory.text.rendering import render_prompt
from loratory.text.template import make_renderer
from loratory.tree.generation import decode_answer, decode_pieces, stream_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
MODELS = SHARED / "data" / "models"
PROMPT = PromptConfig(system="One of: {labels}.", user="Text: {text}", date="2025-01-01")


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talker(tmp_path_factory, tiny_folder) -> Path:
    """A model that generates an endless sequence of a and b."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = byte_tokenizer()
    config = transformers.LlamaConfig.from_pretrained(tiny_folder, max_position_embeddings=100_000)
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_folder, config=config)
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        row = head[a].clone()
        head.zero_()
        head[a], head[b] = row, -row
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talking(talker) -> ChatModel:
    return open_chat(None, str(talker), None, 40, False)[0]


def test_closing_a_stream_stops_the_model(talking):
    calls = []

    def slow(*_):
        calls.append(1)
        time.sleep(0.001)

    prompt = np.array([7, 8, 9], dtype=np.int64)
    hook = talking.model.register_forward_pre_hook(slow)
    before = set(threading.enumerate())  # threads of other tests may end at any time
    stream = stream_ids(talking.model, prompt, talking.renderer, 400)
    first = [next(stream) for _ in range(3)]
    stream.close()
    hook.remove()
    assert set(threading.enumerate()) <= before
    assert len(calls) < 400
    assert first == list(stream_ids(talking.model, prompt, talking.renderer, 3))


def test_an_answer_ends_at_the_context_limit_and_a_prompt_that_fills_the_context_is_an_error(tiny_folder):
    base = load_model(ModelConfig(str(tiny_folder)), resolve_machine("cpu", "float32", 0))
    renderer = make_renderer(base.text.tokenizer, (271,), PROMPT)
    prompt = np.full(597, 50, dtype=np.int64)
    assert 0 < len(list(stream_ids(base.model, prompt, renderer, 50))) <= 3
    with pytest.raises(UserError, match="does not fit"):
        next(stream_ids(base.model, np.full(600, 50, dtype=np.int64), renderer, 50))


BYTES = make_renderer(byte_tokenizer(), (2,), PROMPT)


@pytest.mark.thorough
@given(st.lists(st.integers(0, 258), max_size=30))
@settings(derandomize=True, deadline=None)
def test_the_pieces_of_a_stream_join_to_its_text(ids: list[int]):
    pieces = list(decode_pieces(ids, BYTES))
    assert "".join(pieces) == decode_answer(ids, BYTES)
    assert len(pieces) == (ids.index(2) if 2 in ids else len(ids)) + 1


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd"), max_size=20)


@needs_shared
@pytest.mark.parametrize("name", ["stories260K", "science-qwen2-12m"])
def test_a_stream_never_yields_part_of_a_character(name: str):
    text = load_tokenizer(ModelConfig(str(MODELS / name)))
    renderer = make_renderer(text.tokenizer, text.stop_ids, PROMPT)

    @given(TEXTS)
    @settings(derandomize=True, deadline=None, max_examples=60)
    def check(words: str):
        ids = renderer.encode(words)[0].tolist()
        pieces = list(decode_pieces(ids, renderer))
        assert "".join(pieces) == decode_answer(ids, renderer)
        assert not any("\ufffd" in piece for piece in pieces)

    check()


# ---- lines -----------------------------------------------------------------------------------------------------------


def scripted(*lines: str) -> Callable[[str], str]:
    remaining = iter(lines)

    def read(_: str) -> str:
        for line in remaining:
            return line
        raise EOFError

    return read


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one", "two"], "one"),
        (["one\\", "two\\", "three", "four"], "one\ntwo\nthree"),
        (["one\\"], "one"),
        (["half \ud83d"], "half ?"),
        ([], None),
    ],
)
def test_a_line_that_ends_in_a_backslash_continues_on_the_next_line(lines, message):
    assert read_message(scripted(*lines), "> ") == message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  /show me ", ("", "/show me")),
        ("/Show", ("show", "")),
        ("/system", ("system", "")),
        ("/system  be\nbrief ", ("system", "be\nbrief")),
        ("a /quit", ("", "a /quit")),
        (" ", ("", "")),
    ],
)
def test_a_line_is_a_command_or_a_message(line, expected):
    assert parse_command(line) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_the_error_for_a_misspelled_command_suggests_the_closest_one(name):
    with pytest.raises(UserError, match=f"Unknown command.*\n.*'/{name}'"):
        parse_command(f"/{name}{name[-1]}")


@pytest.mark.parametrize("line", ["/", "/xyzzy", "/reset it", "/show me"])
def test_invalid_commands_are_user_errors(line):
    with pytest.raises(UserError):
        parse_command(line)


ROUNDS = st.lists(st.integers(1, 9), max_size=6).map(
    lambda sizes: tuple(Message(role, "x" * n) for n in sizes for role in ("user", "assistant"))
)


@given(ROUNDS, st.integers(0, 60))
@settings(derandomize=True, deadline=None)
def test_the_latest_exchanges_that_fit_are_kept(turns: tuple[Message, ...], limit: int):
    def count(kept: tuple[Message, ...]) -> int:
        return 5 + sum(len(m.content) for m in kept)

    kept = fit_history(turns, count, limit)
    assert kept == turns[len(turns) - len(kept) :] and len(kept) % 2 == 0
    assert count(kept) <= limit or not kept
    assert kept == turns or count(turns[len(turns) - len(kept) - 2 :]) > limit


def test_control_characters_are_shown_as_pictures():
    text = "a\tb\n\x1b[31mred\x07\r\x7f\x9b日"
    shown = printable(text)
    assert len(shown) == len(text) and shown[:4] == "a\tb\n" and "[31mred" in shown and shown[-1] == "日"
    assert not any(c in shown for c in "\x1b\x07\r\x7f\x9b")


def test_each_column_contains_its_complete_text():
    left, right = "a[b] word " * 12, "日本" * 30 + "\nend"
    out = io.StringIO()
    Console(file=out, width=50).print(side_by_side({"one": left, "two": right}))
    rows = [line.strip("│").split("│") for line in out.getvalue().splitlines() if line.startswith("│")]
    assert "".join(row[0].strip() + " " for row in rows).split() == left.split()
    assert "".join(row[1].strip() for row in rows) == right.replace("\n", "")


# ---- conversations ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory, tiny_folder) -> Path:
    """A run directory with an adapter that changes the answers of the tiny model."""
    base = load_model(ModelConfig(str(tiny_folder)), resolve_machine("cpu", "float32", 0))
    model = adapters.attach_adapter(base, AdapterConfig(rank=2), 0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    card = {
        "adapter": "lora",
        "base": {"name": base.name, "revision": None, "weights_sha256": base.hashes["weights"]},
        "prompt": {"system": PROMPT.system, "user": PROMPT.user, "date": PROMPT.date},
        "answer": "sound",
        "labels": ["Meow", "Moo"],
    }
    run = tmp_path_factory.mktemp("run")
    adapters.save_tuned_model(model, run / "adapter", base.text.tokenizer, base.text.stop_ids, card)
    return run


@pytest.fixture(scope="module")
def opened(tuned_run) -> tuple[ChatModel, Conversation]:
    return open_chat(tuned_run, "builtin", None, 12, False)


@dataclasses.dataclass(frozen=True)
class Talk:
    conversation: Conversation
    replies: str
    notices: str


def talk(
    chat_model: ChatModel,
    conversation: Conversation,
    *lines: str,
    stopped: Callable[[], bool] = lambda: False,
    tty: bool = False,
) -> Talk:
    out, notices = io.StringIO(), []
    console = Console(file=out, width=60, force_terminal=tty)
    end = converse(
        chat_model, conversation, Terminal(scripted(*lines), console, notices.append, lambda: nullcontext(stopped))
    )
    return Talk(end, out.getvalue(), "\n".join(notices))


def test_disabling_the_adapter_gives_the_base_model_and_is_undone_afterwards(opened, tiny_folder):
    chat_model, _ = opened
    dtype = str(next(p.dtype for n, p in chat_model.model.named_parameters() if "base_layer" in n)).removeprefix(
        "torch."
    )
    base = load_model(ModelConfig(str(tiny_folder)), resolve_machine("auto", dtype, 0)).model
    ids = torch.arange(3, 20)[None].to(next(base.parameters()).device)
    with torch.no_grad():
        plain, tuned = base(input_ids=ids).logits, chat_model.model(input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), adapters.adapter_disabled(chat_model.model):
            assert torch.equal(chat_model.model(input_ids=ids).logits, plain)
            _ = 1 / 0
        assert torch.equal(chat_model.model(input_ids=ids).logits, tuned)
    assert not torch.equal(plain, tuned)


def test_a_tuned_run_uses_its_system_message_and_its_prompt(opened):
    chat_model, conversation = opened
    result = talk(chat_model, conversation, "the {cat}", "/raw", "the {cat}").conversation
    first, _, second = [m.content for m in result.turns[:3]]
    assert (first, second) == ("Text: the {cat}", "the {cat}")
    assert result.last[0].prompt.text.startswith("<|im_start|>system\nOne of: Meow, Moo.<|im_end|>")
    assert "Text: {text}" in welcome_message(chat_model, conversation)


@pytest.mark.parametrize("template", ["{a} and {b}", "nothing", None])
def test_a_prompt_without_one_column_is_not_filled(opened, template):
    chat_model = dataclasses.replace(opened[0], template=template)
    conversation = dataclasses.replace(opened[1], fills_template=False)
    assert user_message("hi", conversation, chat_model) == Message("user", "hi")
    assert "no effect" in talk(chat_model, conversation, "/raw").notices


def test_a_system_message_with_columns_is_an_error_unless_another_is_given(tuned_run):
    tuned = load(tuned_run)
    with_columns = dataclasses.replace(tuned, prompt=dataclasses.replace(tuned.prompt, system="About {text}"))
    with pytest.raises(UserError, match="contains columns"):
        list(with_columns.ask("hi", None, 3))
    assert list(with_columns.ask("hi", "other", 3))


def test_the_model_sees_all_turns_so_far_and_the_system_message(opened):
    chat_model, conversation = opened
    done = talk(chat_model, conversation, "/system be brief", "one", "two", " /three").conversation
    reply = done.last[0]
    assert [m.role for m in done.turns] == ["user", "assistant"] * 3
    expected = render_prompt([Message("system", "be brief"), *done.turns[:-1]], chat_model.renderer)
    assert reply.prompt.text == expected.text
    assert done.turns[-1].content == reply.text
    assert done.turns[-2].content == "Text: /three"
    assert talk(chat_model, done, "/reset").conversation.turns == ()
    fresh = talk(chat_model, done, "/system", "one").conversation
    assert "system" not in fresh.last[0].prompt.text and len(fresh.turns) == 2


def test_the_first_answer_equals_that_of_ask(opened, tuned_run):
    chat_model, conversation = opened
    result = talk(chat_model, conversation, "the cow")
    assert result.replies == "".join(map(printable, load(tuned_run).ask("the cow", None, 12))) + "\n"


def test_base_and_tuned_model_answer_separately_and_side_by_side(opened):
    chat_model, conversation = opened
    base = talk(chat_model, conversation, "/base", "hello").conversation.last[0]
    tuned = talk(chat_model, conversation, "/base", "/adapter", "hello").conversation.last[0]
    both = talk(chat_model, conversation, "/compare", "hello")
    assert base.token_ids != tuned.token_ids
    assert [(a.speaker, a.token_ids) for a in both.conversation.last] == [
        (BASE, base.token_ids),
        (TUNED, tuned.token_ids),
    ]
    assert both.conversation.turns[-1].content == tuned.text
    assert talk(chat_model, conversation, "/base", "/compare", "hello").conversation.turns[-1].content == base.text
    assert len(talk(chat_model, both.conversation, "/compare", "again").conversation.last) == 1
    assert BASE in both.replies and TUNED in both.replies
    assert talk(chat_model, conversation, "/compare", "hello", tty=True).conversation.turns == both.conversation.turns


def test_the_oldest_turns_are_dropped_if_the_context_is_full(opened):
    chat_model, conversation = opened
    result = talk(chat_model, conversation, *(f"{i}" + "x" * 120 for i in range(9)))
    last = result.conversation.last[0]
    assert len(last.prompt.token_ids) + 12 <= 600
    assert "One of: Meow" in last.prompt.text and "8xxx" in last.prompt.text and "0xxx" not in last.prompt.text
    assert "2 oldest turns" in result.notices
    assert 2 < len(result.conversation.turns) < 18


@pytest.mark.parametrize(("excess", "turns_kept"), [(0, 4), (1, 2)])
def test_history_reserves_exactly_the_tokens_of_the_answer(opened, excess, turns_kept):
    chat_model, conversation = opened
    before = talk(chat_model, conversation, "one").conversation
    messages = [Message("system", "One of: Meow, Moo."), *before.turns, Message("user", "Text: ")]
    room = 600 - 12 - len(render_prompt(messages, chat_model.renderer).token_ids)
    result = talk(chat_model, before, "x" * (room + excess))
    assert len(result.conversation.turns) == turns_kept
    assert excess or len(result.conversation.last[0].prompt.token_ids) == 588


def test_a_message_that_does_not_fit_changes_nothing(opened):
    chat_model, conversation = opened
    before = talk(chat_model, conversation, "one").conversation
    result = talk(chat_model, before, "x" * 700)
    assert result.conversation == before and "does not fit" in result.notices


def after(count: int) -> Callable[[], bool]:
    """A stop function that returns True from its ``count``-th call on."""
    calls: Iterator[int] = iter(range(1, 10**6))
    return lambda: next(calls) >= count


def test_the_text_of_an_interrupted_answer_stays_in_the_conversation(talking):
    conversation = Conversation(None, BASE, fills_template=False)
    whole = talk(talking, conversation, "hello").conversation
    result = talk(talking, conversation, "hello", stopped=after(6))
    assert result.conversation.last[0].token_ids == whole.last[0].token_ids[:5]
    assert result.conversation.turns == (Message("user", "hello"), Message("assistant", whole.turns[1].content[:5]))
    assert result.replies == whole.turns[1].content[:5] + "\n"
    assert "stopped" in result.notices


def test_ctrl_c_stops_only_the_answer(talking):
    calls, handler = [], signal.getsignal(signal.SIGINT)

    def press(*_):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.005)

    chat_model = dataclasses.replace(talking, max_new_tokens=400)
    terminal = Terminal(scripted("hello"), Console(file=io.StringIO()), lambda _: None, interrupt_requested)
    hook = chat_model.model.register_forward_pre_hook(press)
    conversation = converse(chat_model, Conversation(None, BASE, fills_template=False), terminal)
    hook.remove()
    assert conversation.last[0].interrupted and 4 <= len(conversation.last[0].text) < 400
    assert conversation.turns[1].content == conversation.last[0].text
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_message_whose_answer_is_interrupted_before_any_text_is_dropped(talking):
    before = talk(talking, Conversation(None, BASE, fills_template=False), "hello").conversation
    result = talk(talking, before, "more", stopped=lambda: True)
    assert result.conversation.turns == before.turns


def test_interrupting_a_comparison_stops_both(opened):
    chat_model, conversation = opened
    result = talk(chat_model, conversation, "/compare", "hello", stopped=after(3))
    assert [len(a.token_ids) for a in result.conversation.last] == [2, 0]
    assert result.conversation.turns == ()
    assert (
        f"{TUNED}: {len(result.conversation.last[1].prompt.token_ids)} tokens, 0 of"
        in talk(chat_model, result.conversation, "/show").replies
    )


def test_show_prints_the_tokens_of_the_last_exchange(opened):
    chat_model, conversation = opened
    assert "There is no exchange" in talk(chat_model, conversation, "/show").notices
    after_two = talk(chat_model, conversation, "one", "two").conversation
    reply = after_two.last[0]
    seen = seen_tokens(reply, chat_model.renderer)
    assert seen.token_ids.tolist() == [*reply.prompt.token_ids.tolist(), *reply.token_ids]
    assert seen.loss_weights.sum() == len(reply.token_ids)
    text = highlighted(seen)
    assert text.plain.replace("↵\n", "\n") == seen.text
    green = "".join(text.plain[s.start : s.end] for s in text.spans if s.style == TRAINED)
    assert green == printable(chat_model.renderer.tokenizer.decode(reply.token_ids)).replace("\n", "↵\n")
    shown = talk(chat_model, after_two, "/show")
    assert shown.conversation == after_two
    assert f"{len(seen.token_ids)} tokens, {len(reply.token_ids)} of them" in shown.replies
    assert seen.text in shown.replies.replace("↵\n", "\n")


@pytest.mark.parametrize("line", ["/base", "/adapter", "/compare", "/raw"])
def test_commands_that_need_an_adapter_change_nothing_with_a_base_model(talking, line):
    conversation = Conversation(None, BASE, fills_template=False)
    result = talk(talking, conversation, line)
    assert result.conversation == conversation and line in result.notices


@pytest.mark.parametrize(("refusal", "expected"), [("{{ raise_exception('no system') }}", "rejects"), ("", "drops")])
def test_a_system_message_that_the_template_does_not_support_changes_nothing(opened, refusal, expected):
    chat_model, conversation = opened
    tokenizer = byte_tokenizer()
    loop = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")
    tokenizer.chat_template = f"{{% if messages[0].role == 'system' %}}{refusal}{{% endif %}}{loop}"
    strict = dataclasses.replace(chat_model, renderer=make_renderer(tokenizer, (2,), PROMPT))
    before = talk(strict, dataclasses.replace(conversation, system=None), "one").conversation
    result = talk(strict, before, "/system be brief")
    assert result.conversation == before and expected in result.notices


def test_help_names_every_command_and_quit_ends(opened):
    notices = talk(*opened, "/help", "/quit", "/xyzzy").notices
    assert all(f"/{name}" in notices for name in COMMANDS) and "xyzzy" not in notices


# ---- command line ----------------------------------------------------------------------------------------------------


def test_piped_input_gives_answers_on_standard_output_and_messages_on_standard_error(talker, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/compre\n\nhow\\\nare you"))
    assert main(["chat", "--model", str(talker), "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert [len(line) for line in out.splitlines()] == [5, 5] and set(out) <= set("ab\n")
    assert "'/compare'" in err


@pytest.mark.parametrize("flags", [["RUN", "--model", "x"], ["RUN/adapter/none"], ["RUN", "--max-new-tokens", "0"]])
def test_wrong_arguments_exit_with_2(tuned_run, flags, capsys):
    assert main(["chat", *(flag.replace("RUN", str(tuned_run)) for flag in flags)]) == 2
    assert "error: " in capsys.readouterr().err


# Ctrl-C only reaches processes whose controlling terminal is the one it is typed in.
IN_A_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from loratory.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(talker):
    parent, child = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, "chat", "--model", str(talker), "--max-new-tokens", "90000"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    seen, limit = b"", time.monotonic() + 240

    def until(done: Callable[[bytes], bool]) -> None:
        nonlocal seen
        while not done(seen):
            assert time.monotonic() < limit and process.poll() is None, seen.decode()
            if select.select([parent], [], [], 0.1)[0]:
                seen += os.read(parent, 4096)

    try:
        until(lambda text: b"> " in text)
        os.write(parent, b"hello\r")
        until(lambda text: any(word in text for word in (b"aaaa", b"bbbb", b"abab")))
        os.write(parent, b"\x03")
        until(lambda text: b"(stopped)" in text)
        os.write(parent, b"/show\r")
        until(lambda text: b"of them generated" in text)
        while process.poll() is None and time.monotonic() < limit:
            os.write(parent, b"\x04")
            time.sleep(0.1)
        assert process.wait(5) == 0
    finally:
        process.kill()
        os.close(parent)

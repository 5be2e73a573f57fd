"""A hostile chat template breaks a limit and is named; it does not hang, fill the memory, or reach this process."""

import os
import resource
import signal
import time

import pytest
from tiny import byte_tokenizer

from loratory.data.examples import Message
from loratory.errors import UserError
from loratory.settings import PromptConfig
from loratory.text.template import Renderer, apply_template, make_renderer
from loratory.text.template_runner import template_runner

LOOPS = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "arithmetic": "{{ (99999999 ** 9999999) % 7 }}",
}  # fmt: skip
BOMBS = {
    "repetition": "{{ 'a' * 10 ** 10 }}",
    "repetition of a variable": "{% set n = 10 ** 10 %}{{ messages[0]['content'] * n }}",
    "doubling": "{% set x = namespace(t='a' * 64) %}"
    "{% for i in range(64) %}{% set x.t = x.t ~ x.t %}{% endfor %}{{ x.t }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "join": "{{ ['a' * 10 ** 6] | list * 10 ** 5 | join('b') }}{{ (['a' * 10 ** 6] * 10 ** 5) | join('b') }}",
    "list": "{{ [0] * 10 ** 10 }}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "indent": "{{ 'a\\nb' | indent(10 ** 10) }}",
    "long output": "{% for a in range(999) %}{{ 'a' * 10 ** 5 }}{% endfor %}",
}  # fmt: skip


def renderer_of(source: str) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "some-model"
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|im_end|>" + source
    return make_renderer(tokenizer, (), PromptConfig())


@pytest.mark.thorough
@pytest.mark.parametrize("how", LOOPS)
def test_a_template_that_takes_long_is_ended(how, monkeypatch):
    monkeypatch.setattr("loratory.text.template_runner.SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(UserError, match="breaks a limit") as caught:
        renderer_of(LOOPS[how])
    assert time.monotonic() - started < 10
    assert caught.value.where == "some-model" and "more than 1 seconds" in str(caught.value.found)


@pytest.mark.thorough
@pytest.mark.parametrize("how", BOMBS)
def test_a_template_that_needs_too_much_memory_is_ended(how):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(UserError, match=r"breaks a limit|rejects these messages|malformed") as caught:
        renderer_of(BOMBS[how])
    assert caught.value.found
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_template_that_misbehaves_only_for_some_messages_is_ended():
    renderer = renderer_of("{% if 'zz' in messages[0]['content'] %}{{ 'a' * 10 ** 10 }}{% endif %}")
    message = Message("user", "y")
    assert apply_template(renderer, [message], True) == "y<|im_end|>"
    with pytest.raises(UserError, match="breaks a limit"):
        apply_template(renderer, [Message("user", "zz")], True)
    assert apply_template(renderer, [message], True) == "y<|im_end|>"  # in a new process


def test_a_template_with_a_very_long_source_is_rejected():
    with pytest.raises(UserError, match="breaks a limit"):
        renderer_of("{# " + "x" * 2**20 + " #}")


@pytest.mark.thorough
def test_templates_run_in_one_other_process_that_ends_when_it_is_stopped():
    renderer = renderer_of("")
    running = template_runner().process
    assert running and running.pid != os.getpid()
    apply_template(renderer, [Message("user", "y")], True)
    assert template_runner().process is running
    template_runner().stop()
    assert running.returncode is not None
    assert apply_template(renderer, [Message("user", "y")], True) == "y<|im_end|>"


def test_an_interrupted_request_does_not_leave_its_result_to_the_next_one():
    slow = "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}"
    renderer = renderer_of("{% if 'zz' in messages[0]['content'] %}" + slow + "{% endif %}")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            apply_template(renderer, [Message("user", "zz")], True)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert apply_template(renderer, [Message("user", "second")], True) == "second<|im_end|>"

"""The process that runs chat templates: reads requests from standard input and writes results, as lines of JSON.

It renders with Transformers' own function, so its texts are those of ``tokenizer.apply_chat_template``. It limits its
own memory; the process that started it limits its time. It runs outside the package.
"""

import contextlib
import datetime
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from transformers.utils.chat_template_utils import render_jinja_template

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY_BYTES = 1 << 30  # what a template may use in addition to the process itself
MAX_CHARACTERS = 32 << 20


def main() -> None:
    """Answers requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that started this one
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the results
    limit_memory()
    templates: list[str] = []
    for line in requests:
        try:
            result = answer(json.loads(line), templates)
        except MemoryError:
            result = {"error": "it needs too much memory", "is_limit": True}
        except BaseException as error:  # a template can raise anything
            result = {"error": str(error)[:300] or type(error).__name__}
        results.write(json.dumps(result).encode() + b"\n")
        results.flush()


def answer(request: dict[str, Any], templates: list[str]) -> Any:
    """The result of one request: remember a template, describe one, or render messages."""
    if "add" in request:
        templates.append(request["add"])
        return {"text": ""}
    if "describe" in request:
        return described(request["describe"], request["day"])
    [text], _ = render_jinja_template(
        conversations=[request["messages"]],
        tools=request["tools"],
        chat_template=templates[request["template"]],
        add_generation_prompt=request["prompt"],
        **request["arguments"],
    )
    if len(text) > MAX_CHARACTERS:
        return {"error": f"it writes more than {MAX_CHARACTERS} characters", "is_limit": True}
    return {"text": text}


def described(source: str, day: str) -> dict[str, Any]:
    """The template with the given day in place of its calls of ``strftime_now``, whether calls are left, because the
    template computes their format, and the names of its variables."""
    call = r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)"""
    moment = datetime.datetime.strptime(day, "%Y-%m-%d")
    dated = re.sub(call, lambda m: repr(moment.strftime(m[2])), source)
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    tree = environment.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", dated))
    calls = (node.node for node in tree.find_all(jinja2.nodes.Call))
    computed = any(isinstance(name, jinja2.nodes.Name) and name.name == "strftime_now" for name in calls)
    variables = sorted(jinja2.meta.find_undeclared_variables(tree))
    return {"dated": dated, "computes_date": computed, "variables": variables}


def limit_memory() -> None:
    """Limits the address space, where the system can."""
    if resource is None:
        return
    statistics = Path("/proc/self/statm")
    used = int(statistics.read_text().split()[0]) * resource.getpagesize() if statistics.exists() else 4 << 30
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


if __name__ == "__main__":
    main()

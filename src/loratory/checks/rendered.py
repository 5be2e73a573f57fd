"""Checks that need the tokenizer and its template: special tokens, labels in the prompt, examples that are too long."""

from collections.abc import Iterator

from loratory.checks.material import Material, finding
from loratory.data import TOOLS, Example, Finding
from loratory.text import Renderer, example_length, template_deviation


def special_tokens(material: Material) -> Iterator[Finding]:
    found = [e for e in material.examples if _has_special_text(e, material.renderer)]
    if found:
        message = f"{len(found)} examples contain the text of a special token, which the model reads as that token"
        yield finding("special_tokens_in_data", "warning", message, found)


def _has_special_text(example: Example, renderer: Renderer) -> bool:
    texts = [m.content for m in example.messages if m.role not in ("system", TOOLS)] + list(example.answers)
    return any(special in text for text in texts for special in renderer.special_texts)


def labels_in_prompt(material: Material) -> Iterator[Finding]:
    labels = material.split.labels
    if not material.train or not labels or material.renderer.is_masked_lm or material.split.with_prompt:
        return
    text = " ".join(m.content for m in material.train[0].messages)
    unnamed = [label for label in labels if label not in text]
    if unnamed:
        message = f"The prompt does not name {len(unnamed)} of {len(labels)} labels, so prompting cannot know them"
        yield finding("labels_not_in_prompt", "warning", f"{message}: use {{labels}}", [], len(unnamed))


def overlong(material: Material) -> Iterator[Finding]:
    if material.context is None:
        return
    lengths = {id(e): example_length(e, material.renderer) for e in material.examples}
    longer = [e for e in material.examples if lengths[id(e)] > material.context]
    if longer:
        severity = "error" if material.overlong == "error" else "note"
        longest = max(lengths.values())
        message = f"{len(longer)} examples are longer than the model's context of {material.context} tokens"
        yield finding("overlong", severity, f"{message}; the longest has {longest}", longer)


def template_differs(material: Material) -> Iterator[Finding]:
    sentence = None if material.renderer.is_masked_lm else template_deviation(material.renderer)
    if sentence:
        yield finding("template_differs", "note", sentence, [], 0)

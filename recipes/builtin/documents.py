"""Documents for pretraining: a paper as plain text, or a conversation about it.

Every question can be answered from the paper itself. No document contains labels, so that classifying papers into
fields remains an unseen task. A document depends only on the papers and the random draws.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from papers import Paper

END, TURN, STOP, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = 0.45  # share of documents that are plain text
MOST_TURNS = 8
KEYWORDS = 4
MOST_OPTIONS = 10

Messages = list[tuple[str, str]]


@dataclass(frozen=True)
class Words:
    """Document frequencies: the number of papers, and in how many of them each word occurs."""

    papers: int
    counts: dict[str, int]

    def rarity(self, word: str) -> float:
        """The inverse document frequency, as a natural log; 0 for a word too rare to be a term."""
        count = self.counts.get(word, 0)
        return math.log(self.papers / count) if count >= 5 else 0.0


def count_words(papers: Iterable[Paper]) -> Words:
    total, counts = 0, Counter()
    for total, paper in enumerate(papers, 1):  # noqa: B007
        counts.update(set(words_of(paper.text)))
    return Words(total, dict(counts))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z][a-z-]{3,}", text.lower())


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.?!]) (?=[A-Z])", text)


def keywords(paper: Paper, words: Words) -> str:
    """The words that are frequent in this paper and rare in others."""
    counts = Counter(words_of(paper.text))
    ranked = sorted(counts, key=lambda w: (-(counts[w] ** 0.5) * words.rarity(w), w))
    return ", ".join(ranked[:KEYWORDS])


def summary(paper: Paper, words: Words) -> str:
    """The sentence of the abstract that shares most with the title, weighted by rarity."""
    title = set(words_of(paper.title))

    def overlap(sentence: str) -> float:
        in_sentence = set(words_of(sentence))
        return sum(words.rarity(w) for w in in_sentence & title) / (10 + len(in_sentence)) ** 0.5

    return max(sentences_of(paper.abstract), key=overlap)


# ---- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """An instruction, and for each paper the text to which it applies and the answer."""

    instruction: str
    turns: list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Material for questions: other papers, as wrong options, and document frequencies."""

    others: Sequence[Paper]
    words: Words


Form = Callable[[Sequence[Paper], Source, random.Random], Questions]


def ask_title(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("Write a title for this abstract.", "Give the paper a title.", "What could this paper be called?")
    return Questions(draw.choice(ways), [(paper.abstract, paper.title) for paper in papers])


def ask_abstract(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("Write the abstract of a paper with this title.", "What might the abstract of this paper say?")
    return Questions(draw.choice(ways), [(paper.title, paper.abstract) for paper in papers])


def ask_keywords(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("List the keywords.", "Which terms describe this paper best?", "Name key terms of the text.")
    return Questions(draw.choice(ways), [(as_text(p, draw), keywords(p, source.words)) for p in papers])


def ask_rest(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("Continue the text.", "How does the abstract go on?", "Complete this abstract.")
    return Questions(draw.choice(ways), [in_two(paper, draw) for paper in papers])


def ask_short(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("Shorten this to one sentence.", "Say it in one sentence of the text.", "Summarize the abstract briefly.")
    return Questions(draw.choice(ways), [(paper.abstract, summary(paper, source.words)) for paper in papers])


def choose_title(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = ("Which of these titles belongs to the abstract", "Choose the title that fits", "Pick the right title")
    return choice(draw.choice(ways), papers, source, draw, lambda paper: paper.title)


def choose_keywords(papers: Sequence[Paper], source: Source, draw: random.Random) -> Questions:
    ways = (
        "Which of these describes the paper",
        "Choose the terms that fit the text",
        "The text is about one of these",
    )
    return choice(draw.choice(ways), papers, source, draw, lambda paper: keywords(paper, source.words))


FORMS: dict[Form, float] = {
    ask_title: 0.16,
    ask_abstract: 0.06,
    ask_keywords: 0.12,
    ask_rest: 0.08,
    ask_short: 0.06,
    choose_title: 0.22,
    choose_keywords: 0.3,
}
SEVERAL_TURNS = {choose_title: 0.7, choose_keywords: 0.7}  # share of multi-turn conversations, by form
FEW_HAVE_SEVERAL_TURNS = 0.1  # the same for all other forms


def choice(
    instruction: str, papers: Sequence[Paper], source: Source, draw: random.Random, answer: Callable[[Paper], str]
) -> Questions:
    """Multiple choice: the instruction lists the answers of the papers and of some others.

    A single paper is shown by its abstract. With several papers, each turn draws a paper and one of its sentences. An
    answer can be correct more than once, so that options cannot be ruled out by elimination.
    """
    listed = [*papers, *others_of(papers, source, draw)]
    if len(papers) == 1:
        turns = [(papers[0].abstract, answer(papers[0]))]
    else:
        drawn = draw.choices(listed, k=draw.randint(2, MOST_TURNS))
        turns = [(draw.choice(sentences_of(paper.abstract)), answer(paper)) for paper in drawn]
    options = [answer(paper) for paper in listed]
    draw.shuffle(options)
    form = draw.randrange(3)
    text = "\n" + "\n".join(f"- {o}" for o in options) if form == 0 else ("; " if form == 1 else " | ").join(options)
    return Questions(f"{instruction}: {text}", turns)


def others_of(papers: Sequence[Paper], source: Source, draw: random.Random) -> list[Paper]:
    """Papers for the wrong options: at least one, and in total at most MOST_OPTIONS options."""
    return draw.sample(source.others, min(len(source.others), draw.randint(1, max(1, MOST_OPTIONS - len(papers)))))


def as_text(paper: Paper, draw: random.Random) -> str:
    """A paper with or without its title, in one of the forms in which people paste it."""
    if draw.random() < 0.4:
        return paper.abstract
    return draw.choice((paper.text, f"Title: {paper.title}\nAbstract: {paper.abstract}"))


def in_two(paper: Paper, draw: random.Random) -> tuple[str, str]:
    """The first sentences of the abstract, and the rest; an abstract of one sentence is split between words."""
    parts = sentences_of(paper.abstract)
    parts = parts if len(parts) > 1 else paper.abstract.split()
    cut = draw.randint(1, max(1, len(parts) - 1))
    return " ".join(parts[:cut]), " ".join(parts[cut:])


# ---- documents -------------------------------------------------------------------------------------------------------


def make_document(papers: Sequence[Paper], source: Source, draw: random.Random, plain: float = PLAIN) -> str:
    """The first paper as plain text, or a conversation about it; several turns cover several papers."""
    if draw.random() < plain:
        return papers[0].text + END
    form = draw.choices(list(FORMS), list(FORMS.values()))[0]
    several = draw.random() < SEVERAL_TURNS.get(form, FEW_HAVE_SEVERAL_TURNS)
    turns = draw.randint(2, MOST_TURNS) if several else 1
    return chat(conversation(form(papers[:turns], source, draw), draw))


def conversation(questions: Questions, draw: random.Random) -> Messages:
    """The messages, with the instruction as a system message, before every text, or after every text."""
    place = draw.randrange(3)
    messages: Messages = [("system", questions.instruction)] if place == 0 else []
    for text, answer in questions.turns:
        content = (text, f"{questions.instruction}\n\n{text}", f"{text}\n\n{questions.instruction}")[place]
        messages += [("user", content), ("assistant", answer)]
    return messages


def chat(messages: Messages) -> str:
    """The messages as the chat template renders them."""
    return "".join(f"{TURN}{role}\n{content}{STOP}\n" for role, content in messages)

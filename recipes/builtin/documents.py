"""A paper as a document to read: plain text, or a conversation about it.

What is asked can be answered from the paper itself: no label of any kind is made up for it, so that sorting papers into
fields stays unseen. A document is a function of the paper, of the draws, and of nothing else.
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
    """In how many of so many papers each word occurs."""

    papers: int
    counts: dict[str, int]

    def rarity(self, word: str) -> float:
        """The inverse document frequency, natural log; 0 for a word that is too rare to be a term."""
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
    """The words that are rare elsewhere and frequent here."""
    found = Counter(words_of(paper.text))
    ranked = sorted(found, key=lambda w: (-(found[w] ** 0.5) * words.rarity(w), w))
    return ", ".join(ranked[:KEYWORDS])


def summary(paper: Paper, words: Words) -> str:
    """The sentence that says most of what the title says."""
    title = set(words_of(paper.title))

    def said(sentence: str) -> float:
        own = set(words_of(sentence))
        return sum(words.rarity(w) for w in own & title) / (10 + len(own)) ** 0.5

    return max(sentences_of(paper.abstract), key=said)


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """One instruction, and for each paper the text that it is about and the answer."""

    instruction: str
    turns: list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """What questions are made from: other papers to choose among, and how rare words are."""

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
SEVERAL_TURNS = {choose_title: 0.7, choose_keywords: 0.7}  # share of a form's conversations that ask about several
FEW_HAVE_SEVERAL_TURNS = 0.1  # of the other forms


def choice(
    instruction: str, papers: Sequence[Paper], source: Source, draw: random.Random, answer: Callable[[Paper], str]
) -> Questions:
    """The answers of the papers and of some others, listed once in the instruction.

    One paper is asked about with its abstract. Of several, each turn draws a paper and a sentence of it: an answer can
    be right more than once, so that what is left over tells nothing.
    """
    listed = [*papers, *others_of(papers, source, draw)]
    if len(papers) == 1:
        turns = [(papers[0].abstract, answer(papers[0]))]
    else:
        asked = draw.choices(listed, k=draw.randint(2, MOST_TURNS))
        turns = [(draw.choice(sentences_of(paper.abstract)), answer(paper)) for paper in asked]
    options = [answer(paper) for paper in listed]
    draw.shuffle(options)
    form = draw.randrange(3)
    text = "\n" + "\n".join(f"- {o}" for o in options) if form == 0 else ("; " if form == 1 else " | ").join(options)
    return Questions(f"{instruction}: {text}", turns)


def others_of(papers: Sequence[Paper], source: Source, draw: random.Random) -> list[Paper]:
    """Papers to choose wrongly: one or more, so that there are at most MOST_OPTIONS in all."""
    return draw.sample(source.others, min(len(source.others), draw.randint(1, max(1, MOST_OPTIONS - len(papers)))))


def as_text(paper: Paper, draw: random.Random) -> str:
    """A paper with or without its title, as people would paste it."""
    if draw.random() < 0.4:
        return paper.abstract
    return draw.choice((paper.text, f"Title: {paper.title}\nAbstract: {paper.abstract}"))


def in_two(paper: Paper, draw: random.Random) -> tuple[str, str]:
    """Some sentences of the abstract, and the rest; an abstract of one sentence is cut between words."""
    parts = sentences_of(paper.abstract)
    parts = parts if len(parts) > 1 else paper.abstract.split()
    cut = draw.randint(1, max(1, len(parts) - 1))
    return " ".join(parts[:cut]), " ".join(parts[cut:])


# ---- documents -------------------------------------------------------------------------------------------------------


def make_document(papers: Sequence[Paper], source: Source, draw: random.Random, plain: float = PLAIN) -> str:
    """The first of the papers as plain text, or a conversation about it; one of several turns is about others too."""
    if draw.random() < plain:
        return papers[0].text + END
    form = draw.choices(list(FORMS), list(FORMS.values()))[0]
    several = draw.random() < SEVERAL_TURNS.get(form, FEW_HAVE_SEVERAL_TURNS)
    turns = draw.randint(2, MOST_TURNS) if several else 1
    return chat(conversation(form(papers[:turns], source, draw), draw))


def conversation(questions: Questions, draw: random.Random) -> Messages:
    """The instruction as a system message, before every text, or after it."""
    place = draw.randrange(3)
    messages: Messages = [("system", questions.instruction)] if place == 0 else []
    for text, answer in questions.turns:
        asked = (text, f"{questions.instruction}\n\n{text}", f"{text}\n\n{questions.instruction}")[place]
        messages += [("user", asked), ("assistant", answer)]
    return messages


def chat(messages: Messages) -> str:
    """What the chat template makes of the messages."""
    return "".join(f"{TURN}{role}\n{content}{STOP}\n" for role, content in messages)

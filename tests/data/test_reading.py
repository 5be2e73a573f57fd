"""Files of every kind give the rows that are meant, and every guess about a file is said."""

import codecs
import csv
import gzip
import io
import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loratory.data.columns import looks_like_data
from loratory.data.rows import Row, Table, column_text, columns_of, read_table, read_tables
from loratory.errors import UserError
from loratory.settings import DataConfig

FILES = Path(__file__).parent / "files"
quick = settings(derandomize=True, deadline=None, max_examples=60)
TEXTS = (
    "How long may I keep the atlas?", "Why was I charged, please; it was on time", 'She said "hello" and left',
    "Zwei\nZeilen", "Ein Gruß aus Köln – für 5 €", "C:\\new\\table", "tab\there", "plain", "01", "Où est le café ?",
)  # fmt: skip
LABELS = ("1", "2", "", "1", "2", "3", "1", "2", "3", "1")


def put(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return str(path)


def values_of(table: Table) -> list[dict[str, Any]]:
    return [dict(row.values) for row in table.rows]


def said(table: Table) -> list[str]:
    """What the findings say, without the name of the file."""
    return [finding.message.partition(": ")[2] for finding in table.findings]


# ---- files of other programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name for p in FILES.iterdir() if p.name[0] in "pdl"))
def test_files_of_other_programs_hold_the_rows_that_were_written(name: str):
    table = read_table(str(FILES / name))
    text, label = list(table.rows[0].values)[:2]
    expected = [pair for pair in zip(TEXTS, LABELS, strict=True) if not ("office" in name and "\t" in pair[0])]
    number = {"01": "1"} if "office" in name else {}  # the spreadsheet itself read it as a number
    expected = [(number.get(text, text), label) for text, label in expected]
    assert [(column_text(row, text), column_text(row, label)) for row in table.rows] == expected
    has_names = name not in ("postgresql.tsv", "postgresql-no-header.csv", "pandas-values.json")
    assert [text, label] == (["text", "label"] if has_names else ["column_1", "column_2"])
    assert all(finding.severity == "note" and finding.message.startswith(name) for finding in table.findings)


@pytest.mark.parametrize("suffix", ["xlsx", "xls", "ods"])
def test_the_first_sheet_with_cells_is_read_unless_another_is_chosen(tmp_path, suffix: str):
    path = str(FILES / f"sheets.{suffix}")
    table = read_table(path)
    assert [row.values["label"] for row in table.rows] == ["1", None, "3"]  # None: an error
    assert [row.values["price"] for row in table.rows][:2] == [None, "2.5"]
    assert said(table) == ["read sheet 'Tickets', not 'Empty', 'Notes' (data.sheet chooses)"]
    assert table.rows[0].source == f"{path}, row 2"
    chosen = read_table(path, DataConfig(sheet="Notes"))
    assert values_of(chosen) == [{"note": "a remark"}] and not chosen.findings
    with pytest.raises(UserError, match="no such sheet") as caught:
        read_table(path, DataConfig(sheet="Ticket"))
    assert caught.value.expected == "Empty, Tickets, Notes" and caught.value.fix == "did you mean 'Tickets'?"
    with pytest.raises(UserError, match="no rows"):
        read_table(path, DataConfig(sheet="Empty"))
    damaged = put(tmp_path, f"a.{suffix}", Path(path).read_bytes()[:1500])
    with pytest.raises(UserError, match="cannot be read"):
        read_table(damaged)


def test_a_spreadsheet_that_unpacks_to_too_much_is_rejected_unread(tmp_path):
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", bytes(40_000_000))
    with pytest.raises(UserError, match="too large"):
        read_table(str(path))


@pytest.mark.thorough
def test_a_spreadsheet_with_a_cell_far_away_ends_in_an_error_not_in_a_crash(tmp_path):
    path = tmp_path / "far.xlsx"
    with zipfile.ZipFile(FILES / "sheets.xlsx") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member.endswith("sheet2.xml"):
                content = content.replace(b'"B4"', b'"XFD1048576"').replace(b'r="4"', b'r="1048576"')
            new.writestr(member, content)
    with pytest.raises(UserError, match="cannot be read"):
        read_table(str(path))


# ---- delimiters and quoting ------------------------------------------------------------------------------------------

COMMAS = [["text", "label"], ["Hello, you", "a"], ["No; really", "b"], ["Plain", "a"], ["a|b\tc", "b"]]


def written(rows: Sequence[Sequence[str]], **options: Any) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **options).writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_delimiter_is_found_whatever_the_name_says(tmp_path, name: str, delimiter: str, quoting: Any):
    table = read_table(put(tmp_path, name, written(COMMAS, delimiter=delimiter, quoting=quoting)))
    assert [list(row.values.values()) for row in table.rows] == COMMAS[1:]
    words = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
    usual = {"a.csv": ",", "a.tsv": "\t"}[name]
    assert said(table) == ([] if delimiter == usual else [f"{words[delimiter]}-separated"])


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=8)
awkward = st.text('ab ,;\t|"\n\r\\éß', max_size=6)


@given(
    st.lists(st.lists(cells | awkward, min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
)
@quick
@pytest.mark.thorough
def test_any_table_of_strings_is_read_back_unchanged(
    tmp_path_factory, rows: list[list[str]], delimiter: str, quoting: Any, encoding: str, end: str
):
    rows = [row for row in rows if any(cell.strip() for cell in row)]  # rows without any value are left out
    table = [["text", "more", "label"], *rows, ["x", "y", "z"]]
    content = written(table, delimiter=delimiter, quoting=quoting, lineterminator=end)
    assume(end == "\r\n" or "\r" not in content)  # the writer does not quote it
    # Without quoting, the lines of such a file would be a table as well, with quotation marks in its texts.
    lines = content.splitlines()
    assume(delimiter != "\t" or any(line.count("\t") != 2 for line in lines))
    assume("\\N" not in content and (delimiter != "\t" or "\\" not in content))  # exports of databases
    path = put(tmp_path_factory.mktemp("any"), "a.csv", content, encoding)
    table = read_table(path, DataConfig(header=True))
    assert [list(row.values.values()) for row in table.rows] == [*rows, ["x", "y", "z"]]


@pytest.mark.thorough
@given(st.lists(st.lists(awkward, min_size=2, max_size=2), min_size=1, max_size=8), st.sampled_from(",;\t|"))
@quick
def test_backslashes_stay_in_a_file_that_doubles_its_quotation_marks(
    tmp_path_factory, rows: list[list[str]], delimiter: str
):
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    content = written([["text", "label"], *rows, ['a\\b "c"', "d"]], delimiter=delimiter, quoting=csv.QUOTE_ALL)
    table = read_table(put(tmp_path_factory.mktemp("any"), "a.csv", content), DataConfig(header=True))
    assert [list(row.values.values()) for row in table.rows] == [*rows, ['a\\b "c"', "d"]]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quotation_marks_escaped_by_backslashes(tmp_path, quoting: Any):
    rows = [["text", "label"], ['say "a, b"', "x"], ["two\nlines", "y"], ["C:\\dir\\new", "x"], ['"', '"']]
    content = written(rows, doublequote=False, escapechar="\\", quoting=quoting)
    table = read_table(put(tmp_path, "a.csv", content))
    assert [list(row.values.values()) for row in table.rows] == rows[1:]
    assert said(table) == ["quotation marks escaped by a backslash"]


def test_a_file_without_quoting_keeps_its_quotation_marks(tmp_path):
    lines = ["text\tlabel", '"Hello\ta', 'he said "hi\tb', '"quoted" start\ta', 'an end"\tb']
    table = read_table(put(tmp_path, "a.tsv", "\n".join(lines) + "\n"))
    assert [row.values["text"] for row in table.rows] == ['"Hello', 'he said "hi', '"quoted" start', 'an end"']
    assert said(table) == ["quotation marks are part of the text"]
    # Here quoted cells could be read, but they would swallow whole rows.
    lines = ["text\tlabel", '"Hello\ta', "one\tb", 'and bye"\ta', "two\tb"]
    table = read_table(put(tmp_path, "b.tsv", "\n".join(lines) + "\n"))
    assert len(table.rows) == 4


def test_a_space_after_the_delimiter_does_not_hide_a_quotation_mark(tmp_path):
    table = read_table(put(tmp_path, "a.csv", 'text, label\n"Hello, you", "a, b"\nBye, c\n'))
    assert values_of(table) == [{"text": "Hello, you", "label": "a, b"}, {"text": "Bye", "label": "c"}]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r"a\tb\nc\\d", "a\tb\nc\\d"),  # PostgreSQL
        ("a\\\tb\\\nc\\\\d", "a\tb\nc\\d"),  # MySQL
        (r'say "hi', 'say "hi'),
        (r"\N", None),
    ],
)
def test_text_exports_of_databases(tmp_path, line: str, text: str | None):
    for end, last in itertools.product(("\n", "\r\n"), ("", "\\.\n")):
        content = f"text\tlabel{end}{line}\tx{end}\\N\ty{end}plain\t\\N{end}{last}"
        table = read_table(put(tmp_path, "a.tsv", content))
        assert [tuple(row.values.values()) for row in table.rows] == [(text, "x"), (None, "y"), ("plain", None)]
    assert said(table) == ["backslash escapes of a database export"]


def test_escapes_without_a_null_are_told_from_latex_and_paths(tmp_path):
    exported = "text\tlabel\nDear all,\\nHello.\\n\\nBye\ta\nC:\\\\new\tb\n"
    assert read_table(put(tmp_path, "a.tsv", exported)).rows[0].values["text"] == "Dear all,\nHello.\n\nBye"
    for text in (r"\nabla \times \rho \nu", r"\alpha + \beta", r"C:\new\table", r"C:\temp\notes"):
        table = read_table(put(tmp_path, "b.tsv", f"text\tlabel\n{text}\ta\nother\tb\n"))
        assert table.rows[0].values["text"] == text and not table.findings


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;"])
def test_the_first_line_may_declare_the_delimiter(tmp_path, first: str):
    table = read_table(put(tmp_path, "a.csv", f"{first}\r\ntext;label\r\na, b;x\r\nc, d;y\r\n"))
    assert [row.values["text"] for row in table.rows] == ["a, b", "c, d"]
    assert [row.source[-2:] for row in table.rows] == [":3", ":4"]


def test_a_single_column_needs_no_quoting(tmp_path):
    for name in ("a.csv", "a.tsv"):
        table = read_table(put(tmp_path, name, 'text\nHello, you\ttoo\n"Bye, ""you"""\nAgain\n'))
        assert [row.values for row in table.rows] == [
            {"text": "Hello, you\ttoo"},
            {"text": 'Bye, "you"'},
            {"text": "Again"},
        ]
        assert said(table) == ["a single column"]


def test_a_row_that_is_too_long_is_named_with_what_helps(tmp_path):
    with pytest.raises(UserError, match="wrong number of columns") as caught:
        read_table(put(tmp_path, "a.csv", "text,label\nHello,a\nHello, you,a\nBye,b\n"))
    assert caught.value.where == f"{tmp_path}/a.csv:3"
    assert caught.value.fix == "put text that contains a comma in quotation marks"


# ---- odd tables ------------------------------------------------------------------------------------------------------


def test_empty_cells_rows_and_columns_at_the_edges(tmp_path):
    content = "text;label;note;;\nHello;a;;;\nBye;b\n;;;;\n\nAgain;a;x;;\n;;\n"
    table = read_table(put(tmp_path, "a.csv", content))
    assert values_of(table) == [
        {"text": "Hello", "label": "a", "note": ""},
        {"text": "Bye", "label": "b", "note": ""},
        {"text": "Again", "label": "a", "note": "x"},
    ]
    assert said(table) == [
        "semicolon-separated",
        "2 rows without any value left out",
        "1 row has fewer cells than the header; the rest is empty",
    ]
    assert table.findings[2].places == (f"{tmp_path}/a.csv:3",) and table.findings[1].count == 2


@pytest.mark.parametrize("numbers", ["0 1 2 3", "1 2 3 4", "2 0 3 1", "4 9 17 30"])
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_that_numbers_the_rows_is_left_out(tmp_path, numbers: str, name: str):
    lines = [f"{number},text {i},{'ab'[i % 2]}" for i, number in enumerate(numbers.split())]
    table = read_table(put(tmp_path, "a.csv", "\n".join([f"{name},text,label", *lines])))
    assert list(table.rows[0].values) == ["text", "label"]
    assert "numbers the rows" in said(table)[0]


def test_other_columns_without_a_name_get_one(tmp_path):
    table = read_table(put(tmp_path, "a.csv", ",text,,label,\n5,a,x,b,\n5,c,y,d,\n"))
    assert list(table.rows[0].values) == ["column_1", "text", "column_3", "label"]
    assert said(table) == ["2 columns without a name are called column_1, column_3"]


def test_names_lose_their_white_space_and_must_differ(tmp_path):
    assert list(read_table(put(tmp_path, "a.csv", ' text , "label"\na,b\n')).rows[0].values) == ["text", "label"]
    with pytest.raises(UserError, match="same name") as caught:
        read_table(put(tmp_path, "b.csv", "text,label,text \na,b,c\n"))
    assert caught.value.found == "'text'" and "rename" in str(caught.value.fix)


def test_a_header_that_comes_again_is_left_out(tmp_path):
    table = read_table(put(tmp_path, "a.csv", "text,label\na,x\nb,y\ntext,label\nc,x\n"))
    assert [row.values["text"] for row in table.rows] == ["a", "b", "c"]
    assert said(table) == ["the header is repeated in 1 row, which is left out"]


def test_numbers_of_the_rows_that_r_writes(tmp_path):
    table = read_table(put(tmp_path, "a.tsv", '"text"\t"label"\n"1"\t"Hello"\t"a"\n"2"\t"Bye"\t"b"\n'))
    assert values_of(table) == [{"text": "Hello", "label": "a"}, {"text": "Bye", "label": "b"}]


HEADERLESS = {
    "labels that come again": [["loans", "How long may I keep it?"], ["fines", "Why?"], ["loans", "When is it?"]],
    "numbers": [["5", "How long?"], ["3", "Why me?"], ["4", "When?"], ["1", "Who?"], ["2", "What?"]],
    "sentences": [[f"This is sentence number {i} of the file.", f"word{i}"] for i in range(12)],
    "dates": [[f"2024-01-{i:02}", f"text number {i} of these"] for i in range(10, 20)],
    "labels of two columns": [["ham", "x"], ["spam", "y"], ["ham", "z"], ["spam", "x"]],
    "postgresql": [["1", "Hello there", "t"], ["2", "Bye now", "f"], ["3", "Again", "t"]],
}
WITH_HEADER = {
    "names": [["text", "label"], ["How long?", "a"], ["Why?", "b"]],
    "a value like a name": [["text", "label"], ["label", "text"], ["text", "label x"]],
    "an index": [["", "a", "b"], ["0", "x", "y"], ["1", "z", "x"]],
    "years": [["country", "2019", "2020"], ["Chad", "1", "2"], ["Mali", "3", "4"], ["Peru", "5", "6"]],
    "questions of a form": [
        ["Timestamp", "How satisfied are you with our service today?", "Would you recommend us to a friend?"],
        *[[f"2024/01/{i:02} 10:00", f"It was all right for visit {i} of mine", ["Yes", "No"][i % 2]] for i in range(9)],
    ],
    "one row": [["frage", "antwort"], ["Wo?", "Da."]],
    "words": [["animal", "sound"], ["cat", "meow"], ["dog", "woof"], ["cow", "moo"]],
    "labels": [["Frage des Kunden", "Team"], *[[f"Wo ist die Karte Nummer {i}?", "ab"[i % 2]] for i in range(8)]],
    "a long name": [["utterance_of_the_user", "gold"], *[[f"what is {i} and why so", "xyz"[i % 3]] for i in range(9)]],
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERLESS)
def test_a_first_row_of_data_is_seen(tmp_path, kind: str):
    rows = HEADERLESS[kind]
    assert looks_like_data(rows)
    path = put(tmp_path, "a.csv", written(rows))
    table = read_table(path)
    names = [f"column_{i + 1}" for i in range(len(rows[0]))]
    assert values_of(table) == [dict(zip(names, row, strict=True)) for row in rows]
    assert "the first row looks like data" in said(table)[0] and table.rows[0].source.endswith(":1")
    assert len(read_table(path, DataConfig(header=True)).rows) == len(rows) - 1


@pytest.mark.parametrize("kind", WITH_HEADER)
def test_a_header_is_seen(tmp_path, kind: str):
    rows = WITH_HEADER[kind]
    assert not looks_like_data(rows)
    path = put(tmp_path, "a.csv", written(rows))
    assert len(read_table(path).rows) == len(rows) - 1
    table = read_table(path, DataConfig(header=False))
    assert len(table.rows) == len(rows) and not table.findings


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.0", "", "-2.0"], ["1", "", "-2"]),
        (["1.0", "2.5"], ["1.0", "2.5"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["1.00", "2.00"], ["1.00", "2.00"]),
        (["", ""], ["", ""]),
    ],
)
def test_whole_numbers_that_were_written_as_floats(tmp_path, values: list[str], expected: list[str]):
    lines = [f"text {i},{value}" for i, value in enumerate(values)]
    table = read_table(put(tmp_path, "a.csv", "\n".join(["text,label", *lines])))
    assert [row.values["label"] for row in table.rows] == expected
    is_changed = values != expected
    assert said(table) == (["numbers such as 1.0 in label read as 1"] if is_changed else [])


# ---- encodings -------------------------------------------------------------------------------------------------------

SENTENCES = {
    "cp1252": "Où est la bibliothèque ? C’est déjà payé – merci.",
    "latin-1": "Die Straße ist groß, das Öl ist für Jürgen.",
    "iso8859-15": "¿Dónde está la biblioteca? Mañana es el último día.",
    "mac_roman": "Où est la bibliothèque? J'ai perdu ma carte à l'entrée.",
    "cp850": "Où est la bibliothèque? J'ai perdu ma carte à l'entrée.",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Ztratil jsem průkaz včera večer.",
    "CP1250": "Elvesztettem a könyvtári kártyámat. Hosszú idő, őszi tűz.",
    "windows-1250": "Zgubiłem kartę biblioteczną wczoraj wieczorem. Gdzie jest książka?",
    "iso8859-2": "Zgubiłem kartę biblioteczną wczoraj; gdzie jest książka?",
    "windows-1252": "Onde fica a biblioteca? Não encontro as informações, são questões.",
    "windows-1251": "привет, всё хорошо",
    "cp1251": "Как долго я могу держать атлас? Я потерял карту вчера.",
    "koi8-r": "Как долго я могу держать атлас? Я потерял карту вчера.",
    "cp866": "Как долго я могу держать атлас? Я потерял карту вчера.",
    "cp1253": "Πόσο καιρό μπορώ να κρατήσω τον άτλαντα; Έχασα την κάρτα μου χθες.",
    "cp1254": "Atlası ne kadar tutabilirim? Dün kartımı kaybettim, şimdi ne yapmalıyım?",
    "cp1255": "כמה זמן אני יכול לשמור את האטלס? איבדתי את הכרטיס שלי אתמול.",
    "cp1256": "كم من الوقت يمكنني الاحتفاظ بالأطلس؟ فقدت بطاقتي أمس.",
    "shift_jis": "図書館はどこですか。昨日カードをなくしました。新しいカードはいくらですか。",
    "euc_jp": "図書館はどこですか。昨日カードをなくしました。新しいカードはいくらですか。",
    "gbk": "图书馆在哪里？我昨天丢了我的卡。新卡多少钱？",
    "big5": "圖書館在哪裡？我昨天丟了我的卡。新卡多少錢？",
    "euc_kr": "도서관은 어디에 있습니까? 어제 카드를 잃어버렸습니다.",
    "utf-16": "Où est le café ? 图书馆在哪里？",
    "utf-16-le": "Où est le café ? Πόσο καιρό;",
    "utf-16-be": "图书馆在哪里？我昨天丢了一张卡。Ā",
    "utf-32": "Où est le café ?",
}


@pytest.mark.parametrize("encoding", SENTENCES)
def test_a_text_in_another_encoding_is_read_and_the_encoding_is_said(tmp_path, encoding: str):
    text = SENTENCES[encoding]
    lines = ["text,label", *[f'"{text}",{"ab"[i % 2]}' for i in range(6)]]
    content = "\n".join(lines).encode(encoding)
    for name, packed in (("a.csv", content), ("b.csv.gz", gzip.compress(content))):
        table = read_table(put(tmp_path, name, packed))
        assert [row.values["text"] for row in table.rows] == [text] * 6
        assert len(said(table)) == 1


def test_one_accent_is_enough_and_a_mark_is_not(tmp_path):
    table = read_table(put(tmp_path, "a.csv", b"text,label\ncaf\xe9,a\ntea,b\n"))
    assert table.rows[0].values["text"] == "café" and said(table) == ["Windows-1252 (cp1252)"]
    for name, text in (("a.csv", "text,label\nü,b\n"), ("a.json", '[{"text": "ü"}]'), ("a.jsonl", '{"text": "ü"}\n')):
        table = read_table(put(tmp_path, name, codecs.BOM_UTF8 + text.encode()))
        assert table.rows[0].values["text"] == "ü" and not table.findings


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xe9t\xe9"])
def test_a_damaged_utf_8_file_is_an_error_with_its_line(tmp_path, broken: bytes):
    lines = [b"text,label", *[f"süß {i},a".encode() for i in range(20)]]
    lines[7] += broken
    with pytest.raises(UserError, match="not UTF-8") as caught:
        read_table(put(tmp_path, "a.csv", b"\n".join(lines)))
    assert caught.value.where == f"{tmp_path}/a.csv:8"


# ---- compressed files, parts, patterns -------------------------------------------------------------------------------

ORDINARY = {
    "csv": "text,label\nHello,a\nBye,b\n",
    "tsv": "text\tlabel\nHello\ta\nBye\tb\n",
    "json": '[{"text": "Hello", "label": "a"}, {"text": "Bye", "label": "b"}]',
    "jsonl": '{"text": "Hello", "label": "a"}\n{"text": "Bye", "label": "b"}\n',
    "ndjson": '{"text": "Hello", "label": "a"}\n{"text": "Bye", "label": "b"}\n',
}
PAIR = [{"text": "Hello", "label": "a"}, {"text": "Bye", "label": "b"}]


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_files_need_no_remark_compressed_or_not(tmp_path, kind: str):
    content = ORDINARY[kind].encode()
    for suffix, packed in (("", content), (".gz", gzip.compress(content)), (".zst", zstd(content))):
        path = put(tmp_path, f"train.v2.{kind}{suffix}", packed)
        table = read_table(path)
        assert values_of(table) == PAIR and table.findings == () and table.files == (path,)


def test_a_compressed_file_that_is_damaged_or_unpacks_to_too_much_is_rejected(tmp_path):
    large = b"text,label\n" + b"x,y\n" * 10_000_000
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstd)):
        with pytest.raises(UserError, match="too large"):
            read_table(put(tmp_path, f"a.csv{suffix}", pack(large)))
        for content in (pack(ORDINARY["csv"].encode() * 99)[:-9], b"no such format"):
            with pytest.raises(UserError, match="damaged"):
                read_table(put(tmp_path, f"b.csv{suffix}", content))


def test_archives_and_unknown_kinds_are_refused_with_what_helps(tmp_path):
    for name, fix in (("a.zip", "unpack it"), ("a.csv.bz2", "gzip or zstd"), ("a.gz", "data.csv.gz"), ("a.docx", "")):
        with pytest.raises(UserError, match="Unknown type") as caught:
            read_table(put(tmp_path, name, b"x"))
        assert fix in (caught.value.fix or "")


def test_a_pattern_reads_its_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    paths = [put(tmp_path, f"part{i}.csv", f"text,label\ntext {i},a\n") for i in (3, 1, 2)]
    put(tmp_path / "sub", "part4.csv", "text,label\ntext 4,a\n")
    table = read_table(str(tmp_path / "part*.csv"))
    assert [row.values["text"] for row in table.rows] == ["text 1", "text 2", "text 3"]
    assert table.files == tuple(sorted(paths)) and said(table) == ["3 files with 3 rows: part1.csv to part3.csv"]
    assert len(read_table(str(tmp_path / "**" / "part[24].csv")).rows) == 2
    put(tmp_path, "part5.jsonl", '{"text": "x"}')
    for pattern, what in (("part*", "one kind"), ("none*.csv", "No file matches")):
        with pytest.raises(UserError, match=what):
            read_table(str(tmp_path / pattern))
    odd = put(tmp_path, "a[1].csv", ORDINARY["csv"])
    assert read_table(odd).files == (odd,)
    with pytest.raises(UserError, match="is a folder") as caught:
        read_table(str(tmp_path))
    assert caught.value.fix == f"give a pattern for its files: {tmp_path}/*.csv"


@pytest.mark.parametrize("first", [0, 1])
def test_one_part_stands_for_all_and_a_missing_one_is_named(tmp_path, first: int):
    names = [f"train-{i:05}-of-00003.jsonl" for i in range(first, first + 3)]
    for i, name in enumerate(names):
        put(tmp_path, name, f'{{"text": "{i}"}}\n')
    for name in names:
        table = read_table(str(tmp_path / name))
        assert [row.values["text"] for row in table.rows] == ["0", "1", "2"] and len(table.files) == 3
    listed = read_tables([str(tmp_path / name) for name in names], DataConfig())
    assert [row.values["text"] for table in listed for row in table.rows] == ["0", "1", "2"]
    (tmp_path / names[1]).unlink()
    for name in (names[0], names[1], "train-*.jsonl"):
        with pytest.raises(UserError, match="Parts of the data file are missing") as caught:
            read_table(str(tmp_path / name))
        assert names[1] in str(caught.value.fix)


# ---- JSON ------------------------------------------------------------------------------------------------------------

SHAPES = {
    "list": PAIR,
    "list under a key": {"data": PAIR},
    "list under a key among others": {"version": "1", "license": {"name": "x"}, "tags": ["a"], "data": PAIR},
    "columns by row": {"text": {"0": "Hello", "1": "Bye"}, "label": {"0": "a", "1": "b"}},
    "rows by number": {"0": PAIR[0], "1": PAIR[1]},
    "rows by name": {"first": PAIR[0], "second": PAIR[1], "third": PAIR[0]},
    "split": {"columns": ["text", "label"], "index": [0, 1], "data": [["Hello", "a"], ["Bye", "b"]]},
    "lists by column": {"text": ["Hello", "Bye"], "label": ["a", "b"]},
    "table": {
        "schema": {"fields": [{"name": "index", "type": "integer"}], "primaryKey": ["index"]},
        "data": [{"index": 0, **PAIR[0]}, {"index": 1, **PAIR[1]}],
    },
    "one object": PAIR[0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_shapes_of_json(tmp_path, shape: str, name: str, indent: int | None):
    if name == "a.jsonl" and shape not in ("list", "one object") and indent is None:
        pytest.skip("one line of json lines is one row")
    table = read_table(put(tmp_path, name, json.dumps(SHAPES[shape], indent=indent)))
    expected = {"rows by name": [*PAIR, PAIR[0]], "one object": PAIR[:1]}.get(shape, PAIR)
    assert values_of(table) == expected
    is_plain = (name, shape) == ("a.json", "list") or (name, shape, indent) == ("a.jsonl", "one object", None)
    assert bool(table.findings) == (not is_plain)


def test_objects_one_after_another(tmp_path):
    for content, name in itertools.product(
        (
            "\n".join(map(json.dumps, PAIR)),
            "\n".join(json.dumps(row, indent=2) for row in PAIR),
            "\r\n\r\n".join(json.dumps(row, indent=4) for row in PAIR) + "\r\n",
            ",\n".join(json.dumps(row, indent=2) for row in PAIR),
        ),
        ("a.json", "a.jsonl"),
    ):
        table = read_table(put(tmp_path, name, content))
        assert values_of(table) == PAIR


def test_several_lists_are_not_guessed_among(tmp_path):
    with pytest.raises(UserError, match="must contain a list") as caught:
        read_table(put(tmp_path, "a.json", json.dumps({"train": PAIR, "test": [*PAIR, *PAIR]})))
    assert caught.value.found == "the lists 'train', 'test'"


@pytest.mark.parametrize("count", [2, 3])
def test_the_answer_column_chooses_among_several_lists(tmp_path, count: int):
    users = [{"name": f"person {i}", "team": {"lead": "x"}} for i in range(count)]
    path = put(tmp_path, "a.json", json.dumps({"users": users, "tickets": PAIR}))
    table = read_table(path, DataConfig(answer="label"))
    assert values_of(table) == PAIR and said(table) == ["read from the list 'tickets'"]
    assert values_of(read_table(path, DataConfig(answer="team.lead"))) == users
    both = put(tmp_path, "b.json", json.dumps({"users": [*PAIR, *PAIR], "tickets": PAIR}))
    with pytest.raises(UserError, match="--answer COLUMN"):
        read_table(both, DataConfig(answer="label"))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.json", '[\n {"a": 1},\n {"a": 2},\n]\n', 3),
        ("a.json", '[\n {"a": 1,\n  "b": 2,\n }\n]\n', 4),
        ("a.json", '{"rows": [\n {"a": 1},\n],\n"n": 1}', 2),
        ("a.json", '{\n"rows": [{"a": 1}],\n}', 2),
        ("a.json", '[{"a": [1,\n2,\n]}]', 3),
        ("a.jsonl", '{"a": 1}\n{"a": 2,}\n', 2),
    ],
)
def test_a_trailing_comma_is_named_at_one_position_with_its_fix(tmp_path, name: str, content: str, line: int):
    with pytest.raises(UserError, match="Malformed JSON") as caught:
        read_table(put(tmp_path, name, content))
    assert caught.value.where == f"{tmp_path / name}:{line}"
    assert "remove the comma" in str(caught.value.fix) and "line " not in str(caught.value.found)


def test_an_empty_file_is_told_from_one_with_only_a_header(tmp_path):
    found = []
    for name, content in (("a.csv", ""), ("b.csv", "text,label\n"), ("c.json", "[]")):
        with pytest.raises(UserError, match="no rows") as caught:
            read_table(put(tmp_path, name, content))
        found.append(caught.value.found)
    assert found == ["an empty file", "b.csv: only a header, with the columns text, label", "no records"]


@pytest.mark.parametrize(
    "content", ['{"a": [1, }', '{"a": {"b": 1}', '{"a": 1} x', '{"a" 1}', "{a: 1}", '{"a": [1 2]}', "{"]
)
def test_malformed_objects_are_named_with_their_line(tmp_path, content: str):
    for name in ("a.json", "a.jsonl"):
        with pytest.raises(UserError, match="Malformed JSON") as caught:
            read_table(put(tmp_path, name, f"\n{content}\n"))
        assert str(caught.value.where).startswith(f"{tmp_path}/{name}:")


@pytest.mark.parametrize("number", ["NaN", "-Infinity"])
def test_nan_is_missing(tmp_path, number: str):
    content = f'[{{"text": "a", "label": {number}, "deep": [{{"x": {number}}}]}}, {{"text": "b", "label": 1.5}}]'
    table = read_table(put(tmp_path, "a.json", content))
    value = None if number == "NaN" else float("-inf")
    assert table.rows[0].values == {"text": "a", "label": value, "deep": [{"x": value}]}
    assert said(table) == (["NaN in 1 row read as missing"] if number == "NaN" else [])


def test_nested_values_have_a_path_and_a_key_with_a_dot_comes_first():
    row = Row({"ticket": {"body": "Hello", "meta": {"x.y": 1, "none": None}}, "a.b": 2, "a": {"b": 3, "c": 4}}, "f:1")
    assert column_text(row, "ticket.body") == "Hello"
    assert (row.value("ticket.meta.x.y"), row.value("a.b"), row.value("a.c")) == (1, 2, 4)
    assert row.has("ticket.meta.none") and not row.has("ticket.head") and not row.has("ticket.body.x")
    assert row.value("no", "default") == "default"
    with pytest.raises(UserError, match=r"has no column 'ticket\.head'"):
        column_text(row, "ticket.head")
    rows = [row, Row({"tags": [{"x": 1}], "empty": {}}, "f:2")]
    expected = ["ticket.body", "ticket.meta.x.y", "ticket.meta.none", "a.b", "a.c", "tags", "empty"]
    assert columns_of(rows) == expected
    assert all(any(row.has(name) for row in rows) for name in columns_of(rows))


# ---- parquet and plain text ------------------------------------------------------------------------------------------


def test_kinds_of_parquet_columns(tmp_path):
    columns = {
        "text": pyarrow.array(["a", "b"], pyarrow.large_string()), "score": [1.5, float("nan")], "count": [1.0, None],
        "raw": [b"caf\xc3\xa9", b"\xff\xd8\x00"], "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    table = read_table(str(tmp_path / "a.parquet"))
    assert values_of(table) == [
        {"text": "a", "score": 1.5, "count": 1, "raw": "café", "kind": "x"},
        {"text": "b", "score": None, "count": None, "raw": b"\xff\xd8\x00", "kind": "y"},
    ]
    assert sorted(finding.name for finding in table.findings) == ["binary_text", "nan_values", "whole_numbers"]


def test_plain_text_becomes_documents_of_whole_paragraphs_or_lines(tmp_path):
    lines = [f"Sentence number {i}, with a comma" for i in range(60)]
    table = read_table(put(tmp_path, "a.txt", "\n".join(lines)))
    assert [row.values["text"] for row in table.rows] == lines
    assert (table.rows[5].source, said(table)) == (
        f"{tmp_path}/a.txt:6", ["plain text, read as 60 documents of one or more lines"],
    )  # fmt: skip
    paragraphs = [f"First line {i}\nsecond line" for i in range(500)]
    table = read_table(put(tmp_path, "b.md", "\r\n\r\n".join(paragraphs).replace("\nsecond", "\r\nsecond")))
    assert "\n\n".join(row.values["text"] for row in table.rows) == "\n\n".join(paragraphs)
    assert 40 <= len(table.rows) <= 60 and all(len(row.values["text"]) <= 4000 for row in table.rows)
    book = "\n\n".join("word " * 150 for _ in range(2000))
    table = read_table(put(tmp_path, "c.txt", book))
    assert all(3000 < len(row.values["text"]) <= 4000 for row in table.rows[:-1])


def test_a_mistyped_name_is_told_without_loading_the_heavy_libraries(tmp_path):
    heavy = ("torch", "datasets", "pandas", "pyarrow", "transformers")
    code = (
        "import sys\nfrom loratory.data.rows import read_table\n"
        "try:\n    read_table('none.csv')\nexcept Exception as error:\n    print(error.what)\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.split("\n")[:2] == ["Data file not found", "[]"]


def test_the_rows_of_a_run_are_read_again_with_its_settings(tmp_path):
    shutil.copy(FILES / "sheets.xlsx", tmp_path / "a.xlsx")
    data = DataConfig(sheet="Notes", header=False)
    assert values_of(read_table(str(tmp_path / "a.xlsx"), data)) == [{"column_1": "note"}, {"column_1": "a remark"}]

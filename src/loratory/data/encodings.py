"""Opens text files: unpacks them within limits, and finds out their encoding."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import charset_normalizer

from loratory.data.limits import MAX_FILE, MAX_RATIO, RATIO_CHECKED
from loratory.data.remarks import Remarks
from loratory.errors import UserError

COMPRESSED = (".gz", ".zst")
BLOCK = 1 << 20  # bytes that are read at once
ODD_BYTE = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as decoders escape it
HEAD = 1 << 16  # bytes in which the signs of UTF-16 are looked for
SAMPLE = 1 << 16  # bytes of lines that are not ASCII, from which the code page is guessed
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
OTHERS = ("cp1255", "cp1253", "cp1256", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "latin_1")
NAMES = {
    "cp1252": "Windows-1252 (cp1252)", "mac_roman": "Mac OS Roman", "cp850": "DOS Latin (cp850)", "latin_1": "Latin-1",
    "cp1250": "Windows-1250 (cp1250)", "cp1251": "Windows-1251 (cp1251)", "cp1253": "Windows-1253 (cp1253)",
    "cp1254": "Windows-1254 (cp1254)", "cp1255": "Windows-1255 (cp1255)", "cp1256": "Windows-1256 (cp1256)",
    "cp1257": "Windows-1257 (cp1257)", "cp866": "DOS Cyrillic (cp866)", "koi8_r": "KOI8-R", "iso8859_2": "Latin-2",
    "shift_jis": "Shift JIS", "euc_jp": "EUC-JP", "gb18030": "GB 18030", "big5": "Big5", "euc_kr": "EUC-KR",
    "utf-16": "UTF-16", "utf-16-le": "UTF-16 without a byte order mark",
    "utf-16-be": "UTF-16 without a byte order mark", "utf-32": "UTF-32",
}  # fmt: skip
# Letters beyond ASCII of the languages of some code pages, from the most usual code page to the least. The Western ones
# are without those whose bytes are letters of Eastern European languages in another code page.
WESTERN = "éèêëàâäáãåçñíîïóòôöøúùûüßæœÉÈÊÀÂÄÁÅÇÑÍÎÓÔÖØÚÜÆŒ"
CENTRAL = "ąćęłńóśźżáčďéěíňřšťúůýžöüőűôĺľŕăâîşţđĄĆĘŁŃÓŚŹŻÁČĎÉĚÍŇŘŠŤÚŮÝŽÖÜŐŰÔ"
CYRILLIC = "".join(map(chr, range(0x410, 0x450))) + "ёЁіІїЇєЄґҐўЎ"
LETTERS = {
    "cp1252": frozenset(WESTERN), "cp1254": frozenset("çğıöşüâîûÇĞİÖŞÜ"), "cp1250": frozenset(CENTRAL),
    "iso8859_2": frozenset(CENTRAL), "cp1257": frozenset("õäöüšžąčęėįųūāēģīķļņÕÄÖÜŠŽĄČĘĖĮŲŪĀĒĢĪĶĻŅ"),
    "mac_roman": frozenset(WESTERN), "cp850": frozenset(WESTERN), "cp1251": frozenset(CYRILLIC),
    "koi8_r": frozenset(CYRILLIC), "cp866": frozenset(CYRILLIC),
}  # fmt: skip
HEBREW = frozenset(map(chr, range(0x430, 0x44B)))  # the letters of cp1251 whose bytes are letters in cp1255
WORD = re.compile(r"[^\W\d_]+|.", re.DOTALL)
SIGNS = frozenset("’‘“”„–—…€£§°«»¡¿©®™·ºª´•×½¼")
LIKELY = 0.9  # share of such letters and signs among what is not ASCII
FEW = 3  # bytes from which no code page can be guessed
TIE = 0.02  # closer values of coherence mean nothing


class _Bounded(io.RawIOBase):
    """The unpacked bytes of a compressed file. Raises UserError as soon as they are too many, absolutely or relative to
    the file, and if the file is damaged."""

    def __init__(self, path: Path, stream: Any):
        self.path, self.stream, self.size, self.packed = path, stream, 0, path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self.stream.read(len(buffer))
        except (OSError, EOFError, ValueError, zlib.error) as error:  # pyarrow's errors are OSError or ValueError
            raise _damaged(self.path, error) from error
        self.size += len(content)
        if self.size > MAX_FILE or (self.size > RATIO_CHECKED and self.size > MAX_RATIO * self.packed):
            expected = f"at most {MAX_FILE} bytes decompressed, and at most {MAX_RATIO} times its size"
            raise UserError("The compressed file is too large", str(self.path), expected)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


def open_bytes(path: Path, open_zstd: Callable[[Path], Any]) -> io.BufferedReader:
    """The content of a file, unpacked. Raises UserError, also while it is read."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return path.open("rb")
    try:
        stream = gzip.GzipFile(path) if suffix == ".gz" else open_zstd(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return io.BufferedReader(_Bounded(path, stream), BLOCK)


def _damaged(path: Path, error: Exception) -> UserError:
    fix = "decompress it by hand"
    return UserError("The compressed file is damaged", str(path), found=str(error)[:300], fix=fix)


class TextFile:
    """A text file whose encoding is known, and which can be read several times."""

    def __init__(self, path: Path, remarks: Remarks, open_zstd: Callable[[Path], Any]):
        """Reads the file once. Raises UserError."""
        self.path, self._open_zstd = path, open_zstd
        self.encoding = self._find_encoding()
        if self.encoding != "utf-8-sig":
            remarks.kinds.append(NAMES[self.encoding])

    def open(self) -> io.TextIOWrapper:
        """The text from its beginning, with its line ends as they are, without a byte order mark."""
        return io.TextIOWrapper(open_bytes(self.path, self._open_zstd), encoding=self.encoding, newline="")

    def _blocks(self) -> Iterator[bytes]:
        with open_bytes(self.path, self._open_zstd) as file:
            while block := file.read(BLOCK):
                yield block

    def _find_encoding(self) -> str:
        head = next(self._blocks(), b"")[:HEAD]
        encoding = next((name for mark, name in MARKS if head.startswith(mark)), None) or _utf_16(head)
        if encoding:
            if self._is(encoding):
                return encoding
            name = NAMES.get(encoding, "UTF-8")
            raise UserError("The file is damaged", str(self.path), f"text in {name}", fix="save it as UTF-8")
        if self._is("utf-8"):
            return "utf-8-sig"
        good, bad, line, sample = self._scan()
        names = code_pages(sample)
        # Text in another encoding has hardly any valid sequence: a file with valid ones is UTF-8 that was damaged. A
        # single odd byte is damage, too, unless it is a letter of a Western language.
        if good >= bad or (bad < FEW and names[0] != "cp1252"):
            fix = "repair that line, or save the file as UTF-8"
            raise UserError("The file is not UTF-8", f"{self.path}:{line}", fix=fix)
        for name in (*names, "latin_1"):
            if self._is(name):
                return name
        raise AssertionError("any bytes are Latin-1")

    def _is(self, encoding: str) -> bool:
        """Whether the whole file is in this encoding."""
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            for block in self._blocks():
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeError:
            return False
        return True

    def _scan(self) -> tuple[int, int, int, bytes]:
        """The numbers of characters beyond ASCII and of bytes that are not UTF-8, the line of the first such byte, and
        a sample of the lines that are not ASCII."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        good = bad = line = lines = 0
        sample, size, rest = [], 0, b""
        for block in self._blocks():
            text = decoder.decode(block)
            broken = len(text) - len(text.encode("utf-8", "ignore").decode("utf-8"))
            good += len(text) - len(text.encode("ascii", "ignore")) - broken
            if broken and not bad:
                line = lines + text.count("\n", 0, next(ODD_BYTE.finditer(text)).start()) + 1
            bad, lines = bad + broken, lines + text.count("\n")
            *whole, rest = (rest + block).split(b"\n")
            if size < SAMPLE:
                kept = [part for part in [*whole, *([rest] if len(rest) > SAMPLE else [])] if not part.isascii()]
                sample, size = [*sample, *kept], size + sum(map(len, kept))
        text = decoder.decode(b"", final=True)
        line = line or lines + 1
        return good, bad + len(text), line, b"\n".join([*sample, rest])[:SAMPLE]


def _utf_16(head: bytes) -> str | None:
    """The byte order of UTF-16 without a byte order mark, by the zero bytes of its ASCII characters; else None."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    share = max(even, odd) / max(1, len(head) // 2)
    if max(even, odd) < 4 or min(even, odd) > 0.5 * max(even, odd) or share < 0.02:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def code_pages(sample: bytes) -> Sequence[str]:
    """The code pages that the sample may be in, the most likely first."""
    # Statistics cannot tell these apart in a short file.
    for name in LETTERS:
        text = _decoded(sample, name)
        if text is not None and _share_of_letters(text, name) >= LIKELY:
            return (name,)
    matches = list(charset_normalizer.from_bytes(sample, cp_isolation=[*LETTERS, *OTHERS]))
    order = (*OTHERS, *LETTERS)
    best = max((match.coherence for match in matches), default=0.0)
    near = [match for match in matches if match.coherence >= best - TIE]
    others = [match for match in matches if match.coherence < best - TIE]
    near.sort(key=lambda match: (match.chaos, order.index(match.encoding) if match.encoding in order else len(order)))
    found = [match.encoding for match in (*near, *others) if match.encoding in NAMES]
    return found or ("latin_1",)


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError:
        return None


def _share_of_letters(text: str, encoding: str) -> float:
    """The share of what is not ASCII that a text in this encoding would have: usual signs, and usual letters in words
    whose other letters are ASCII or, in Cyrillic, of the same alphabet."""
    letters, is_cyrillic = LETTERS[encoding], encoding in ("cp1251", "koi8_r", "cp866")
    signs = SIGNS
    if encoding == "cp1252":
        signs = SIGNS | {"\xa0"}
        # Portuguese has both; alone it is the Hungarian ő of another code page.
        letters = letters | {"õ"} if "ã" in text else letters
    if encoding == "cp1251" and not set(text) & letters - HEBREW:
        return 0.0
    good = total = 0
    for match in WORD.finditer(text):
        word = match[0]
        beyond = sum(character > "\x7f" for character in word)
        total += beyond
        if not word[0].isalpha():
            around = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
            is_inside = all(character.isalpha() for character in around)  # where only apostrophes stand
            good += beyond if word == "’" or (word in signs and not is_inside) else 0
        elif letters >= set(word) if is_cyrillic else beyond <= max(1, len(word) - beyond):
            is_regular = word[1:] == word[1:].lower() or (word == word.upper() and not is_cyrillic)
            good += sum(character in letters for character in word) if is_regular else 0
    return good / max(1, total)

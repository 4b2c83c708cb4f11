"""Text files of other people: their encodings, and what is wrong where one cannot be read."""

from __future__ import annotations

import codecs
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from abmll.errors import AbmllError

MAX_FILE_BYTES = 256 * 2**20  # one character may take 4 bytes, twice: about 2.3 GB at the peak

_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_OTHER_FILES = {
    b"\x1f\x8b": "a gzip file: unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it",
    b"PK\x03\x04": "a ZIP file, as spreadsheets are: save the sheet as CSV UTF-8, or name the file .xlsx",
    b"\xd0\xcf\x11\xe0": "an Excel file: save the sheet as CSV UTF-8",
    b"PAR1\x15": "a Parquet file: save its rows as CSV or JSON Lines, or name it .parquet",
    b"%PDF-": "a PDF file: save its rows as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
}
"""What a file is that begins with these bytes, and the remedy."""
_LINE_END = re.compile(r"\r\n?|\n")


def check_file(path: Path, most_bytes: int | None = MAX_FILE_BYTES) -> None:
    """Raise `AbmllError` for what is no file, or one of more than `most_bytes`."""
    try:
        if path.exists() and not path.is_file():
            raise AbmllError(f"{path.name} is not a file")
        if most_bytes is not None and path.stat().st_size > most_bytes:
            raise AbmllError(f"{path.name} is larger than {most_bytes >> 20} MB: split it")
    except OSError as error:
        raise AbmllError(f"{path.name} cannot be read: {error.strerror}") from error


def encoding_of(path: Path) -> str:
    """Return the encoding of a file by its mark, UTF-8 without one.

    Raises `AbmllError` for what cannot be read, and for what is no text by its first bytes.
    """
    check_file(path, None)
    try:
        with path.open("rb") as file:
            data = file.read(64)
    except OSError as error:
        raise AbmllError(f"{path.name} cannot be read: {error.strerror}") from error
    other = next((found for mark, found in _OTHER_FILES.items() if data.startswith(mark)), None)
    if other:
        raise AbmllError(f"{path.name} is {other}")
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "UTF-8")


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    The mark is left out, and the Ctrl-Z with which some programs end a text. Raises `AbmllError`,
    also for a file of more than `MAX_FILE_BYTES`.
    """
    check_file(path)
    encoding = encoding_of(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AbmllError(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        text = data.decode(encoding).removeprefix("\ufeff").removesuffix("\x1a")
    except UnicodeDecodeError as error:
        line = _line_of(data[: error.start].decode(encoding, "ignore"))
        raise AbmllError(_undecodable(path, line, data[error.start], encoding)) from error
    if "\0" in text:
        raise AbmllError(_with_nul(path, _line_of(text[: text.index("\0")])))
    return text


def streamed_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a file of any size, with their ends. Raises `AbmllError`, as `read_text`."""
    codec = "utf-8-sig" if encoding == "UTF-8" else encoding
    with path.open(encoding=codec, newline="") as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise AbmllError(_with_nul(path, number))
                yield line.removesuffix("\x1a")
        except UnicodeDecodeError as error:
            raise AbmllError(_undecodable(path, *_first_wrong_byte(path, encoding), encoding)) from error


def _first_wrong_byte(path: Path, encoding: str) -> tuple[int, int]:
    """Return the first byte of a file that its encoding cannot read, behind the number of its line.

    Raises `AbmllError` where there is none: the file was changed meanwhile.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    number = 1
    with path.open("rb") as file:
        try:
            while data := file.read(1 << 16):
                for start in range(len(data)):
                    number += decoder.decode(data[start : start + 1]).count("\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            return number, error.object[error.start]
    raise AbmllError(f"{path.name} was changed while it was read: try again")


def _undecodable(path: Path, line: int, byte: int, encoding: str) -> str:
    """Return what is wrong with a byte of a file, and the remedy."""
    found = f"{path.name} line {line} has the byte 0x{byte:02X}, which is not {encoding}"
    remedy = "save the file as UTF-8, in a spreadsheet as CSV UTF-8"
    if encoding != "UTF-8":
        return f"{found}: {remedy}"
    files = f"{shlex.quote(str(path))} > {shlex.quote(f'{path.stem}-utf8{path.suffix}')}"
    return f"{found}: {remedy}; if it is in Windows-1252, by: iconv -f WINDOWS-1252 -t UTF-8 {files}"


def _with_nul(path: Path, line: int) -> str:
    return f"{path.name} line {line} holds a NUL character: save the file as text, in UTF-8"


def _line_of(before: str) -> int:
    """Return the number of the line that comes behind the text `before`."""
    return 1 + len(_LINE_END.findall(before))

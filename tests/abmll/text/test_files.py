"""What a file of rows may look like, and that any bytes give rows or one clear line.

A long run, of a million byte strings and 100,000 of hypothesis', takes about 15 minutes of one
core: tests/property_runs.py has its command. Give `--basetemp` a folder in memory.
"""

import codecs
import csv
import io
import json
import os
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abmll.errors import AbmllError
from abmll.text.files import JSON_LINES, examples_by_line, queries_by_line, read_examples
from abmll.text.files import SUFFIXES as KNOWN_SUFFIXES
from abmll.text.tasks import Example
from abmll.text.text_files import MAX_FILE_BYTES
from tests.property_runs import examples, tries

EXPECTED = (
    Example("one, two", "a", ("a", "b")),
    Example('He said "no"; café', "b", ("a", "b")),
    Example("three", "free"),
)
JSON_TEXT = (
    '{"input": "one, two", "output": "a", "options": ["a", "b"]}\n\n'
    '{"input": "He said \\"no\\"; caf\\u00e9", "output": "b", "options": ["a", "b"]}\n'
    '{"input": "three", "output": "free", "options": null}\n'
)
CSV_TEXT = 'input,output,options\n"one, two",a,a | b\n"He said ""no""; café",b,a|b\nthree,free,\n'
TSV_TEXT = 'input\toutput\toptions\none, two\ta\ta|b\nHe said "no"; café\tb\ta|b\nthree\tfree\t\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(AbmllError) as caught:
        read_examples(path)
    return str(caught.value)


# ---- files as people have them -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", JSON_TEXT),
        ("x.NDJSON", JSON_TEXT.replace("\n", "\r\n")),
        ("x.csv", CSV_TEXT),
        ("x.CSV", CSV_TEXT.replace("\n", "\r\n")),
        ("x.csv", CSV_TEXT.replace("\n", "\r")),
        ("x.tsv", TSV_TEXT),
        ("x.TSV", TSV_TEXT.removesuffix("\n")),
        ("x.csv", codecs.BOM_UTF8 + CSV_TEXT.encode()),
        ("x.jsonl", codecs.BOM_UTF8 + JSON_TEXT.encode()),
        ("x.csv", CSV_TEXT.encode("utf-16")),
        ("x.tsv", codecs.BOM_UTF16_BE + TSV_TEXT.encode("utf-16-be")),
        ("x.jsonl", JSON_TEXT.encode("utf-32")),
        ("x.jsonl", JSON_TEXT.replace("\n", "\n\ufeff")),
        ("x.csv", 'input;output;options\none, two;a;a|b\n"He said ""no""; café";b;a|b\nthree;free;\n'),
        ("x.csv", 'input\toutput\toptions\none, two\ta\ta|b\n"He said ""no""; café"\tb\ta|b\nthree\tfree\t\n'),
        ("x.csv", 'input, output, options\n"one, two", a, a|b\n"He said ""no""; café", b, a|b\nthree, free,\n'),
        ("x.csv", "\n,,,\n" + CSV_TEXT.replace("\n", ",\n") + ",,,\n,,,\n\n"),
        ("x.csv", CSV_TEXT.replace("input", '"input"').replace("\n", "\n\n")),
        ("x.csv", "sep=,\n" + CSV_TEXT),
        ("x.csv", '\ufeff"sep=\t"\r\n' + CSV_TEXT.replace(", ", "@").replace(",", "\t").replace("@", ", ").replace("\n", "\r\n")),
        ("x.csv", CSV_TEXT.replace("\n", "\r\n", 1) + "\x1a"),
        ("x.jsonl", JSON_TEXT + "\x1a"),
        ("x.tsv", TSV_TEXT.replace('He said "no"; café', '"He said ""no""; café"')),
        ("x.tsv", TSV_TEXT.replace("input", '"input"').replace("He", '"He').replace('"no"', '""no""').replace("é", 'é"')),
        ("x.csv", "note,options,output,input\nn,a|b,a,\"one, two\"\nm,a|b,b,\"He said \"\"no\"\"; café\"\n,,free,three\n"),
    ],
)  # fmt: skip
def test_the_same_rows_are_read_from_every_way_to_write_them(
    name: str, content: str | bytes, tmp_path: Path
) -> None:
    assert read_examples(write(tmp_path, name, content)) == EXPECTED


def test_cells_keep_their_line_ends_their_spaces_and_their_size(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", f'input,output\n" a\r\nb",1\n{"c" * 140_000},2 \n')
    assert list(examples_by_line(path)) == [
        ("x.csv line 2", Example(" a\r\nb", "1")),
        ("x.csv line 4", Example("c" * 140_000, "2 ")),
    ]


def test_a_quote_in_a_tsv_swallows_no_line(tmp_path: Path) -> None:
    lines = ['"Great start', "5'10\" tall", '"Quoted"', '""', '"a"b"', 'end"']
    path = write(tmp_path, "x.tsv", "input\toutput\n" + "".join(f"{line}\tx\n" for line in lines))
    assert [found.input for found in read_examples(path)] == lines
    path = write(tmp_path, "x.tsv", "input\n" + "\n".join(lines))
    assert [query.input for _, query in queries_by_line(path)] == lines


def test_inputs_need_no_output_and_none_is_left_out(tmp_path: Path) -> None:
    queries = list(queries_by_line(write(tmp_path, "x.csv", 'input\nhello\n"a, b"\n\n\n')))
    assert [query.input for _, query in queries] == ["hello", "a, b"]
    with pytest.raises(AbmllError, match=r"y\.csv line 3 is an empty row: delete it"):
        list(queries_by_line(write(tmp_path, "y.csv", "input\nhello\n\nworld\n")))


def test_the_blocks_of_the_documentation_are_the_same_rows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/files.md").read_text("utf-8")
    blocks = re.findall(r"```(jsonl|csv|tsv)\n(.*?)```", page, re.DOTALL)
    read = [read_examples(write(tmp_path, f"x.{suffix}", text)) for suffix, text in blocks]
    assert len(read) == 3
    assert read[0] == read[1] == read[2]
    assert read[0][0].options == ("billing", "delivery")


# ---- what is refused, in one line ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"input": "a", "output": "b"}\n{"input": \n', "x.jsonl line 2 is not JSON"),
        ("x.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("x.jsonl", '"text"\n', "line 1 is not a JSON object"),
        ("x.jsonl", '[\n{"input": "a", "output": "b"}\n]\n', "line 1 is not JSON"),
        ("x.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("x.jsonl", '{"input": "a", "output": "b", "n": ' + '{"a":' * 100_000, "nested too deeply"),
        ("x.jsonl", '{"input": "a"}\n', "line 1 has no field `output`"),
        ("x.jsonl", '{"input": null, "output": "b"}', "`input` is null"),
        ("x.jsonl", '{"input": "a", "output": ' + "1" * 5000 + "}", "`output` is a number"),
        ("x.jsonl", '{"input": "a", "output": true}', "`output` is a boolean"),
        ("x.jsonl", '{"input": ["a"], "output": "b"}', "`input` is a list"),
        ("x.jsonl", '{"input": {"a": 1}, "output": "b"}', "`input` is an object"),
        ("x.jsonl", '{"input": "a", "input": "c", "output": "b"}', "line 1: an object has two fields `input`"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": "yes|no"}', "`options` is a list of texts"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": 5}', "`options` is a list of texts"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": ["1", 2]}', "`options` is a list of texts"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": [null, "a"]}', "`options` is a list of texts"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": {"a": 1}}', "`options` is a list of texts"),
        ("x.jsonl", '{"input": "a", "output": "b"}\n{"input": "x \\ud83d", "output": "b"}', "line 2: `input` holds .ud83d"),
        ("x.jsonl", '{"input": "a", "output": "\\udc00"}', "line 1: `output` holds .udc00"),
        ("x.jsonl", '{"input": "a", "output": "b", "options": ["b", "\\ude00\\ud83d"]}', "`options` holds .ude00"),
        ("x.csv", "text,label\na,b\n", "x.csv has no column `input`: its columns are 'text', 'label'"),
        ("x.csv", "input,label\na,b\n", "no column `output`: .*, 'label' .separated by a comma\\)$"),
        (
            "x.csv", "Id;Input;Output, e.g. a\n1;a;b\n",
            r"'Input', 'Output, e.g. a' \(separated by a semicolon\)",
        ),
        ("x.tsv", "input,output\na,b\n", "its columns are 'input,output'"),
        ("x.csv", "input,output,input\na,b,c\n", "two columns `input`"),
        ("x.csv", "input,output,options,options\na,b,c,d\n", "two columns `options`"),
        ("x.csv", "input,output\nToo dear, sadly,billing\n", "line 2: the header has 2 cells, this row 3; put quotes"),
        ("x.csv", "input;output\nToo dear; sadly;billing\n", "holds a semicolon"),
        ("x.csv", "input,output\nToo dear\n", "line 2: the header has 2 cells, this row 1; add"),
        ("x.tsv", "input\toutput\na\tb\n\"one\ntwo\"\tc\n", "line 3: .* this row 1; save a table .* as CSV"),
        ("x.tsv", "input\toutput\na\tb\tc\n", "x.tsv line 2: the header has 2 cells, this row 3; save"),
        ("x.csv", 'input,output\nfine,pos\n"Great start,pos\nbad,neg\n', "line 3 has a quote without its partner"),
        ("x.csv", 'input,output\n"Great" start,pos\n', "line 2 has a quote without its partner"),
        ("x.csv", 'input,output\n"Great start,pos\n"Bad,neg\n', "line 2 has a quote without its partner"),
        ("x.csv", "input,output\na,b\n,\nc,d\n", "line 3 is an empty row"),
        ("x.csv", 'input,output\na,b\n\ufeffinput,output\nc,d\n', "line 3 is the header once more"),
        ("x.csv", "input,output\n", "x.csv has no rows below its header"),
        ("x.csv", "input,output\n,\n,\n", "no rows"),
        ("x.csv", "", "x.csv is empty"),
        ("x.jsonl", "\n \n", "x.jsonl is empty"),
        ("x.jsonl", codecs.BOM_UTF8, "x.jsonl is empty"),
        ("x.csv", ",,\n,,\n", "no column `input`"),
        ("x.csv", b"input,output\na,b\ncaf\xe9,b\n", "x.csv line 3 has the byte 0xE9, which is not UTF-8: save .*WINDOWS-1252"),
        ("x.jsonl", b'{"input": "caf\xe9"}', "line 1 has the byte 0xE9, which is not UTF-8"),
        ("x.csv", CSV_TEXT.encode("utf-16") + b"x", "line 5 has the byte 0x78, which is not UTF-16: .* CSV UTF-8$"),
        ("x.csv", CSV_TEXT.encode("utf-16-le"), "not UTF-8|NUL"),
        ("x.csv", "input,output\na,b\0\n", "line 2 holds a NUL character"),
        ("x.csv", b"PK\x03\x04\x14\x00\x06\x00\x08\x00", "x.csv is a ZIP file, as spreadsheets are: save the sheet"),
        ("x.csv", b"\x1f\x8b\x08\x00", "x.csv is a gzip file: unpack it"),
        ("x.csv", b"PAR1\x15\x04", "x.csv is a Parquet file: save its rows as CSV or JSON Lines"),
        ("x.jsonl", "version https://git-lfs.github.com/spec/v1\nsize 1\n", "a pointer of Git LFS, .* `git lfs pull`"),
        ("x.json", '[{"input": "a", "output": "b"}]', "write one JSON object a line into a .jsonl"),
        ("x.csv.gz", b"\x1f\x8b\x08\x00", "expected .jsonl, .csv, .tsv, .xlsx or .parquet; unpack it"),
        ("x.csv", "input,output,options\na,yes,\"['yes', 'no']\"\n", "line 2: `options` is .*, one option; write"),
        ("x.csv", 'input,output,options\na,yes,"yes,no"\n', "line 2: `options` is 'yes,no', one option"),
        ("x.csv", "sep=|\ninput|output\na|b\n", "no column `input`: its columns are 'sep=.'"),
        ("x.xls", b"\xd0\xcf\x11\xe0", "expected .jsonl, .csv, .tsv, .xlsx or .parquet; save a spreadsheet as CSV"),
        ("x", "", "expected .jsonl, .csv, .tsv"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(AbmllError, match=message) as caught:
        read_examples(path)
    assert str(caught.value).startswith(name)
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path / "x.csv") == "x.csv cannot be read: No such file or directory"
    (tmp_path / "y.csv").mkdir()
    assert complaint(tmp_path / "y.csv") == "y.csv is not a file"
    os.mkfifo(tmp_path / "z.csv")
    assert complaint(tmp_path / "z.csv") == "z.csv is not a file"


def test_a_file_of_more_bytes_than_memory_is_planned_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # a sparse file: nothing is written
    assert complaint(path) == "x.csv is larger than 256 MB: split it"


# ---- any bytes -----------------------------------------------------------------------------------

PIECES = (
    *("input", "output", "options", "Input", "label", "yes", "no", "yes|no", "|", " ", "  ", "café", "🙂"),
    *(",", ";", "\t", ", ", "\n", "\r", "\r\n", "\n\n", ",,", '"', '""', "'", "\\", "\0", "\x1b[2J", "\ufeff"),
    *("{", "}", "[", "]", ":", "null", "true", "NaN", "1e999", "-", "9" * 30, "[" * 2000, "\\ud83d", "\\ude00"),
    *("input,output\n", "input;output\n", "input\toutput\n", "input, output\n", "input\n", '"input","output"\n'),
    *('{"input": "', '", "output": "', '", "options": ["', '"]}', '"}', '{"input": "a", "output": "b"}\n'),
    *("\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\u202e", "\U0010ffff", "e\u0301"),
)  # fmt: skip
CELLS = (
    "a",
    "b c",
    "yes",
    " no ",
    "yes|no",
    "",
    '"q"',
    '"a ""b"""',
    '"a\nb"',
    '"open',
    '5" x',
    "é🙂",
    "1",
    "\u2028",
    "x,y;z",
)
VALUES = (
    "a",
    "café",
    "",
    " ",
    "\ud83d",
    "🙂",
    1,
    1.5,
    None,
    True,
    [],
    ["a", "b"],
    ["a", 1],
    "a|b",
    {"input": "a"},
    "\0",
)


def like_a_file(random: Random, suffix: str) -> bytes:
    """Return bytes: most often of this kind of file and in UTF-8, else of another or of pieces of
    both.
    """
    own = write_json_lines if suffix in JSON_LINES else write_a_table
    text = "".join(random.choice((own, own, own, write_a_table, write_json_lines, write_pieces))(random))
    encoding = random.choice(
        ("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252", "utf-7")
    )
    data = bytearray(text.encode(encoding, "replace"))
    for _ in range(random.choice((0, 0, 0, 0, 0, 0, 1, 3))):
        at = random.randrange(len(data) + 1)
        damage = random.choice(PIECES).encode() if random.randrange(4) else random.randbytes(1)
        data[at : at + random.randrange(3)] = damage
    return bytes(data)


def write_a_table(random: Random) -> Iterator[str]:
    separator, end = random.choice((",", ";", "\t", ", ")), random.choice(("\n", "\r\n", "\r"))
    names = ["input", *random.sample(("output", "options", "", "note"), k=random.randrange(4))]
    random.shuffle(names)
    yield separator.join(names) + end
    for _ in range(random.randrange(5)):
        count = len(names) + random.choice((0,) * 9 + (-1, 1))
        yield separator.join(random.choice(CELLS) for _ in range(count)) + end
    yield random.choice(("", end, separator + end))


def write_json_lines(random: Random) -> Iterator[str]:
    for _ in range(random.randrange(5)):
        row = {"input": "a", "output": "b", "options": ["a", "b"]}
        for name in random.sample((*row, "note"), k=random.randrange(3)):
            row[name] = random.choice(VALUES)
        yield json.dumps(row, ensure_ascii=random.choice((True, False))) + random.choice(
            ("\n", "\r\n", "\n\n", "\n\ufeff")
        )


def write_pieces(random: Random) -> Iterator[str]:
    for _ in range(random.randrange(30)):
        yield random.choice(PIECES)


EXAMPLES = examples(300)


def check_any_bytes(path: Path, data: bytes) -> int:
    """Read `data` as examples and as inputs: both give whole texts, or one line with the file's
    name.

    Returns how many of the two gave rows.
    """
    path.write_bytes(data)
    read_well = 0
    for read in (examples_by_line, queries_by_line):
        try:
            rows = list(read(path))
        except AbmllError as error:
            assert str(error).startswith(path.name)
            assert str(error).isprintable()
            assert len(str(error)) < 1000
            continue
        assert rows
        read_well += 1
        for place, row in rows:
            assert place.startswith(f"{path.name} line ")
            texts = [row.input, *row.options, *([row.output] if isinstance(row, Example) else [])]
            assert all(isinstance(text, str) for text in texts)
            "".join(texts).encode()  # raises where half a character is left
    return read_well


SUFFIXES = sorted(KNOWN_SUFFIXES)
RANDOMS = st.randoms(use_true_random=False)  # its choices are hypothesis's own, which shrinks them


@tries(EXAMPLES)
@given(st.sampled_from(SUFFIXES), RANDOMS, st.none() | st.binary(max_size=200))
def test_any_bytes_give_rows_or_one_line(
    tmp_path: Path, suffix: str, random: Random, data: bytes | None
) -> None:
    check_any_bytes(tmp_path / f"x{suffix}", like_a_file(random, suffix) if data is None else data)


def test_ten_times_as_many_random_files_give_rows_or_one_line(tmp_path: Path) -> None:
    read = 0
    for seed in range(10 * EXAMPLES):
        random = Random(seed)
        path = tmp_path / f"x{random.choice(SUFFIXES)}"
        data = like_a_file(random, path.suffix)
        try:
            read += check_any_bytes(path, data)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {path.suffix} {data!r}") from error
    assert 0.05 < read / (20 * EXAMPLES) < 0.6  # the files are neither all well formed nor all wrong


# Printable and beyond, with every character that separates, ends, quotes or escapes.
TEXTS = st.text(st.sampled_from(" \t\r\n,;|\"'\\{}[]:ab🙂é\u2028\x85\ufeff\x0b\x1b") | st.characters(codec="utf-8")).map(
    lambda text: text.replace("\0", "")
)  # fmt: skip
FILLED = TEXTS.filter(str.strip)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXTS, FILLED), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_the_csv_library_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str, quoting: int, encoding: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("input", "output"), *rows])
    path = write(tmp_path, "x.csv", text.getvalue().encode(encoding))
    assert [(found.input, found.output) for found in read_examples(path)] == rows


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, TEXTS, st.lists(TEXTS)), min_size=1, max_size=5), st.booleans())
def test_what_the_json_library_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str, list[str]]], ascii_only: bool
) -> None:
    lines = [dict(zip(("input", "output", "options"), row, strict=True)) for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
    path = write(tmp_path, "x.jsonl", text)
    assert [(e.input, e.output, list(e.options)) for e in read_examples(path)] == rows


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab\"' ,;|", min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_lines_of_a_tsv_are_its_rows(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path, "x.tsv", "input\toutput\n" + "".join(f"{text}\tx\n" for text in texts))
    found = [example.input for example in read_examples(path)]
    assert len(found) == len(texts)
    for text, read in zip(texts, found, strict=True):  # or unquoted, where quotes were doubled
        assert read == text or (f'"{read.replace(chr(34), chr(34) * 2)}"' == text and '"' in read)


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".csv", b"input,output\n" + b"a,b\n" * 500_000),
        (".csv", b"input,output\n" + b'"' * 2_000_001),
        (".csv", b"," * 2_000_000),
        (".csv", b"input" + b"," * 2_000_000 + b"\na"),
        (".csv", b"input,output\n" + b"\n" * 2_000_000),
        (".csv", b"input,output\n" + b",\n" * 1_000_000),
        (".csv", b'"input\n' * 300_000),
        (".tsv", b"input\toutput\n" + b'"' * 2_000_000 + b"\tx"),
        (".tsv", b"\r" * 2_000_000),
        (".jsonl", b'{"input": "a", "output": "b", "n": ' + b"9" * 2_000_000 + b"}"),
        (".jsonl", b'{"input": "a", "output": "b", "n": [' + b"0," * 1_000_000 + b"0]}"),
        (".jsonl", b"[" * 2_000_000),
        (".jsonl", b'{"input": "a", "output": "b"' + b',"c":1' * 300_000 + b"}"),
        (".jsonl", b'{"input": "' + "🙂".encode() * 500_000 + b'"}'),
        (".csv", b"\xff" * 2_000_000),
        (".csv", codecs.BOM_UTF16_LE + b"\0\xd8" * 1_000_000),
    ],
)
def test_two_million_bytes_take_little_time_and_memory(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, f"x{suffix}", data)
    began = time.process_time()
    count_or_complain(path)
    assert time.process_time() - began < 10
    path.write_bytes(data[: len(data) // 10])  # tracing takes ten times as long
    tracemalloc.start()
    try:
        count_or_complain(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * len(data) // 10


def count_or_complain(path: Path) -> int:
    try:
        return sum(1 for _ in examples_by_line(path))
    except AbmllError:
        return 0

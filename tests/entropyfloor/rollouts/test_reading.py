import gzip
import json

import pytest

from entropyfloor.rollouts.reading import is_json, read_rows, text_messages

ROWS = [{"prompt": "ä\u2028", "answer": 12}, {"prompt": "b", "answer": 0.5}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", LINES.encode()),
        ("mark.jsonl", LINES.encode("utf-8-sig")),
        ("windows.jsonl", (LINES.replace("\n", "\r\n") + "\r\n\r\n").encode()),
        ("array.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode("utf-8-sig")),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_one_file_in_every_way_it_may_be_written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert is_json(path)
    assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LINES.encode("utf-16"), "line 1 .*UTF-16; convert the file: iconv"),
        (LINES.encode("utf-16-le"), "line 1 .*UTF-16"),
        (b'{"a": 1}\n' + "ä".encode("latin-1"), r"line 2 is not UTF-8 text \(.* at byte 0\)"),
        (LINES.encode()[:-3], "line 2 is not JSON .*the last of the file: was it cut off"),
        (b'{"a": 1}\nnope\n{"a": 1}\n', "line 2 is not JSON .*one object a line"),
        (b'{"a": 1}\n3\n', "line 2 is a JSON int"),
        (b'[\n{"a": 1},\n{"a": ', "a JSON array, is not JSON .* at line 3.*whole"),
        (b'[{"a": 1}, null]', "row 1 is a JSON NoneType"),
        (b"[" * 200_000, "nested too deeply"),
        (
            b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}",
            "line 2 cannot be read .*the number as text",
        ),
    ],
)
def test_the_line_at_fault_is_named(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.jsonl,.*{words}"):
        list(read_rows(path))


def test_a_cut_archive_is_said_to_be_one(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(LINES.encode())[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        list(read_rows(path))


def test_text_parts_are_joined_and_other_messages_left_alone():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}]
    messages = [{"role": "user", "content": parts, "name": "n"}, call]
    assert text_messages(messages, "here") == [
        {"role": "user", "content": "1+1=", "name": "n"},
        call,
    ]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "needs 'role' and 'content', got str"),
        ({"role": "user"}, "needs 'role' and 'content', got .'role'"),
        ({"role": None, "content": "x"}, "has the role None"),
        ({"role": "user", "content": None}, "has null as content"),
        ({"role": "user", "content": 3}, r"has 3 \(int\) as content"),
        ({"role": "user", "content": []}, "has an empty list as content"),
        ({"role": "user", "content": {"text": "x"}}, r"\(dict\) as content"),
        ({"role": "user", "content": ["x"]}, r"content part of type 'x' \(str\)"),
        ({"role": "user", "content": [{"type": "image", "url": "u"}]}, "part of type 'image'"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "null in place of its"),
    ],
)
def test_other_content_is_refused_by_name(message, words):
    good = {"role": "system", "content": "s"}
    with pytest.raises(ValueError, match=f"row 3, message 1.*{words}"):
        text_messages([good, message], "row 3")

"""Prompt files of every format, local and behind URLs."""

import csv
import gzip
import hashlib
import json
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from diffgan.errors import UserError
from diffgan.prompts import PromptFile

NAMES = ("p.txt", "p.jsonl", "p.csv", "p.tsv", "p.parquet", "p.txt.gz", "p.jsonl.gz", "p.csv.gz")
ODD = [
    "grüße ☃",
    "digit 7",
    'a 5" pipe, "quoted"',
    "line\u2028separator\x85within",
    "digit 7",
    "{}",
    "'",
]


def write(file: Path, prompts: list[str | None]) -> Path:
    """A file of these prompts in the format of its name, beside a column of numbers where there are columns."""
    with gzip.open(file, "wb") if file.suffix == ".gz" else open(file, "wb") as target:
        kind = file.suffixes[0]
        if kind == ".parquet":
            columns = {"id": range(len(prompts)), "caption": pa.array(prompts, pa.string())}
            pq.write_table(pa.table(columns), target, row_group_size=3000)
        elif kind in (".csv", ".tsv"):
            text = _Encoded(target)
            rows = csv.writer(text, delimiter="," if kind == ".csv" else "\t")
            rows.writerows([("id", "caption"), *enumerate(prompts)])
        elif kind == ".jsonl":
            lines = (json.dumps({"id": i, "caption": p}, ensure_ascii=i % 2 == 0) for i, p in enumerate(prompts))
            target.writelines(f"{line}\n".encode() for line in lines)
        else:
            target.writelines(f"{prompt or ''}\n".encode() for prompt in prompts)
    return file


class _Encoded:
    def __init__(self, target):
        self.write = lambda text: target.write(text.encode())


def refusal(source, column=None) -> str:
    """The message with which a file is refused, without the file's name."""
    with pytest.raises(UserError) as caught:
        PromptFile(source, column)
    message = str(caught.value)
    assert message.startswith(f"prompts {source}: ") and "\n" not in message
    return message.removeprefix(f"prompts {source}: ")


@pytest.fixture(scope="module")
def many() -> list[str]:
    """Prompts for several blocks of every format."""
    return [f"{'wide ' * (i % 7)}{ODD[i % len(ODD)]} {i // 2}" for i in range(9000)]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_prompts_at_any_position(tmp_path, many, name):
    file = PromptFile(write(tmp_path / name, many))
    assert len(file) == len(many) and file.blank == 0
    assert file.digest == hashlib.blake2b("\n".join(many).encode(), digest_size=16).hexdigest()
    ranges = [range(8990, 9000), range(0, 1), range(5, 5), range(2999, 6001), range(1020, 1030), range(7, 9000, 1)]
    for numbers in (*ranges, *(range(i, i + 7) for i in range(0, 8990, 613))):
        assert file.read(numbers) == many[numbers.start : numbers.stop]
    with pytest.raises(IndexError):
        file.read(range(8999, 9001))


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zip"])
def test_compressed_files_are_decompressed(tmp_path, many, compression):
    plain = write(tmp_path / "p.csv", many)
    with fsspec.open(str(tmp_path / f"p.csv.{compression}"), "wb", compression="infer") as target:
        target.write(plain.read_bytes())
    file = PromptFile(tmp_path / f"p.csv.{compression}")
    assert file.digest == PromptFile(plain).digest
    assert file.read(range(8990, 9000)) == many[8990:] and file.read(range(2)) == many[:2]


@pytest.mark.parametrize("name", NAMES)
def test_blank_prompts_are_skipped_and_counted(tmp_path, name):
    blank = ["", " \t", None, "\u00a0", ""] * 1000
    prompts = [" first ", *blank, "second", *blank, "second\r"]
    file = PromptFile(write(tmp_path / name, prompts))
    assert file.read(range(3)) == ["first", "second", "second"] and file.blank == len(prompts) - 3 == 10_000
    assert file.digest == PromptFile(write(tmp_path / "q.txt", ["first", "second", "second"])).digest


def test_text_with_a_byte_order_mark_and_either_line_end(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffa\r\n\r\nb\n \nc".encode())
    (tmp_path / "p.csv").write_bytes('\ufefftext\r\na\r\n\r\n"b"\r\n" "\r\nc'.encode())
    lines = ('{"text": "a"}\r\n', "\r\n", '{"text": "b"}\r\n', '{"text": ""}\n', '{"text":"c"}')
    (tmp_path / "p.jsonl").write_bytes(f"\ufeff{''.join(lines)}".encode())
    files = [PromptFile(tmp_path / name) for name in ("p.txt", "p.csv", "p.jsonl")]
    assert [file.read(range(3)) for file in files] == [["a", "b", "c"]] * 3
    assert len({file.digest for file in files}) == 1 and [file.blank for file in files] == [2, 2, 2]


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.jsonl", "p.parquet"])
def test_a_prompt_may_contain_line_feeds(tmp_path, name):
    prompts = [f'verse {i}\n\n"second", {"x" * (i % 50)}\nthird' if i % 3 else f"plain {i}" for i in range(5000)]
    file = PromptFile(write(tmp_path / name, prompts))
    assert len(file.counts) > 3
    for i in range(0, 4990, 371):
        assert file.read(range(i, i + 10)) == prompts[i : i + 10]


def test_the_digest_distinguishes_line_feeds_within_and_between_prompts(tmp_path):
    lists = (["a", "b"], ["a\nb"], ["a\n\nb"], ["a", "b", "b"], ["b", "a"])
    assert len({PromptFile(write(tmp_path / "p.jsonl", prompts)).digest for prompts in lists}) == len(lists)


def test_the_column_is_chosen_or_the_user_is_asked(tmp_path):
    tables = {"one.csv": "words\nw\n", "usual.csv": "id,text,url\n1,t,u\n", "both.csv": "text,caption\nt,c\n"}
    for name, content in tables.items():
        (tmp_path / name).write_text(content)
    assert PromptFile(tmp_path / "one.csv", "words").read(range(1)) == ["w"]
    (tmp_path / "one.jsonl").write_text('{"words": "w"}')
    assert PromptFile(tmp_path / "one.jsonl").read(range(1)) == ["w"]
    assert PromptFile(tmp_path / "usual.csv").read(range(1)) == ["t"]
    assert PromptFile(tmp_path / "both.csv", "caption").read(range(1)) == ["c"]
    assert "not clear which column" in refusal(tmp_path / "both.csv")
    assert "no column 'x'; set `column` to one of 'text', 'caption'" in refusal(tmp_path / "both.csv", "x")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", b"", "no prompts in it"),
        ("p.csv", b"", "no prompts in it"),
        ("p.jsonl", b"\n\n", "no prompts in it"),
        ("p.parquet", b"", "Parquet file size is 0 bytes"),
        ("p.txt", "grün".encode("latin-1"), "byte 2 is not UTF-8"),
        ("p.txt", b"word\n" * 100_000 + b"\xff", "byte 500000 is not UTF-8"),
        ("p.txt", "a".encode("utf-16"), "byte 0 is not UTF-8"),
        ("p.csv", b"text\ngr\xfcn\n", "byte 7 is not UTF-8"),
        ("p.jsonl", b'{"text": "a"}\n' * 9999 + b'{"text": "a"\n', "line 10000: not JSON (Expecting ',' delimiter"),
        ("p.jsonl", b'{"text": "a"}\n{"texts": "a"}\n', "line 2: no 'text', but 'texts'"),
        ("p.jsonl", b'{"text": ["a"]}\n', """line 1: 'text' is ["a"], not text"""),
        ("p.jsonl", b'"a"\n', 'line 1: not a JSON object, but "a"'),
        ("p.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        (
            "p.jsonl",
            b'{"text": "a", "n": 1}\n{"n": ' + b"9" * 5000 + b"}\n",
            "line 2: not JSON (Exceeds the limit (4300",
        ),
        ("p.jsonl", rb'{"text": "\ud83d"}', r"prompt '\ud83d' holds half of a surrogate pair"),
        ("p.csv", b"text\nred, green\n", "line 2: 2 values under 1 columns; a value that contains ',' needs quotes"),
        (
            "p.csv",
            b"id,text,url\n1,t,u\n2,t\n",
            "line 3: 2 values under 3 columns; every column needs a value, which may be empty",
        ),
        (
            "p.csv",
            b"caption;id\na;1\n",
            "the only column is 'caption;id'; set `column: 'caption;id'` to use it",
        ),
        ("p.csv", b"a red ball\na blue ball\n", "the only column is 'a red ball'"),
        ("p.csv", b'"a red\nball"\na blue ball\n', r"the only column is 'a red\nball'"),
        ("p.tsv", b"caption,id\na,1\n", "the only column is 'caption,id'"),
        ("p.csv", b'text\na\n"b\nc\n', "line 3: not CSV (unexpected end of data); is a quote not closed?"),
        ("p.csv", b"text,text\na,b\n", "there are 2 columns 'text'"),
        ("p.txt.gz", b"word", "Not a gzipped file"),
        ("p.txt.gz", gzip.compress(b"word\n" * 999, mtime=0)[:40], "Compressed file ended before"),
        ("p.parquet.gz", b"", "Parquet compresses its columns itself; decompress the file"),
        ("p.doc", b"a", "format '.doc' is not supported; name a file that ends in .txt"),
        ("p", b"a", "format '' is not supported"),
        ("p.txt", b"x" * (9 << 20), "a line of more than 8 MiB"),
    ],
)
def test_a_malformed_file_is_reported_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_parquet_columns_that_are_not_text_are_refused(tmp_path):
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken, "size": [1, 2]}), tmp_path / "p.parquet")
    assert "rows 0 to 1: 'text' is not UTF-8" in refusal(tmp_path / "p.parquet")
    assert "column 'size' holds int64, not text" in refusal(tmp_path / "p.parquet", "size")


def test_a_column_named_as_a_field_of_a_struct_is_read(tmp_path):
    struct, text = pa.array([{"t": "x"}, {"t": "y"}]), ["a", "b"]
    for number, table in enumerate(({"s": struct, "s.t": text}, {"s.t": text, "s": struct})):
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
        assert PromptFile(tmp_path / f"{number}.parquet", "s.t").read(range(2)) == text
    assert "column 's' holds struct<t: string>, not text" in refusal(tmp_path / "0.parquet", "s")


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.parquet"])
def test_a_zero_byte_is_part_of_a_prompt(tmp_path, name):
    assert PromptFile(write(tmp_path / name, ["a\0b", "\0"])).read(range(2)) == ["a\0b", "\0"]


def test_a_column_of_a_text_file_is_refused(tmp_path):
    assert "a text file has no column 'text'" in refusal(write(tmp_path / "p.txt", ["a"]), "text")


def test_dictionaries_and_large_strings_are_text(tmp_path):
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "p.parquet")
        assert PromptFile(tmp_path / "p.parquet").read(range(2)) == ["a", "b"]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
def test_a_file_that_changes_while_in_use_is_reported(tmp_path, many, name):
    file = PromptFile(write(tmp_path / name, many))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="was changed while it was in use"):
        file.read(range(8000, 8010))


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.parquet"])
def test_the_prompts_are_not_kept_in_memory(tmp_path, name):
    prompts = [f"{i} {'a photograph of a hedgehog in the evening sun, ' * 3}" for i in range(200_000)]  # 31 MB
    write(tmp_path / name, prompts)
    wanted = prompts[150_000:150_050]
    del prompts
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        file = PromptFile(tmp_path / name)
        assert file.read(range(150_000, 150_050)) == [prompt.strip() for prompt in wanted]
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6 and held < 1e6
    assert pa.total_allocated_bytes() - arrow < 2e6  # one row group


def test_missing_files_and_packages_are_reported(tmp_path):
    assert "No such file or directory; name a file or a URL" in refusal(tmp_path / "none.txt")
    assert "No such file" in refusal("memory://none.txt")
    assert refusal("oss://bucket/p.txt").endswith(": pip install ossfs")
    assert "Protocol not known: nope" in refusal("nope://p.txt")
    assert "Is a directory" in refusal(tmp_path)


def test_file_systems_of_fsspec_are_supported(tmp_path, many):
    write(tmp_path / "p.jsonl", many)
    fsspec.filesystem("memory").pipe_file("/prompts/p.jsonl", (tmp_path / "p.jsonl").read_bytes())
    file = PromptFile("memory://prompts/p.jsonl")
    assert file.read(range(4321, 4330)) == many[4321:4330]
    assert file.digest == PromptFile(tmp_path / "p.jsonl").digest


@pytest.fixture
def bucket(monkeypatch):
    """An S3 file system with the bucket "prompts", on an S3-compatible server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **access}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("prompts")
    yield system
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_prompts_on_s3(tmp_path, many, bucket):
    for name in NAMES:
        bucket.put_file(str(write(tmp_path / name, many)), f"prompts/{name}")
        file = PromptFile(f"s3://prompts/{name}")
        assert file.digest == PromptFile(tmp_path / name).digest
        assert file.read(range(5990, 6010)) == many[5990:6010] and file.read(range(2)) == many[:2]
    assert "No such file" in refusal("s3://prompts/none.txt")
    assert "bucket does not exist" in refusal("s3://nowhere/p.txt")
    file = PromptFile("s3://prompts/p.txt")
    bucket.rm_file("prompts/p.txt")
    with pytest.raises(UserError, match=r"prompts s3://prompts/p\.txt: "):
        file.read(range(5))


class _Files(BaseHTTPRequestHandler):
    """Files of `server.folder`, by ranges if `server.ranges`; `server.sent` counts bytes."""

    def do_GET(self):
        file = self.server.folder / self.path.split("?")[0].lstrip("/")
        if not file.is_file():
            return self.send_error(404)
        content, requested = file.read_bytes(), self.headers.get("Range") if self.server.ranges else None
        size = len(content)
        if requested:
            first, last = requested.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.sent += len(content)
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        server.folder, server.ranges, server.sent, server.handle_error = tmp_path, True, 0, lambda *args: None
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.parquet"])
def test_a_read_fetches_only_its_byte_range(tmp_path, server, many, name):
    size = write(tmp_path / name, many * 10).stat().st_size
    file = PromptFile(f"{server.url}/{name}?download=true")
    assert server.sent < 1.1 * size + 100_000
    server.sent = 0
    for start in (70_000, 70_010, 70_020):
        assert file.read(range(start, start + 10)) == (many * 10)[start : start + 10]
    assert 0 < server.sent < 140_000 < size / 2


def test_servers_without_answer_or_byte_ranges_are_reported(tmp_path, server, many):
    write(tmp_path / "p.txt", many * 10)
    assert "404" in refusal(f"{server.url}/none.txt")
    assert "Connect call failed" in refusal("http://127.0.0.1:9/p.txt")
    server.ranges = False
    assert "put simplecache:: before the URL" in refusal(f"{server.url}/p.txt")
    assert PromptFile(f"simplecache::{server.url}/p.txt").read(range(8999, 9001)) == [many[-1], many[0]]

"""Downloads: from a server on 127.0.0.1, which misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from elmojax.cloud import cache_directory
from elmojax.errors import InputError
from elmojax.formats import fetch as fetching
from elmojax.formats import forms
from elmojax.formats.forms import REGISTRY, fetch_model, is_url
from elmojax.formats.hdf5 import load_hdf5

DATA = bytes(range(256)) * 4000  # about a megabyte: several blocks
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@dataclass
class Server:
    """What is served, how, and what was asked for."""

    url: str = ""
    file: str = ""
    """Address of DATA."""
    files: dict[str, bytes] = field(default_factory=lambda: {"/some/data.bin": DATA})
    status: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    head: bool = True
    """Whether HEAD is answered, which a signed address often does not allow."""
    length: str = "right"
    """Or "none" (the connection ends it), "long", "chunked"."""
    cut: int | None = None
    """Bytes after which the connection ends."""
    pause: threading.Event | None = None
    """Half of a large file waits for it."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each GET that was answered with a file."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        server, path = self.state, self.path.partition("?")[0]
        self.close_connection, get = True, self.command == "GET"
        data = server.files.get(path, b"")
        status = server.status.get(path, 200 if path in server.files else 404)
        if status != 200 or not (get or server.head):
            return self.send_error(status if get else 403)
        if "Content-Encoding" in server.headers:
            data = gzip.compress(data)
        wanted = self.headers["Range"] if server.ranges else None
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        self.send_response(206 if start else 200)
        for header in server.headers.items():
            self.send_header(*header)
        if server.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif server.length != "none":
            more = 1000 if server.length == "long" else 0
            self.send_header("Content-Length", str(len(data) - start + more))
        self.end_headers()
        if get:
            server.asked.append((self.path, self.headers["Range"]))
            with contextlib.suppress(ConnectionError):  # who only asked has gone
                self.send_body(data[start:])

    do_HEAD = do_GET

    def send_body(self, data: bytes) -> None:
        server, half = self.state, len(data) // 2
        if server.length == "chunked":
            end = b"" if server.cut else b"0\r\n\r\n"
            data = b"%x\r\n%b\r\n%b" % (len(data), data, end)
        if server.pause and len(data) > 100_000:
            self.wfile.write(data[:half])
            server.pause.wait(30)
            data = b"" if server.cut else data[half:]
        self.wfile.write(data[: server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    handler = type("Bound", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_address[1]}"
        state.file = f"{state.url}/some/data.bin"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may talk to another address than 127.0.0.1."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        assert address[0] == "127.0.0.1", address  # type: ignore[index]
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetch(url: str, sha256: str | None = None) -> Path:
    return fetching.fetch(url if sha256 is None else f"{url}#sha256={sha256}")


def kept(cache: Path) -> list[Path]:
    """Files that pass for whole."""
    files = [path for path in cache.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix not in (".lock", ".part")]


def parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.part"))


@contextlib.contextmanager
def breaking(server: Server) -> Iterator[None]:
    """Downloads break off once some of a large file is there."""
    server.cut, server.pause = 700_000, threading.Event()
    large = 10_000  # more than options.json has

    def watch(pause: threading.Event = server.pause) -> None:
        while not any(size_of(part) > large for part in parts(cache_directory())):
            pause.wait(0.01)
        pause.set()

    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(InputError, match=r"cannot be downloaded \(.*try again: a down"):
        yield
    watching.join()
    server.cut = server.pause = None


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def begin(server: Server, sha256: str | None = None) -> Path:
    """The part of a download that broke off."""
    with breaking(server):
        fetch(server.file, sha256)
    assert not kept(cache_directory())
    (part,) = parts(cache_directory())
    assert 0 < part.stat().st_size < len(DATA)
    return part


# --- a download, and the cache -------------------------------------------------------


def test_file_comes_whole_and_once(server: Server, cache: Path, capfd):
    path = fetch(server.file)
    assert path.read_bytes() == DATA
    assert path.parent == cache and kept(cache) == [path] and not parts(cache)
    assert re.fullmatch(r"some-data-[0-9a-f]{12}\.bin", path.name)
    assert fetch(f"HTTP{server.url[4:]}/some/data.bin", SHA256) == path
    assert len(server.asked) == 1
    assert capfd.readouterr() == ("", "")


def test_each_address_has_its_own_file(server: Server, cache: Path):
    names = {  # what is asked for, by what is given
        "": "/",
        "/some/data.bin": "/some/data.bin",
        "/some/data.bin?v=2": "/some/data.bin?v=2",
        "/other/some/data.bin": "/other/some/data.bin",
        "/a b/%20.tar.gz": "/a%20b/%20.tar.gz",
        "/" + 300 * "x": "/" + 300 * "x",
        "/ü/日本": "/%C3%BC/%E6%97%A5%E6%9C%AC",
    }
    server.files = {there.partition("?")[0]: b"x" for there in names.values()}
    paths = {fetch(server.url + name) for name in names}
    assert len(paths) == len(names) == len(kept(cache))
    assert [path for path, _ in server.asked] == list(names.values())
    assert all(re.fullmatch(r"[\w.-]{12,120}", x.name, re.ASCII) for x in paths)


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ELMOJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_directory() == tmp_path / ".cache" / "elmojax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "elmojax"
    monkeypatch.setenv("ELMOJAX_CACHE", "~/models")
    assert cache_directory() == tmp_path / "models"


# --- SHA-256 -------------------------------------------------------------------------


def test_sha256_is_checked(server: Server, cache: Path):
    with pytest.raises(InputError, match=f"data.bin has the SHA-256 {SHA256}, not"):
        fetch(server.file, OTHER)
    assert not kept(cache) and not parts(cache)
    path = fetch(f"{server.file}#sha256={SHA256.upper()}")
    assert path == fetch(server.file, SHA256) == fetch(server.file)


def test_cached_file_is_checked_again(server: Server, cache: Path):
    path = fetch(server.file)
    path.write_bytes(DATA[:-1] + b"?")
    assert fetch(server.file, SHA256).read_bytes() == DATA
    server.status["/some/data.bin"] = 503
    with pytest.raises(InputError, match="503"):
        fetch(server.file, OTHER)
    assert fetch(server.file, SHA256) == path  # it outlives a server that is gone
    server.status.clear()
    with pytest.raises(InputError, match="is not kept"):
        fetch(server.file, OTHER)
    assert not kept(cache)


def test_sha256_that_is_none(server: Server):
    for sha256 in ("", "abc", 64 * "g", SHA256 + "0"):
        with pytest.raises(InputError, match="64 hexadecimal digits"):
            fetch(server.file, sha256)
    assert not server.asked


# --- continued -----------------------------------------------------------------------

DATE = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2018 00:00:00 GMT"}


@pytest.mark.parametrize("headers", [{"ETag": '"one"'}, DATE, {}])
def test_broken_download_is_continued(server: Server, headers: dict[str, str]):
    """Where an entity tag, a date or the SHA-256 tells the version."""
    server.headers = headers
    sha256 = None if headers else SHA256
    part = begin(server, sha256)
    have = part.stat().st_size
    assert fetch(server.file, sha256).read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={have}-"]


@pytest.mark.parametrize(
    ("before", "after", "data"),
    [
        ('"one"', '"two"', DATA[::-1]),
        ('"one"', "", DATA[::-1]),
        ("", "", DATA[::-1]),
        ('"one"', '"one"', DATA[::-1] + b"more"),
        ('"one"', '"one"', b"less"),
    ],
)
def test_another_file_at_the_address_starts_again(
    server: Server, cache: Path, before: str, after: str, data: bytes
):
    server.headers = {"ETag": before}
    begin(server)
    server.headers, server.files["/some/data.bin"] = {"ETag": after}, data
    assert fetch(server.file).read_bytes() == data
    assert [wanted for _, wanted in server.asked] == [None, None]
    assert not parts(cache)


def test_server_without_ranges_starts_again(server: Server):
    begin(server)
    server.ranges = False
    assert fetch(server.file).read_bytes() == DATA
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("there", "asked"),
    [(b"?" * 1000, [None, "bytes=1000-", None]), (DATA, [None])],
    ids=["of another file", "whole"],
)
def test_part_is_checked(server: Server, there: bytes, asked: list[str | None]):
    begin(server).write_bytes(there)
    assert fetch(server.file, SHA256).read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == asked


# --- what goes wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, r"There is no file that we may read at .*data.bin \(404 Not Found\)"),
        (403, r"There is no file that we may read at .*data.bin \(403 Forbidden\)"),
        (500, r"data.bin cannot be downloaded \(500 Internal Server Error\)"),
        (416, r"data.bin cannot be downloaded \(416 "),
    ],
)
def test_status(server: Server, cache: Path, status: int, words: str):
    server.status["/some/data.bin"] = status
    url = f"//user:secret@{server.url[7:]}/some/data.bin?key=secret"
    with pytest.raises(InputError, match=words) as caught:
        fetch(f"http:{url}")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert not kept(cache)
    server.status.clear()
    fetch(f"http:{url}")
    assert not [path for path in cache.rglob("*") if "secret" in path.name]


def test_no_network(monkeypatch: pytest.MonkeyPatch):
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("NO_PROXY", "*")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=r"/x cannot be downloaded \(Connect call fai"):
        fetch(f"http://127.0.0.1:{port}/x")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match=r"\(Name or service not known\). Check the"):
        fetch("https://nowhere.invalid/x")


@pytest.mark.parametrize(
    "url",
    "weights.hdf5 ftp://127.0.0.1/x file:///etc/hosts http:// s3:/ http://[::1 "
    "http://127.0.0.1:x/ http://u:sec/ret@h/ gs://u:ret@b/x".split(),
)
def test_address_that_is_none(url: str):
    with pytest.raises(InputError, match="no address that begins with http, h") as no:
        fetch(url)
    assert "ret@" not in str(no.value)


def test_connection_that_says_no_length(server: Server, cache: Path):
    server.length = "none"
    with pytest.raises(InputError, match="does not say how long"):
        fetch(server.file)
    assert not kept(cache)
    assert fetch(server.file, SHA256).read_bytes() == DATA


@pytest.mark.parametrize("odd", ["chunked", "gzip", "head", "long"])
def test_answers_of_other_forms(server: Server, cache: Path, odd: str):
    if odd == "gzip":
        server.headers["Content-Encoding"] = odd
    elif odd != "head":
        server.length = odd
    server.head, server.cut = odd != "head", 1000
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be downloaded"):
            fetch(server.file)
    assert not kept(cache)
    server.cut, server.length = None, odd if odd == "chunked" else "right"
    assert fetch(server.file).read_bytes() == DATA


def test_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "file" / "sub"))
    with pytest.raises(InputError, match=r"file/sub cannot be written: Not a direct"):
        fetch(server.file)
    (tmp_path / "read").mkdir(mode=0o500)
    monkeypatch.setenv("ELMOJAX_CACHE", str(tmp_path / "read"))
    if not os.access(tmp_path / "read", os.W_OK):
        with pytest.raises(InputError, match=r"cannot be written: Permission denied"):
            fetch(server.file)
    assert not server.asked


def test_no_room(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="has room for 1000 bytes, and 1024000 are"):
        fetch(server.file)
    assert not kept(cache)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_disk_gets_full(server: Server, cache: Path):
    part = begin(server)
    part.unlink()
    part.symlink_to("/dev/full")
    with pytest.raises(InputError, match=os.strerror(errno.ENOSPC)):
        fetch(server.file)
    assert not kept(cache)


# --- at the same time ----------------------------------------------------------------


def test_threads_share_one_download(server: Server):
    server.pause = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(fetch, server.file) for _ in range(3)]
        threading.Timer(0.2, server.pause.set).start()
        assert len({future.result() for future in futures}) == 1
    assert len(server.asked) == 1


def test_processes_wait_for_each_other(server: Server):
    """Also for one that is killed: its lock ends with it."""
    path = fetch(server.file)
    path.unlink()
    code = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); "
    code += "lock.acquire(); print(flush=True); input()"
    command = [sys.executable, "-c", code, f"{path}.lock"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other, ThreadPoolExecutor(1) as pool:
        assert other.stdout is not None
        other.stdout.readline()
        waiting = pool.submit(fetch, server.file)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        assert len(server.asked) == 1
        other.kill()
        assert waiting.result().read_bytes() == DATA


# --- gs and s3 -----------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """s3 holds one file. The dict says its entity tag, and from and to which byte it
    is read."""
    import fsspec

    state: dict[str, Any] = {"tag": "one", "cut": len(DATA)}

    class Reader(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if state["cut"] <= self.tell() < len(DATA):
                raise ConnectionResetError("reset")
            return super().read(min(size or 0, state["cut"]))

        def seek(self, place: int, whence: int = 0) -> int:
            state["from"] = place
            return super().seek(place, whence)

    class Bucket(fsspec.AbstractFileSystem):
        protocol = "s3"

        def info(self, path: str, **kwargs: object) -> dict[str, object]:
            found = {"bucket/some/data.bin": "file", "bucket/some": "directory"}
            if (path := self._strip_protocol(path)) not in found:
                raise FileNotFoundError(path)
            return {"type": found[path], "size": len(DATA), "ETag": state["tag"]}

        def _open(self, path: str, mode: str = "rb", **kwargs: object) -> Reader:
            return Reader(DATA)

    monkeypatch.setattr(fsspec, "filesystem", lambda *args, **kwargs: Bucket())
    return state


def test_bucket(bucket: dict[str, Any]):
    path = fetch("S3://bucket/some/data.bin")
    assert path.read_bytes() == DATA and path.suffix == ".bin"
    for name in ("none", "some"):
        with pytest.raises(InputError, match=rf"There is no file.* s3://bucket/{name}"):
            fetch(f"s3://bucket/{name}")


@pytest.mark.parametrize("tag", ["one", "two"])
def test_bucket_is_continued(bucket: dict[str, Any], cache: Path, tag: str):
    bucket["cut"] = len(DATA) // 2
    with pytest.raises(InputError, match=r"cannot be downloaded \(reset\)"):
        fetch("s3://bucket/some/data.bin")
    assert not kept(cache) and parts(cache)
    bucket |= {"cut": len(DATA), "tag": tag}
    assert fetch("s3://bucket/some/data.bin").read_bytes() == DATA
    assert (bucket["from"] > 0) == (tag == "one")


@pytest.mark.parametrize("library", ["gcsfs", "s3fs"])
def test_missing_extra_is_named(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    url = {"gcsfs": "gs://bucket/x", "s3fs": "s3://bucket/x"}[library]
    with pytest.raises(InputError, match=r"pip install 'elmojax\[cloud\]'"):
        fetch(url)


# --- models --------------------------------------------------------------------------


PUBMED = "/models/elmo/contributed/pubmed/elmo_2x4096_512_2048cnn_2xhighway_"
MODELS = (
    ("/plain/options.json", "/plain/weights.hdf5"),
    ("/named/elmo_2x8_4_options.json", "/named/elmo_2x8_4_weights.hdf5"),
    ("/mixed/options.json", "/mixed/elmo_pt_weights.hdf5"),
    (f"{PUBMED}options.json", f"{PUBMED}weights_PubMed_only.hdf5"),
)


@pytest.fixture
def model(server: Server, goldens: Path) -> Server:
    """A small model under the names that published ones have."""
    files = [
        (goldens / "allennlp" / name).read_bytes()
        for name in ("options.json", "lm_weights.hdf5")
    ]
    server.files = {}
    for names in MODELS:
        server.files |= zip(names, files, strict=True)
    return server


@pytest.mark.parametrize(
    "names",
    [
        ("/plain", "/plain/", *MODELS[0]),
        MODELS[1],
        MODELS[2][1:],
        MODELS[3],
        ("/plain/options.json?key=1", "/plain?key=1"),
    ],
)
def test_model_is_found_by_either_address(
    model: Server, cache: Path, names: tuple[str, ...]
):
    folders = {fetch_model(model.url + name) for name in names}
    (folder,) = folders
    assert sorted(path.name for path in kept(cache)) == ["options.json", "weights.hdf5"]
    assert all("key=1" in path for path, _ in model.asked) == ("key=1" in names[-1])
    params = load_hdf5(folder / "options.json", folder / "weights.hdf5")
    assert params.config.lstm.layers == 2
    assert len(model.asked) <= 3


def test_model_with_sha256(model: Server, cache: Path):
    sha256 = hashlib.sha256(model.files["/plain/weights.hdf5"]).hexdigest()
    with pytest.raises(InputError, match="is not kept"):
        fetch_model(f"{model.url}/plain#sha256={OTHER}")
    assert [path.name for path in kept(cache)] == ["options.json"]
    folder = fetch_model(f"{model.url}/plain#sha256={sha256}")
    assert folder == fetch_model(f"{model.url}/plain/options.json#sha256={sha256}")


@pytest.mark.parametrize(
    ("file", "what"), [("options.json", "a JSON object"), ("weights.hdf5", "HDF5")]
)
def test_model_without_one_of_its_files(
    model: Server, cache: Path, file: str, what: str
):
    """It is missing, or a web page comes instead."""
    path, page = f"/plain/{file}", b"<!DOCTYPE html><html>log in first</html>"
    for status in (403, 404):
        model.status[path] = status
        words = f"There is no file.*{path}.*two files side by side"
        with pytest.raises(InputError, match=words):
            fetch_model(f"{model.url}/plain/")
    model.status.clear()
    good, model.files[path] = model.files[path], page
    with pytest.raises(InputError, match=f"{path} gives .* not {what}.*DOCTYPE"):
        fetch_model(f"{model.url}/plain")
    assert file not in [path.name for path in kept(cache)] and not parts(cache)
    model.files[path] = good
    fetch_model(f"{model.url}/plain")


def test_broken_model_is_continued(model: Server, cache: Path):
    with breaking(model):
        fetch_model(f"{model.url}/plain")
    assert [path.name for path in kept(cache)] == ["options.json"]
    folder = fetch_model(f"{model.url}/plain")
    assert (folder / "weights.hdf5").read_bytes() == model.files["/plain/weights.hdf5"]
    assert model.asked[-1][1] is not None


# --- published models ----------------------------------------------------------------


def test_registry(model: Server, monkeypatch: pytest.MonkeyPatch):
    url = f"{model.url}/named/elmo_2x8_4_"
    entry = (f"{url}options.json", f"{url}weights.hdf5")
    monkeypatch.setitem(REGISTRY, "Tiny-5.5B", entry)
    assert (fetch_model("allennlp:Tiny-5.5B") / "weights.hdf5").is_file()
    with pytest.raises(InputError, match=f"not {SHA256}"):
        fetch_model(f"allennlp:Tiny-5.5B#sha256={SHA256}")
    with pytest.raises(InputError, match="no model 'huge'; it has small, medium"):
        fetch_model("allennlp:huge")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_published_files_lead_to_each_other(name: str):
    options, weights = REGISTRY[name]
    assert options.endswith("options.json") and weights.endswith(".hdf5")
    for copy in ("", "https://allennlp.s3.amazonaws.com/", "s3://allennlp/"):
        pair = [options, weights]
        if copy:
            pair = [x.replace(forms.ALLENNLP, f"{copy}models/elmo/") for x in pair]
        for url in pair:
            assert forms._files(url) == ([pair[0]], [pair[1]])


def test_published_models_are_documented():
    page = Path(__file__).parents[2] / "docs" / "published_models.md"
    text = page.read_text()
    for name, (options, weights) in REGISTRY.items():
        assert f"`{name}`" in text and options in text and weights in text


def test_what_is_an_address(tmp_path: Path):
    for url in ("http://x/", "HTTPS://x/y", "gs://a/b", "s3://a/b", "allennlp:small"):
        assert is_url(url)
    for path in ("runs/a", "original", "C:/x", "http", tmp_path, "file:///x", "httpx"):
        assert not is_url(path)

"""Files that the user names: pipes are read, devices refused, and only text is appended to."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from sapcli.errors import SapError
from sapcli.machine.reading import check_text, open_input, read_input


def test_a_file_and_a_pipe_give_the_same_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    assert read_input(tmp_path / "file") == read_input(tmp_path / "pipe") == content
    writer.join()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_a_text_in_any_unicode_form_is_read(tmp_path: Path, encoding: str) -> None:
    content = "a\0b\0\0".encode(encoding) * 3_000_000
    (tmp_path / "file").write_bytes(content)
    assert read_input(tmp_path / "file") == content


@pytest.mark.parametrize("start", [b"", b"path,label\n"])
def test_a_file_without_content_is_no_text(tmp_path: Path, start: bytes) -> None:
    with (tmp_path / "file").open("wb") as handle:
        handle.write(start)
        handle.truncate(100 << 20)
    with pytest.raises(SapError, match="holds zeros"):
        read_input(tmp_path / "file")


def test_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name in ("/dev/zero", "/dev/null", "socket"):
            with pytest.raises(SapError, match="device or a socket"):
                open_input(Path(name))


def test_a_pipe_without_a_writer_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapcli.machine.files._SECONDS_FOR_A_WRITER", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SapError, match="nobody writes"):
        read_input(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_input(tmp_path)


def test_what_is_too_large_to_be_a_text_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(SapError, match="larger than 1 MiB"):
        read_input(tmp_path / "sparse", 1 << 20)


@pytest.mark.parametrize(
    ("content", "is_text"),
    [
        (b"", True),
        (b"### earlier\n", True),
        ("Käse\n".encode() * 400_000, True),
        ("\U0001f600".encode() * 300_000 + b"a", True),
        (b"a\0b", False),
        (b"\x89PNG\r\n\x1a\n", False),
        (b"text " * 500_000 + b"\xff\xfe", False),
        (b"\xff" + b"text " * 500_000, False),
    ],
)
def test_what_can_be_appended_to(tmp_path: Path, content: bytes, is_text: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    if is_text:
        check_text(file)
        return
    with pytest.raises(SapError, match="no text"):
        check_text(file)

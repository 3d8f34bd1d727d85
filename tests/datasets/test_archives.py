"""Tar archives as data, honest and hostile."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from support.data_folders import CLASSES, opened, write_classes, write_image

from sapcli.errors import DatasetError


@pytest.mark.parametrize("inside", ["", "cifar/"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_archive_as_data(tmp_path: Path, inside: str, suffix: str) -> None:
    data = write_classes(tmp_path / "data")
    archive = tmp_path / f"data{suffix}"
    with tarfile.open(archive, "w:gz" if suffix.endswith("gz") else "w") as file:
        for name in CLASSES:
            file.add(data / name, f"{inside}{name}")
    dataset = opened(archive)
    assert dataset.paths == opened(data).paths
    assert opened(archive).root == dataset.root
    assert opened(archive).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("attack", ["../../outside.png", "/tmp/outside.png", "link"])
def test_archive_that_leads_outside_is_refused(tmp_path: Path, attack: str) -> None:
    write_image(tmp_path / "0.png")
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as file:
        if attack == "link":
            member = tarfile.TarInfo("cat")
            member.type = tarfile.SYMTYPE
            member.linkname = "/etc"
            file.addfile(member)
        else:
            member = tarfile.TarInfo(attack)
            member.size = (tmp_path / "0.png").stat().st_size
            file.addfile(member, (tmp_path / "0.png").open("rb"))
    if attack.startswith("/"):  # an absolute name is unpacked below the folder, which is harmless, and has no class
        with pytest.raises(DatasetError, match="class folders"):
            opened(archive)
    else:
        with pytest.raises(DatasetError, match="refused to unpack"):
            opened(archive)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_damaged_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.tar.gz").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot unpack"):
        opened(tmp_path / "data.tar.gz")

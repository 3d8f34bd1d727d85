"""Shards in place: what is listed and read, what a hostile archive cannot do."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_folders import opened

from sapcli.datasets.contents import contents_of, find_contents
from sapcli.datasets.dataset import Role, open_dataset
from sapcli.datasets.image_files import open_image
from sapcli.errors import DatasetError


def picture(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (level, level, level)).save(content, "PNG")
    return content.getvalue()


def write_shard(file: Path, members: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def samples(first: int, count: int) -> dict[str, bytes]:
    found = {}
    for number in range(first, first + count):
        found[f"{number:03}.png"] = picture(number)
        found[f"{number:03}.cls"] = str(number % 3).encode()
    return found


def test_images_are_read_by_their_paths(tmp_path: Path) -> None:
    write_shard(tmp_path / "wds" / "a-000.tar", samples(0, 4))
    write_shard(tmp_path / "wds" / "a-001.tar", samples(4, 5))
    dataset = opened(tmp_path / "wds")
    assert dataset.paths[:1] + dataset.paths[-1:] == ("a-000.tar/000.png", "a-001.tar/008.png")
    assert dataset.labels == tuple(number % 3 for number in range(9))
    for number, path in enumerate(dataset.paths):
        with open_image(f"{dataset.root}/{path}") as image:
            assert np.asarray(image)[0, 0].tolist() == [number] * 3


def test_the_fingerprint_covers_the_contents(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.tar", samples(0, 6))
    before = opened(file)
    fingerprint = before.fingerprint
    assert opened(file).fingerprint == fingerprint
    write_shard(file, samples(0, 6) | {"003.png": picture(77)})
    assert opened(file).fingerprint != fingerprint


def test_copies_are_found_in_other_shards_and_as_files(tmp_path: Path) -> None:
    shard = opened(write_shard(tmp_path / "a.tar", samples(0, 6)))
    for number in (2, 5, 7):
        place = tmp_path / "folder" / str(number % 3) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    folder = opened(tmp_path / "folder", num_classes=2)
    found = find_contents(shard, contents_of(folder, range(len(folder.paths))).values())
    assert sorted(found) == [2, 5]
    assert sorted(find_contents(folder, contents_of(shard, range(6)).values())) == [1, 2] or len(folder.paths) == 3


def test_samples_without_an_image_or_a_label_are_told_of(tmp_path: Path) -> None:
    members = samples(0, 6) | {"010.png": picture(1), "011.cls": b"1"}
    dataset = opened(write_shard(tmp_path / "a.tar", members))
    assert len(dataset.paths) == 6
    assert any("1 images have no .cls" in remark for remark in dataset.remarks)
    assert any("1 samples have no image" in remark for remark in dataset.remarks)


def test_splits_by_the_names_of_shards_and_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shard(tmp_path / "by_name" / f"set-{split}-000.tar", samples(0, 6))
        write_shard(tmp_path / "by_folder" / split / "000.tar", samples(0, 6))
    for data in (tmp_path / "by_name", tmp_path / "by_folder"):
        assert "train" in opened(data).paths[0]
        assert "val" in opened(data, Role.CHOOSE).paths[0]
        assert open_dataset(data, Role.CONFIRM, 3) is None


def test_a_tar_archive_of_class_folders_is_no_shard(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.tar", {f"{name}/0.png": picture(1) for name in ("bird", "cat", "dog")})
    assert opened(file).paths[0] == "bird/0.png"


def test_links_and_names_that_lead_out_are_names_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(200))
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for name, content in (samples(0, 6) | {"../out.png": picture(9), "../out.cls": b"1"}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    dataset = opened(file)
    assert not any("link" in path for path in dataset.paths)
    with open_image(f"{dataset.root}/../out.png") as image:
        assert np.asarray(image)[0, 0].tolist() == [9, 9, 9]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kept", [700, 1100, 3000])
def test_a_shard_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    write_shard(tmp_path / "wds" / "a-000.tar", samples(0, 4))
    whole = write_shard(tmp_path / "other.tar", samples(4, 5)).read_bytes()
    (tmp_path / "wds" / "a-001.tar").write_bytes(whole[:kept])
    with pytest.raises(DatasetError, match=r"a-001\.tar"):
        opened(tmp_path / "wds")


def test_a_shard_that_changes_is_opened_again(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.tar", samples(0, 6))
    for level in (0, 99):
        write_shard(file, {"more.png": picture(level), "more.cls": b"0"} | samples(0, 6))
        with open_image(f"{file}/more.png") as image:
            assert np.asarray(image)[0, 0, 0] == level

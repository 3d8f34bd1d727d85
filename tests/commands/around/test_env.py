"""`sap env`: what there is here."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support.schemas import validated
from support.small_project import run_here

import sapcli


def test_versions_devices_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sap.toml").write_text("seed = 3\n")
    monkeypatch.setenv("SAP_LABELS", "/a/secret/place.csv")
    ended = run_here("env", "--format", "json")
    assert ended.status == 0, ended.stderr
    document = validated("env", ended.stdout)
    assert document["sap"] == sapcli.__version__
    assert document["versions"]["torch"] == version("torch")
    assert document["settings_file"] == "sap.toml"
    assert "SAP_LABELS" in document["variables"]
    assert "secret" not in ended.stdout.decode()
    devices = {device["name"]: device for device in document["devices"]}
    assert devices["cpu"]["threads"] == torch.get_num_threads()
    assert ("cuda:0" in devices) == torch.cuda.is_available()
    assert all(rate > 0 for device in devices.values() for rate in device["operations_per_second"].values())
    text = run_here("env").stdout.decode()
    assert ["torch", version("torch")] in [line.split() for line in text.splitlines()]

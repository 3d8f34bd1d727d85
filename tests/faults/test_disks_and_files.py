"""Disks that are full, folders that cannot be written, files that vanish, workers that die, pipes that close."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.command_line import run_process
from support.processes import OPTIONS, Run, project_arguments, start
from support.small_project import Project, without_privileges


def check_error(run: Run, says: str) -> None:
    """The two lines, and the status of an error."""
    status = run.wait()
    lines = run.said().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], run.said()
    assert says in lines[0]
    assert status == 1


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("__pycache__", "cache"))


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 7000])
def test_files_as_large_as_the_limit(project: Project, size: int) -> None:
    before = left(project.folder)
    # The limit holds for the streams that the errors go to as well.
    limited = functools.partial(limit_when_writing, size)
    check_error(start(project.folder, project_arguments("out.safetensors", "--quiet"), limited), "Cannot write")
    assert left(project.folder) == before
    assert not list(project.folder.rglob(".sap-*.tmp"))


def limit_when_writing(size: int) -> None:
    """Limit the size of files as soon as a file is written, and not of what follows the error."""
    import sapcli.machine.files

    settle, discard = sapcli.machine.files._PendingFile.__init__, sapcli.machine.files._PendingFile.discard

    def begin(self: sapcli.machine.files._PendingFile, path: Path) -> None:
        settle(self, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def end(self: sapcli.machine.files._PendingFile) -> None:
        discard(self)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    sapcli.machine.files._PendingFile.__init__ = begin  # type: ignore[method-assign]
    sapcli.machine.files._PendingFile.discard = end  # type: ignore[method-assign]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only the superuser can mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, free: int) -> None:
    (disk / "filling").write_bytes(bytes(64 * 1024 - free))


@pytest.mark.parametrize("free", [0, 4096, 8192])
def test_a_full_disk(project: Project, small_disk: Path, free: int) -> None:
    fill(small_disk, free)
    run = start(project.folder, project_arguments(str(small_disk / "out.safetensors"), "--quiet"))
    check_error(run, "No space left on device")
    assert left(small_disk) == ["filling"]


def test_a_full_disk_for_the_cache(project: Project, small_disk: Path, expected: bytes) -> None:
    fill(small_disk, 4096)
    run = start(project.folder, project_arguments("out.safetensors", "--cache-dir", str(small_disk)))
    assert run.wait() == 0, run.said()
    assert run.said().count("warning: the cache cannot be used") == 1
    assert (project.folder / "out.safetensors").read_bytes() == expected
    assert not list(small_disk.glob(".sap-*.tmp"))


def keep_temporary_files_on(disk: str) -> None:
    tempfile.tempdir = disk


def test_a_full_disk_for_temporary_files(project: Project, small_disk: Path) -> None:
    fill(small_disk, 4096)
    prepare = functools.partial(keep_temporary_files_on, str(small_disk))
    arguments = ["eval", "-", "data", *OPTIONS[:2], "--quiet"]
    run = start(project.folder, arguments, prepare, stdin=project.checkpoint.read_bytes())
    check_error(run, "temporary file")


_kept: list[AbstractContextManager[None]] = []


def give_up_privileges() -> None:
    _kept.append(without_privileges())
    _kept[-1].__enter__()


def test_a_folder_that_is_only_readable(project: Project) -> None:
    before = left(project.folder)
    project.folder.chmod(0o500)
    arguments = project_arguments("out.safetensors", "--cache-dir", "../cache", "--quiet")
    check_error(start(project.folder, arguments, give_up_privileges), "Permission denied")
    project.folder.chmod(0o700)
    assert left(project.folder) == before


def before_the_first_batch(action: Callable[[], object]) -> None:
    """Have something happen right before the first batch of images is run."""
    import sapcli.activations.scoring

    launch = sapcli.activations.scoring._launch

    def act_once(*arguments: object) -> object:
        if sapcli.activations.scoring._launch is act_once:
            sapcli.activations.scoring._launch = launch
            action()
        return launch(*arguments)  # type: ignore[arg-type]

    sapcli.activations.scoring._launch = act_once  # type: ignore[assignment]


def start_losing(project: Project, action: Callable[[], object], *more: str) -> Run:
    """Repair the project while something happens to its files."""
    arguments = project_arguments("out.safetensors", "--quiet", *more)
    prepare = functools.partial(before_the_first_batch, action)
    return start(project.folder, arguments, prepare, inputs_stay=False)


def test_a_vanishing_checkpoint_is_read_to_its_end(project: Project, expected: bytes) -> None:
    run = start_losing(project, project.checkpoint.unlink)
    assert run.wait() == 0, run.said()
    assert (project.folder / "out.safetensors").read_bytes() == expected


def test_a_checkpoint_that_is_changed(project: Project) -> None:
    run = start_losing(project, functools.partial(os.truncate, project.checkpoint, 8000))
    check_error(run, "was changed while it was being read")
    assert not (project.folder / "out.safetensors").exists()


def test_vanishing_validation_images(project: Project) -> None:
    check_error(start_losing(project, functools.partial(shutil.rmtree, project.data / "val")), "data")
    assert not (project.folder / "out.safetensors").exists()


def test_a_vanishing_output_folder(project: Project) -> None:
    folder = project.folder / "results"
    folder.mkdir()
    run = start_losing(project, folder.rmdir, "-o", "results/out.safetensors")
    check_error(run, "Cannot write results/out.safetensors")


def test_a_vanishing_cache(project: Project, expected: bytes) -> None:
    (project.folder / "cache").mkdir()
    run = start_losing(project, functools.partial(shutil.rmtree, project.folder / "cache"))
    assert run.wait() == 0, run.said()
    assert (project.folder / "out.safetensors").read_bytes() == expected


def have_workers_die() -> None:
    import sapcli.datasets.images
    from sapcli.datasets.decoding import Decoder

    sapcli.datasets.images._WORTH_WORKERS = -1.0  # they start at once
    main_process, decode = os.getpid(), Decoder.__call__

    def die(self: Decoder, paths: Sequence[str]) -> object:
        if os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, paths)

    Decoder.__call__ = die  # type: ignore[assignment,method-assign]


def test_a_dying_worker(project: Project) -> None:
    run = start(project.folder, project_arguments("out.safetensors", "--quiet", "--workers", "2"), have_workers_die)
    check_error(run, "a process that decodes images died")
    assert not (project.folder / "out.safetensors").exists()


COMMANDS = {
    "select": ("select", "model.safetensors", "data", *OPTIONS),
    "project": project_arguments("-"),
    "activations": ("activations", "model.safetensors", "data", *OPTIONS, "-o", "-"),
    "eval": ("eval", "model.safetensors", "data", *OPTIONS[:2]),
    "verify": ("verify", "out.safetensors"),
    "help": ("project", "--help"),
}


def close_pipe_of(number: int) -> None:
    """Have stdout (1) or stderr (2) lead into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.dup2(writing, number)
    os.close(reading)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout_ends_quietly(project: Project, expected: bytes, command: str) -> None:
    (project.folder / "out.safetensors").write_bytes(expected)
    run = start(project.folder, COMMANDS[command], functools.partial(close_pipe_of, 1))
    assert run.wait() == 0, run.said()
    assert "error" not in run.said()
    assert "Traceback" not in run.said()


def test_a_closed_stderr_does_not_end_the_work(project: Project, expected: bytes) -> None:
    assert start(project.folder, project_arguments(), functools.partial(close_pipe_of, 2)).wait() == 0
    assert (project.folder / "out.safetensors").read_bytes() == expected


def fill_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.parametrize("command", ["select", "project", "activations", "eval"])
def test_a_full_stdout_is_an_error(project: Project, command: str) -> None:
    check_error(start(project.folder, [*COMMANDS[command], "--quiet"], fill_stdout), "No space left on device")


def test_a_process_of_its_own(project: Project) -> None:
    """What the other tests start by forking is the same as what a shell starts."""
    command = [sys.executable, "-m", "sapcli", *project_arguments("out.safetensors", "--quiet")]
    process = run_process(
        command,
        cwd=project.folder,
        capture_output=True,
        preexec_fn=functools.partial(limit_files, 100),
    )
    assert process.returncode == 1
    assert [line.partition(b":")[0] for line in process.stderr.splitlines()] == [b"error", b"hint"], process.stderr
    assert not (project.folder / "out.safetensors").exists()

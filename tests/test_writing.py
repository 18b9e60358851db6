"""Results are written to their destination, whatever it is; what cannot be written is reported, and nothing else is lost."""

import errno
import os
import pty
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dropjax.core.errors import InputError, NotWritten
from dropjax.io.converted import write_tensors
from dropjax.runtime.writing import Results, atomic_write, ensure_writable, is_standard_output, write_all

TEXT = "the answer: ü\n"


def everything(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def reading(read: Callable[[], str]) -> Callable[[], str]:
    """Begins to read in a thread; what was read."""
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(read()), daemon=True)
    thread.start()

    def result() -> str:
        thread.join(10)
        return got[0]

    return result


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_written_to_its_reader(tmp_path: Path, link: bool):
    pipe = path = tmp_path / "pipe"
    os.mkfifo(pipe)
    if link:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    ensure_writable(path)
    got = reading(lambda: pipe.read_text(encoding="utf-8"))
    atomic_write(path, TEXT)
    assert got() == TEXT
    assert pipe.is_fifo()


def test_a_device_stays_a_device():
    ours, theirs = pty.openpty()
    path = Path(os.ttyname(theirs))
    try:
        ensure_writable(path)
        atomic_write(path, "told\n")
        assert os.read(ours, 100) == b"told\r\n"
        assert path.is_char_device()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_reader_that_left_is_said(tmp_path: Path):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        with pytest.raises(NotWritten, match=f"/dev/fd/{theirs}: expected a place that can be written, got Broken pipe"):
            atomic_write(f"/dev/fd/{theirs}", TEXT)
    finally:
        os.close(theirs)


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path: Path, there: bool):
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / "target", tmp_path / "link", tmp_path / "second"
    link.symlink_to(Path("elsewhere") / "target")
    second.symlink_to("link")
    if there:
        target.write_text("old")
    ensure_writable(second)
    atomic_write(second, TEXT)
    assert second.is_symlink() and link.is_symlink() and not target.is_symlink()
    assert target.read_text(encoding="utf-8") == TEXT
    assert everything(tmp_path) == {"elsewhere", "target", "link", "second"}


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path):
    (tmp_path / "link").symlink_to("away")
    atomic_write(tmp_path / "link" / "it", TEXT)
    assert (tmp_path / "away" / "it").read_text(encoding="utf-8") == TEXT


def test_links_that_lead_nowhere_are_said(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NotWritten, match="symbolic links"):
        atomic_write(tmp_path / "a", TEXT)
    with pytest.raises(InputError, match="symbolic links"):
        ensure_writable(tmp_path / "a")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_has_many_names(path: str, capsys: pytest.CaptureFixture, tmp_path: Path):
    print("before", end=" ")
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link") if path != "-" else (path,):
        assert is_standard_output(name)
        ensure_writable(name)
        atomic_write(name, TEXT)
    print("after", end="")
    assert capsys.readouterr().out == "before " + (TEXT * (1 if path == "-" else 2)) + "after"
    assert not Path("-").exists()
    assert not is_standard_output("/dev/stderr") and not is_standard_output(tmp_path / "-") and not is_standard_output(None)


def test_what_was_printed_into_the_same_file_stays(tmp_path: Path):
    writing = "from dropjax.runtime.writing import atomic_write; atomic_write('/dev/stdout', 'it\\n')"
    code = f"print('before'); {writing}; print('after')"
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nit\nafter\n"


def test_standard_output_is_no_folder():
    with pytest.raises(InputError, match="-: expected a folder"):
        ensure_writable("-", folder=True)


def test_tensors_reach_a_pipe_as_they_would_a_file(tmp_path: Path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()), daemon=True)
    thread.start()
    atomic_write(tmp_path / "pipe", lambda path: write_tensors(path, arrays))
    thread.join(10)
    (tmp_path / "copy").write_bytes(got[0])
    np.testing.assert_array_equal(load_file(tmp_path / "copy")["a"], arrays["a"])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "kept").write_text("as it was")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(NotWritten, match="large: expected a place that can be written, got File too large"):
            write_all({tmp_path / "kept": "new", tmp_path / "new" / "large": b"0" * 2000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert everything(tmp_path) == {"kept"}
    assert (tmp_path / "kept").read_text() == "as it was"


def test_a_file_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mounted").write_text("old")
    before = (tmp_path / "mounted").stat().st_ino

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    atomic_write(tmp_path / "mounted", TEXT)
    assert (tmp_path / "mounted").read_text(encoding="utf-8") == TEXT
    assert (tmp_path / "mounted").stat().st_ino == before
    assert everything(tmp_path) == {"mounted"}


def test_a_file_in_somebody_elses_folder_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ours").write_text("old")
    before, access = (tmp_path / "ours").stat().st_ino, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    ensure_writable(tmp_path / "ours")
    atomic_write(tmp_path / "ours", TEXT)
    assert (tmp_path / "ours").read_text(encoding="utf-8") == TEXT
    assert (tmp_path / "ours").stat().st_ino == before


def test_what_is_lost_is_kept_in_mind_and_the_next_is_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    results = Results()
    results.write(tmp_path / "file" / "inside", TEXT)
    results.write(tmp_path / "good", TEXT)
    assert list(results.lost) == [tmp_path / "file" / "inside"]
    assert "inside: expected a place that can be written, got Not a directory" in str(*results.lost.values())
    assert (tmp_path / "good").exists()
    (tmp_path / "file").unlink()
    results.write(tmp_path / "file" / "inside", TEXT)
    assert not results.lost

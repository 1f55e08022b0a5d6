"""Records and logs of local revisions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry_hooks.model_version import ModelVersion
from serving import local_state
from serving.local_state import Folder, Record, put_away, tail, trim
from serving.revision import Revision, RevisionSettings


def test_a_record_comes_back_as_the_same_revision(tmp_path: Path) -> None:
    settings = RevisionSettings(2, 512, 1.5, 20.0, (("A", "1"), ("B", "2")))
    record = Record(Revision(ModelVersion("churn", 7), "abc", settings), 1234, 5.5, 2, 9.5)
    folder = Folder(tmp_path / "new")
    folder.save(record)
    assert folder.load() == record
    loaded = folder.load()
    assert loaded is not None
    assert loaded.revision.id == record.revision.id


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    assert Folder(tmp_path).load() is None


@pytest.mark.parametrize(("lines", "expected"), [(1, ("3",)), (2, ("2", "3")), (100, ("1", "2", "3"))])
def test_the_last_lines_of_a_log(tmp_path: Path, lines: int, expected: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    log.write_text("1\n2\n3\n")
    assert tail(log, lines) == expected


def test_a_missing_log_has_no_lines_and_a_huge_one_is_not_read_whole(tmp_path: Path) -> None:
    assert tail(tmp_path / "log", 5) == ()
    (tmp_path / "log").write_text("x" * 100_000 + "\nlast\n")
    assert tail(tmp_path / "log", 1) == ("last",)


def test_a_log_keeps_its_newer_half_while_its_writer_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_state, "LOG_BYTES", 100)
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 60 + b"b" * 60)
        trim(log)
        writer.write(b"c")
    assert log.read_bytes() == b"b" * 50 + b"c"
    trim(log)
    assert log.stat().st_size == 51


def test_only_so_many_old_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_state, "KEPT_LOGS", 2)
    for number in range(3):
        log = tmp_path / f"r{number}" / "server.log"
        log.parent.mkdir()
        log.write_text(str(number))
        os.utime(log, (number, number))
        put_away(log, tmp_path / "logs")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["r1.log", "r2.log"]

"""Files that appear whole or not at all, and result folders that one run has at a time."""

import argparse
import logging
import os
import sys

import pytest

from bio_diffusion.command import Parser, Progress, choose_device, exit_status
from bio_diffusion.files import (
    InputError,
    rounded,
    unfinished,
    write_atomic,
    write_bytes,
    write_json,
)
from bio_diffusion.folders import append, check_folder, open_journal


def test_a_fault_amid_a_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "table.csv"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), write_atomic(path) as stream:
        stream.write("half of the ne")
        assert [p.read_bytes() for p in (path, *unfinished(tmp_path, "table.csv"))][0] == b"old"
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["table.csv"]
    write_json(path, {"ä": 1.5})
    assert path.read_text(encoding="utf-8") == '{\n  "ä": 1.5\n}\n'


def test_numbers_of_results():
    assert rounded(1.23456789) == 1.23457 and rounded(float("nan")) is None
    assert rounded(float("-inf")) is None and rounded(3) == 3.0


@pytest.mark.parametrize(
    ("resume", "overwrite", "code"),
    [(False, False, "out_exists"), (True, False, "out_exists"), (False, True, "")],
)
def test_a_folder_with_other_files_is_used_only_when_told(tmp_path, resume, overwrite, code):
    (tmp_path / "notes.txt").write_text("mine")
    if not code:
        return check_folder(tmp_path, ".journal", resume, overwrite)
    with pytest.raises(InputError) as refused:
        check_folder(tmp_path, ".journal", resume, overwrite)
    assert refused.value.code == code and "--overwrite" in str(refused.value)


def test_a_folder_that_cannot_be_is_refused_before_it_is_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "in" / "it"):
        with pytest.raises(InputError, match="is a file") as refused:
            check_folder(path, ".journal", resume=False, overwrite=True)
        assert refused.value.code == "out_file" and "--out" in str(refused.value)
    check_folder(tmp_path / "new" / "deep", ".journal", resume=True, overwrite=False)
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time_and_what_is_left_of_a_killed_one(tmp_path):
    out = tmp_path / "deep" / "out"
    first = open_journal(out, ".journal", ["a.csv"], overwrite=False)
    with pytest.raises(InputError, match="another run"):
        open_journal(out, ".journal", ["a.csv"], overwrite=True)
    append(first, b"one\n")
    first.close()
    (out / ".a.csv.99.part").write_text("half")
    (out / "a.csv").write_text("whole")
    (out / "b.csv").write_text("of someone else")
    with open_journal(out, ".journal", ["a.csv"], overwrite=False) as again:
        again.seek(0)
        assert again.read() == b"one\n"
    assert sorted(p.name for p in out.iterdir()) == [".journal", "a.csv", "b.csv"]
    with open_journal(out, ".journal", ["a.csv"], overwrite=True) as anew:
        assert anew.read() == b""
    assert sorted(p.name for p in out.iterdir()) == [".journal", "b.csv"]


def test_a_full_disk_takes_back_what_was_half_added(tmp_path, monkeypatch):
    journal = open_journal(tmp_path, ".journal", (), overwrite=False)
    append(journal, b"one\n")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bio_diffusion.folders.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        append(journal, b"two\n")
    monkeypatch.undo()
    append(journal, b"three\n")
    journal.close()
    assert (tmp_path / ".journal").read_bytes() == b"one\nthree\n"


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    for name in ("cuda", "gpu"):
        with pytest.raises(InputError, match="cpu"):
            choose_device(name)


def test_a_wrong_flag_is_one_line_that_names_the_right_one(capsys):
    parser = Parser(prog="x", allow_abbrev=False)
    parser.add_argument("--num-poses")
    commands = parser.add_subparsers()
    commands.add_parser("fit", allow_abbrev=False).add_argument("--intervals")
    for words, said in (
        (["--numposes=3"], "did you mean --num-poses?"),
        (["fit", "--interval=3"], "did you mean --intervals?"),
        (["--zzz"], "unrecognized arguments: --zzz; --help shows the usage"),
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and said in error and error.count("\n") == 1


class Gone:
    """A stream whose reader has gone, as after `| head`."""

    def write(self, text):
        raise BrokenPipeError

    flush = isatty = lambda self: False


def test_work_goes_on_when_nobody_reads_what_is_said(monkeypatch, capsys, tmp_path):
    log = logging.getLogger("bio_diffusion.test")

    class Said:
        place = tmp_path

        def execute(self):
            with Progress(log, False, "things") as progress:
                progress.step("one")
            return 3

    monkeypatch.setattr(sys, "stdout", Gone())
    options = argparse.Namespace(quiet=False, log_file=None)
    assert exit_status(options, log, lambda _: Said(), ()) == 3
    monkeypatch.undo()
    assert capsys.readouterr().err == ""

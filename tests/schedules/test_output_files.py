"""Files that commands write: all or none, and nothing but plain files is replaced."""

import os
import stat

import pytest

from schedules import output_files


def test_a_pipe_and_a_link_are_written_to_and_stay(tmp_path):
    """As /dev/null and /dev/stdout, which a file in their place would break for the whole machine."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        output_files.write([(pipe, "a"), (link, "b")])
        assert os.read(reader, 10) == b"a"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink() and file.read_text() == "b"


@pytest.mark.parametrize("wrong", ["", ".", "/", "x" * 300, "old/x", "nowhere/x", "new"])
def test_what_cannot_be_written_leaves_everything_as_it_was(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("as it was")
    target = new if wrong == "new" else type(new)(wrong)
    with pytest.raises(ValueError, match=r"is a directory|no directory|cannot be written|more than one"):
        output_files.write([(old, "changed"), (new, "new"), (target, "text")])
    assert old.read_text() == "as it was" and list(tmp_path.iterdir()) == [old]

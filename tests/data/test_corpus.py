"""Which files are read and held out, and what a corpus that cannot be used is told."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.schema import Data
from hcmegatron.data.corpus import find_corpus


@pytest.fixture
def corpus(tmp_path):
    """Forty files of 300 bytes, two of them in a subdirectory."""
    for index in range(40):
        path = tmp_path / ("sub" if index < 2 else ".") / f"{index:02}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{index:03}" * 100)
    return tmp_path


def data(*paths, **others):
    return Data(
        paths=[str(path) for path in paths], sequence_length=64, holdout=others.pop("holdout", 0.2), **others
    )


def names(documents):
    return [document.path.name for document in documents]


def test_the_standard_library_without_packages():
    found = find_corpus(Data())
    root = Path(sysconfig.get_path("stdlib")).resolve()
    relative = [d.path.resolve().relative_to(root) for d in (*found.train, *found.heldout)]
    assert Path("abc.py") in relative and Path("json/decoder.py") in relative
    assert not {part for path in relative for part in path.parts} & {
        "site-packages",
        "dist-packages",
        "idlelib",
    }
    assert all(path.suffix == ".py" for path in relative)
    share = sum(d.tokens for d in found.heldout) / sum(d.tokens for d in (*found.train, *found.heldout))
    assert 0.005 < share < 0.05 and not set(found.train) & set(found.heldout)


def test_without_sources_the_standard_library_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.paths is empty.*no standard library"):
        find_corpus(Data())


def test_order_and_split_depend_on_relative_paths_alone(corpus, tmp_path_factory):
    found = find_corpus(data(corpus))
    everything = names(found.train) + names(found.heldout)
    assert (
        len(everything) == 40
        and names(found.train) == sorted(names(found.train)[:-2]) + names(found.train)[-2:]
    )
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    corpus.rename(elsewhere)
    moved = find_corpus(data(elsewhere))
    assert names(moved.train) == names(found.train) and names(moved.heldout) == names(found.heldout)
    assert moved.fingerprint == found.fingerprint
    (elsewhere / "more.txt").write_text("more " * 100)  # a new file moves no other across the split
    more = find_corpus(data(elsewhere))
    assert set(names(found.heldout)) <= set(names(more.heldout)) and more.fingerprint != found.fingerprint


def test_holdout_grows_by_whole_files(corpus):
    shares = [set(names(find_corpus(data(corpus, holdout=share)).heldout)) for share in (0.1, 0.3, 0.6)]
    assert shares[0] < shares[1] < shares[2]
    assert find_corpus(data(corpus, holdout=0)).heldout == ()


def test_one_file_keeps_its_end_for_validation(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(1, 251)) * 4)
    found = find_corpus(data(path, holdout=0.1))
    assert found.read(found.train) + found.read(found.heldout) == [
        path.read_bytes()[:900],
        path.read_bytes()[900:],
    ]


def test_a_file_named_twice_is_read_once(corpus):
    assert len(find_corpus(data(corpus, corpus / "sub", corpus / "39.txt")).train) == len(
        find_corpus(data(corpus)).train
    )
    (corpus / "link.txt").symlink_to(corpus / "39.txt")
    assert len(find_corpus(data(corpus, holdout=0)).train) == 40


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "nowhere", ["nowhere", "does not exist"]),
        (lambda d: _file(d / "empty.txt", b""), ["empty.txt", "is empty"]),
        (lambda d: _file(d / "b.txt", b"text" * 99 + b"\0"), ["b.txt", "binary", "byte 396"]),
        (lambda d: _file(d / "u.txt", ("text" * 99).encode("utf-16")), ["u.txt", "UTF-16"]),
        (lambda d: _file(d / "in" / "c.txt", b"\0" * 400).parent, ["c.txt", "binary"]),
        (lambda d: _file(d / "in" / "c.dat", b"x").parent, ["in", "no file ending in .py, .txt"]),
        (lambda d: _file(d / "in" / "c.txt", b"").parent, ["every file is empty"]),
        (lambda d: _file(d / "s.txt", b"short"), ["s.txt", "training text has", "sequence_length + 1 = 65"]),
        (lambda d: _file(d / "s.txt", b"short" * 40), ["s.txt", "held-out text has 41 tokens"]),
        (lambda d: Path("/dev/null"), ["/dev/null", "not a regular file"]),
        *(
            (
                lambda d, name=name: _file(d / name, b"{}" * 200),
                [name, "hcmegatron data prepare", words],
            )
            for name, words in (
                ("x.jsonl", "JSON (.jsonl)"),
                ("x.JSON", "JSON (.JSON)"),
                ("x.csv", "tables"),
                ("x.parquet", "tables"),
                ("x.txt.gz", "compressed files (.gz)"),
                ("x.zst", "compressed files"),
            )
        ),
        (
            lambda d: _file(d / "j.txt", b'{"text": "a"}\n' * 50),
            ["j.txt holds JSON Lines", "hcmegatron data prepare"],
        ),
        (lambda d: d / "*.none", ["*.none", "nothing there has such a name"]),
        (lambda d: d / ("x" * 300), ["File name too long"]),
        (lambda d: _link(d / "in" / "gone.txt", d / "nowhere").parent, ["gone.txt is a link to nothing"]),
        (lambda d: _fifo(d / "in" / "pipe.txt").parent, ["pipe.txt is not a regular file"]),
    ],
)
def test_unusable_corpora_are_named(tmp_path, make, words):
    with pytest.raises(ConfigError) as caught:
        find_corpus(data(make(tmp_path)))
    message = str(caught.value)
    assert "data.paths" in message and message.isprintable()
    for word in words:
        assert word in message


def _link(path, target):
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    return path


def _fifo(path):
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    return path


def _file(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_suffixes_of_other_formats_are_refused(corpus):
    with pytest.raises(
        ConfigError, match=r"data\.suffixes = \.jsonl: JSON .* would be trained on as it is written"
    ):
        find_corpus(data(corpus, suffixes=[".txt", ".jsonl"]))


def test_patterns_stand_for_what_they_match_in_order(corpus):
    (corpus / "[1].txt").write_text("a name like a pattern " * 20)
    found = find_corpus(data(corpus / "3*.txt", corpus / "**" / "0*.txt", corpus / "[1].txt", holdout=0))
    numbers = [*range(30, 40), *range(2, 10), 0, 1]  # the two of sub/ come behind
    assert names(found.train) == [*(f"{n:02}.txt" for n in numbers), "[1].txt"]


def test_linked_directories_are_read_once_each(corpus, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    _file(elsewhere / "deep" / "there.txt", b"text that is only linked " * 20)
    (elsewhere / "deep" / "up").symlink_to(elsewhere)  # a circle
    (corpus / "a link").symlink_to(elsewhere)
    (corpus / "another").symlink_to(elsewhere / "deep")
    (corpus / "itself").symlink_to(corpus)
    (corpus / "old").symlink_to(corpus / "sub")  # read as sub/, which is not moved across the split by a link
    before = find_corpus(data(corpus / "sub", corpus / "10.txt", holdout=0))
    found = find_corpus(data(corpus, holdout=0))
    assert names(found.train).count("there.txt") == 1 and len(found.train) == 41
    assert str(found.train[-1].path) == f"{corpus}/sub/01.txt"
    assert [d.path for d in found.train if d.path.name == "there.txt"] == [corpus / "a link/deep/there.txt"]
    assert {str(d.path) for d in before.train} <= {str(d.path) for d in found.train}


def test_names_need_not_be_text(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xff")
    for index in range(3):
        _file(Path(folder) / os.fsdecode(b"\xe9%d.txt" % index), b"text " * 100)
    found = find_corpus(data(folder))
    assert len(found.train) == 3 and found.name.isprintable() and "\\udcff" in found.name
    assert found.fingerprint == find_corpus(data(folder)).fingerprint
    _file(Path(folder) / os.fsdecode(b"\xe9.txt"), b"\0")
    with pytest.raises(ConfigError, match=r"\\udcff/\\udce9\.txt is binary"):
        find_corpus(data(folder))


def test_what_is_held_out_is_said_in_files_and_bytes(corpus):
    found = find_corpus(data(corpus))
    assert names(found.heldout).count("39.txt") == 1
    assert found.split() == "held out: 9 of 40 files, 2,700 bytes, 0.225 of the text"
    assert found.warnings() == [] and found.held_share == 0.225
    assert find_corpus(data(corpus, holdout=0)).split() == "held out: 0 of 40 files, 0 bytes, 0 of the text"
    (corpus / "39.txt").write_bytes(b"y" * 6_000)  # one of the nine
    (warning,) = (uneven := find_corpus(data(corpus))).warnings()
    assert uneven.split() == "held out: 9 of 40 files, 8,400 bytes, 0.475 of the text" in warning


def test_one_large_file_does_not_take_the_text_away(corpus, tmp_path):
    for share, size in ((0.02, 100_000), (0.2, 20_000)):
        for name in names(find_corpus(data(corpus, holdout=share)).heldout):
            (corpus / name).write_bytes(b"z" * size)
        found = find_corpus(data(corpus, holdout=share))
        assert found.held_share == pytest.approx(share, abs=1e-4) and found.warnings() == []
        assert found.split().startswith("held out: the end of the largest file, ")


def test_unreadable_files_are_named(corpus, monkeypatch):
    read = Path.read_bytes

    def refuse(path):  # as root, a file's mode would not keep it from being read
        if path.name == "05.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"05\.txt cannot be read"):
        find_corpus(data(corpus))


def test_a_file_cut_while_training_starts_is_named(corpus):
    found = find_corpus(data(corpus, holdout=0))
    (corpus / "05.txt").write_text("cut")
    with pytest.raises(ConfigError, match=r"05\.txt became shorter"):
        found.read(found.train)


def test_finding_needs_no_torch():
    code = (
        "import sys; from hcmegatron.config.schema import Data; from hcmegatron.data.corpus import find_corpus; "
        "find_corpus(Data()); print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

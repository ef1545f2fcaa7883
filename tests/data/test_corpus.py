"""Which files are read and held out, and what a corpus that cannot be used is told."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.config.schema import Data
from hcmegatron.data.corpus import find


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
    found = find(Data())
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
        find(Data())


def test_order_and_split_depend_on_relative_paths_alone(corpus, tmp_path_factory):
    found = find(data(corpus))
    everything = names(found.train) + names(found.heldout)
    assert (
        len(everything) == 40
        and names(found.train) == sorted(names(found.train)[:-2]) + names(found.train)[-2:]
    )
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    corpus.rename(elsewhere)
    moved = find(data(elsewhere))
    assert names(moved.train) == names(found.train) and names(moved.heldout) == names(found.heldout)
    assert moved.fingerprint == found.fingerprint
    (elsewhere / "more.txt").write_text("more " * 100)  # a new file moves no other across the split
    more = find(data(elsewhere))
    assert set(names(found.heldout)) <= set(names(more.heldout)) and more.fingerprint != found.fingerprint


def test_holdout_grows_by_whole_files(corpus):
    shares = [set(names(find(data(corpus, holdout=share)).heldout)) for share in (0.1, 0.3, 0.6)]
    assert shares[0] < shares[1] < shares[2]
    assert find(data(corpus, holdout=0)).heldout == ()


def test_one_file_keeps_its_end_for_validation(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(bytes(range(1, 251)) * 4)
    found = find(data(path, holdout=0.1))
    assert found.read(found.train) + found.read(found.heldout) == [
        path.read_bytes()[:900],
        path.read_bytes()[900:],
    ]


def test_a_file_named_twice_is_read_once(corpus):
    assert len(find(data(corpus, corpus / "sub", corpus / "39.txt")).train) == len(find(data(corpus)).train)
    (corpus / "link.txt").symlink_to(corpus / "39.txt")
    assert len(find(data(corpus, holdout=0)).train) == 40


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
    ],
)
def test_unusable_corpora_are_named(tmp_path, make, words):
    with pytest.raises(ConfigError) as caught:
        find(data(make(tmp_path)))
    message = str(caught.value)
    assert "data.paths" in message and message.isprintable()
    for word in words:
        assert word in message


def _file(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_unreadable_files_are_named(corpus, monkeypatch):
    read = Path.read_bytes

    def refuse(path):  # as root, a file's mode would not keep it from being read
        if path.name == "05.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"05\.txt cannot be read"):
        find(data(corpus))


def test_a_file_cut_while_training_starts_is_named(corpus):
    found = find(data(corpus, holdout=0))
    (corpus / "05.txt").write_text("cut")
    with pytest.raises(ConfigError, match=r"05\.txt became shorter"):
        found.read(found.train)


def test_finding_needs_no_torch():
    code = (
        "import sys; from hcmegatron.config.schema import Data; from hcmegatron.data.corpus import find; "
        "find(Data()); print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Loading: defaults <- YAML with extends <- overrides, strictly, with one clear line for every mistake."""

import dataclasses
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmegatron.config import Config, ConfigError, dump_config, load_config, read_config
from hcmegatron.config.load import _read_file, scalar
from hcmegatron.config.types import convert_value, leaves


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="c.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def refused(path, *overrides):
    """The error's text: one line, not empty."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    text = str(caught.value)
    assert text and text.isprintable()
    return text


def test_defaults_then_file_then_overrides(write):
    path = write("training:\n  steps: 7\n  micro_batch: 2\noptimizer:\n  lr: 1e-3\nkernels: torch\n")
    config = load_config(
        path, ["--training.steps=9", "--kernels=auto", "--data.paths=[a b, c]", "--run.dir=x: y"]
    )
    assert (config.training.steps, config.training.micro_batch, config.optimizer.lr) == (9, 2, 1e-3)
    assert config.kernels == "auto" and config.data.paths == ["a b", "c"] and config.run.dir == "x: y"
    assert config.model == Config().model


def test_extends_is_relative_and_overridden_key_by_key(write, tmp_path):
    (tmp_path / "base").mkdir()
    write("extends: deep.yaml\nmodel:\n  layers: 6\n", "base/mid.yaml")
    write("model:\n  layers: 2\n  heads: 8\n", "base/deep.yaml")
    path = write("extends: base/mid.yaml\nmodel:\n  hidden_size: 64\n")
    config, sources = read_config(path, [])
    assert (config.model.layers, config.model.heads, config.model.hidden_size) == (6, 8, 64)
    assert sources["model.layers"].endswith("mid.yaml:3") and sources["model.heads"].endswith("deep.yaml:3")


def test_a_circle_of_files_is_told_whole(write, tmp_path):
    write("extends: sub/b.yaml\n", "a.yaml")
    (tmp_path / "sub").mkdir()
    write("extends: ../a.yaml\n", "sub/b.yaml")
    assert refused(tmp_path / "a.yaml") == (
        f"{tmp_path}/sub/../a.yaml: extends itself ({tmp_path}/a.yaml -> {tmp_path}/sub/b.yaml -> {tmp_path}/a.yaml); "
        "break the circle"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"run:\xff\xfe\x00bad", ": is not UTF-8 text (byte 4); save it as UTF-8"),
        (
            "model:\n\tlayers: 4\n",
            ":2: is not YAML: found character '\\t' that cannot start any token; indent with "
            "spaces, not tabs",
        ),
        (
            "model:\n  layers: \x07\n",
            ": is not YAML: unacceptable character #x0007: special characters are not "
            'allowed in "<unicode string>", position 17',
        ),
        ("[" * 5000, ": is nested too deeply; settings are section.key"),
        (
            "model:\n  layers: 4\n\theads: 4\n",
            ":3: is not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
        ),
        (
            "run:\n  dir: 'a\tb\n",
            ":3: is not YAML: found unexpected end of stream; check indentation, colons and quotes",
        ),
    ],
)
def test_text_that_is_no_configuration(write, text, said):
    path = write(text)
    assert refused(path) == f"{path}{said}"


def test_a_path_that_cannot_be_read(tmp_path):
    assert refused(tmp_path / "c") == f"{tmp_path}/c: there is no such file; give the path of a YAML file"
    assert refused(tmp_path) == f"{tmp_path}: is a directory; give the path of a YAML file"
    long = "x" * 300
    assert refused(tmp_path / long) == f"{tmp_path}/{long}: cannot be read: File name too long"


def test_a_line_break_on_the_command_line_is_written_out():
    assert refused(None, "--training.steps=a\nb") == (
        "--training.steps=a\\nb: training.steps = a b is not a whole number"
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("--run.dir=a #b", "a #b"),
        ("--run.dir=#b", "#b"),
        ("--run.dir=a: b", "a: b"),
        ("--run.dir=[x]", "[x]"),
        ("--run.dir=*x", "*x"),
        ("--run.dir=1e-3", "1e-3"),
        ("--run.dir='a #b'", "a #b"),
        ("--run.dir=null", None),
        ("--checkpoint.load=a #b", "a #b"),
        ("--data.paths=[*.txt]", ["*.txt"]),
        ("--data.paths=[a #b, c: d, &e]", ["a #b", "c: d", "&e"]),
        ('--data.paths=["a, b", c]', ["a, b", "c"]),
        ("--data.paths=[]", []),
        ("--parallel.schedule=zb-h1", "zb_h1"),
        ("--training.steps=3 # three", 3),
    ],
)
def test_text_on_the_command_line_stands_as_it_was_typed(write, override, value):
    key = override.removeprefix("--").partition("=")[0]
    config = load_config(write("{}"), [override])
    section, _, leaf = key.partition(".")
    assert getattr(getattr(config, section), leaf) == value


def test_home_is_where_paths_begin_with_a_tilde(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("training:\n  steps: 3\n", "base.yaml")
    path = write("extends: ~/base.yaml\nrun:\n  dir: ~/x\ndata:\n  paths: [~/a, b~, ./~c]\n")
    config = load_config(path, ["--checkpoint.load=~/y"])
    assert (config.training.steps, config.run.dir, config.checkpoint.load) == (
        3,
        f"{tmp_path}/x",
        f"{tmp_path}/y",
    )
    assert config.data.paths == [f"{tmp_path}/a", "b~", "./~c"]
    for text in (
        "run:\n  dir: ~nobody-here/x\n",
        "extends: ~nobody-here/x\n",
        "data: {paths: [~nobody-here/x]}",
    ):
        assert "~nobody-here, which is nobody's home; write ./~nobody-here/x" in refused(write(text))


def test_byte_order_mark_crlf_and_flow_style(write):
    assert load_config(write(b"\xef\xbb\xbftraining:\r\n  steps: 3\r\n")).training.steps == 3
    assert load_config(write("{training: {steps: 3}}")).training.steps == 3
    assert load_config(write("{}")) == Config()


def test_numbers_are_numbers_and_words_are_words(write):
    config = load_config(
        write("optimizer:\n  lr: 1e-3\n  eps: 1E-20\n  clip: 1\nrun:\n  dir: 2024\nmla:\n  q_rank: null\n")
    )
    assert (config.optimizer.lr, config.optimizer.eps, config.run.dir) == (1e-3, 1e-20, "2024")
    assert type(config.optimizer.clip) is float and config.mla.q_rank is None
    assert load_config(write("run:\n  dir: 1e-3\n")).run.dir == "1e-3"


def _strategy(hint):
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.lists(_strategy(get_args(hint)[0]), max_size=3)
    if get_args(hint):
        return st.none() | _strategy(get_args(hint)[0])
    text = st.text(
        st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8
    ).filter(str.strip)
    return {
        bool: st.booleans(),
        int: st.integers(0, 2**31 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: text | st.sampled_from(["yes", "1e-3", "null", "~", "010", "a: b", "# c", "- d", "true", "[e]"]),
    }[hint]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_dump_loads_as_the_same_config(tmp_path_factory, data):
    config = Config()
    for key in data.draw(st.lists(st.sampled_from(sorted(leaves())), max_size=12, unique=True)):
        section, _, leaf = key.rpartition(".")
        setattr(getattr(config, section) if section else config, leaf, data.draw(_strategy(leaves()[key])))
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = Config()
    for key, setting in _read_file(path, ()).items():  # ranges aside: any value must survive
        section, _, leaf = key.rpartition(".")
        setattr(
            getattr(again, section) if section else again, leaf, convert_value(setting.node, leaves()[key])
        )
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


def test_a_dump_line_by_line(write):
    long = "é " + "x " * 60 + "y"
    config = load_config(
        write("{}"),
        ["--connection.kind=residual", f"--run.dir={long}", "--moe.experts=2", "--moe.first_dense=1"],
    )
    text = dump_config(config)
    assert text.startswith("model:\n  layers: 4\n  hidden_size: 128\n")
    assert (
        "  document_mask: false\n"
        "# mla:\n"
        "#   kv_rank: 64  (no effect: model.attention is gqa)\n"
        "#   q_rank: null  (no effect: model.attention is gqa)\n"
        "#   rope_dim: 16  (no effect: model.attention is gqa)\n"
        "moe:\n"
        "  experts: 2\n"
    ) in text
    assert "connection:\n  kind: residual\n#   n: 4  (no effect: connection.kind is residual)\n" in text
    assert "recompute:\n  mode: none\n#   block_length: paper  (no effect: recompute.mode is none)\n" in text
    assert f"run:\n  dir: {long}\n  tensorboard: true\n" in text
    assert text.endswith("implementation: auto\n# kernels: auto  (no effect: connection.kind is residual)\n")
    assert load_config(write(text)) == config


def test_what_has_no_effect_stays_where_it_is_not_the_default(write):
    config = load_config(write("{}"), ["--mla.q_rank=8", "--connection.kind=residual", "--kernels=torch"])
    text = dump_config(config)
    assert (
        "mla:\n"
        "#   kv_rank: 64  (no effect: model.attention is gqa)\n"
        "  q_rank: 8\n"
        "#   rope_dim: 16  (no effect: model.attention is gqa)\n"
    ) in text
    assert text.endswith("implementation: auto\nkernels: torch\n")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "1.0e-05"),
        ([0.5, 1.0], "[0.5, 1.0]"),
        (["a b", "c"], "[a b, c]"),
        ("yes", "yes"),
        ("1e-3", "'1e-3'"),
        ("~", "'~'"),
        ("XéX", "XéX"),
        ("a\u00a0", "a\u00a0"),
        ("a b " * 40 + "c", "a b " * 40 + "c"),
    ],
)
def test_a_value_in_one_line(value, written):
    assert scalar(value) == written


def test_loading_needs_no_torch(write):
    code = (
        "import sys; from hcmegatron.config import *; from hcmegatron.config import check_config; "
        f"check_config(load_config({str(write('{}'))!r})); "
        "print([name for name in ('torch', 'numpy', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Loading: defaults <- YAML with extends <- overrides, strictly, with one clear line for every mistake."""

import dataclasses
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcmegatron.config import Config, ConfigError, dump_config, load_config, read_config
from hcmegatron.config.load import _read_file
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


def test_extends_circle_and_missing_base(write):
    path = write("extends: b.yaml\n", "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    assert "extends itself" in refused(path)
    text = refused(write("\nextends: nowhere.yaml\n"))
    assert "c.yaml:2" in text and "nowhere.yaml" in text
    assert "is not a file" in refused(write("extends: [a.yaml]\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  stpes: 3\n", ["c.yaml:2", "training.stpes", "training.steps"]),
        ("training:\n  lr: 3\n", ["training.lr", "optimizer.lr"]),
        ("trainig:\n  steps: 3\n", ["c.yaml:1", "trainig", "training"]),
        ("training.steps: 3\n", ["c.yaml:1", "training.steps", "steps: under training:"]),
        ("model:\n  extends: b.yaml\n", ["model.extends", "top of the file"]),
        ("'': 3\n", ["empty key"]),
        ("run:\n  dir: |\n    a\n    b\n", ["run.dir", "one line"]),
        ("zzz: 3\n", ["zzz", "sections"]),
        ("training:\n  qqqqq: 3\n", ["training.qqqqq", "global_batch"]),
        ("training:\n  steps: 3\n  steps: 4\n", ["c.yaml:3", "training.steps", "twice", "line 2"]),
        ("training:\n  steps: 3\ntraining:\n  seed: 4\n", ["c.yaml:3", "training", "twice"]),
        ("training:\n  steps: many\n", ["training.steps = many", "whole number"]),
        ("training:\n  steps: 3.5\n", ["training.steps = 3.5", "whole number"]),
        ("training:\n  steps: '3'\n", ["training.steps = '3'", "whole number"]),
        ("training:\n  steps: true\n", ["training.steps = true", "whole number"]),
        ("training:\n  steps: [3]\n", ["training.steps = [3]", "whole number"]),
        ("training:\n  steps: {a: 3}\n", ["training.steps = {a: ...}", "whole number"]),
        ("training:\n  steps:\n", ["training.steps", "whole number"]),
        ("training:\n  steps: -1\n", ["training.steps = -1", "at least 1"]),
        ("training:\n  steps: 99999999999999999999999\n", ["training.steps", "beyond"]),
        ("training:\n  steps: 0x10\n", ["training.steps = 0x10", "whole number"]),
        ("optimizer:\n  lr: .nan\n", ["optimizer.lr = .nan", "finite"]),
        ("optimizer:\n  lr: .inf\n", ["optimizer.lr = .inf", "finite"]),
        ("optimizer:\n  lr: 1e999\n", ["optimizer.lr = 1e999", "finite"]),
        ("optimizer:\n  lr: 1e31\n", ["optimizer.lr = 1e31", "up to 1e+30"]),
        ("model:\n  norm_eps: 1e300\n", ["model.norm_eps = 1e300", "up to 1e+30"]),
        ("optimizer:\n  lr: nan\n", ["optimizer.lr = nan", "a number"]),
        ("optimizer:\n  lr: -1e-3\n", ["optimizer.lr = -1e-3", "above 0"]),
        ("optimizer:\n  beta2: 1\n", ["optimizer.beta2 = 1", "below 1"]),
        ("optimizer:\n  step_decay_at: [0.9, 0.8]\n", ["optimizer.step_decay_at = [0.9, 0.8]", "rising"]),
        ("optimizer:\n  step_decay_at: 0.9\n", ["optimizer.step_decay_at = 0.9", "list of numbers"]),
        (
            "optimizer:\n  step_decay_at: [[0.9]]\n",
            ["optimizer.step_decay_at = [[...]]", "an entry that is not a number"],
        ),
        ("run:\n  tensorboard: yes\n", ["run.tensorboard = yes", "true or false"]),
        ("run:\n  tensorboard: 1\n", ["run.tensorboard = 1", "true or false"]),
        ("run:\n  dir: ''\n", ["run.dir", "empty"]),
        ("data:\n  paths: corpus.txt\n", ["data.paths = corpus.txt", "list of texts"]),
        ("data:\n  paths: [~]\n", ["data.paths", "text"]),
        ("data:\n  suffixes: [txt]\n", ["data.suffixes = [txt]", ".txt"]),
        ("connection:\n  kind: mhx\n", ["connection.kind = mhx", "residual, shc", "did you mean mhc?"]),
        ("connection:\n  kind: MHC\n", ["connection.kind = MHC", "did you mean mhc?"]),
        ("connection: mhc\n", ["connection = mhc", "section", "connection.kind"]),
        ("connection:\n", ["c.yaml:1", "connection", "section"]),
        ("kernels: {a: b}\n", ["kernels", "one of auto"]),
        ("model:\n\tlayers: 4\n", ["c.yaml:2", "spaces, not tabs"]),
        ("model:\n  layers: 4\n   heads: 4\n", ["c.yaml:3", "not YAML"]),
        ("model: {layers: 4\n", ["not YAML"]),
        ("model:\n  layers: 'four\n", ["not YAML"]),
        ("- a\n- b\n", ["c.yaml:1", "[a, b]", "not a section"]),
        ("just words\n", ["just words", "not a section"]),
        ("", ["empty"]),
        ("# only a comment\n", ["empty"]),
        ("a: 1\n---\nb: 2\n", ["not YAML"]),
        ("? [a]\n: 1\n", ["not a key"]),
        ("model: &m\n  layers: 4\nmla:\n  <<: *m\n", ["mla.<<"]),
        ("model: *nothing\n", ["not YAML"]),
        ("training:\n  steps: &s [*s]\n", ["c.yaml"]),
        ("run:\n  dir: !!python/object/apply:os.getcwd []\n", ["run.dir", "text"]),
        ("run:\n  dir: !!python/name:os.system x\n", ["run.dir", "text"]),
        ("training:\n  steps: !!int many\n", ["training.steps"]),
        ("optimizer:\n  lr: !!float much\n", ["optimizer.lr"]),
        (b"\xff\xfe\x00bad", ["UTF-8"]),
        ("model:\n  layers: \x07\n", ["not YAML"]),
        ("[" * 5000, ["c.yaml"]),
        ("data: {paths: [*.txt]}\n", ["c.yaml:1", "in quotes", '"*.txt"']),
        ("data: {paths: [@x]}\n", ["c.yaml:1", "in quotes"]),
        (f"extends: {'x' * 300}\n", ["c.yaml:1", "there is no file"]),
        ("run:\n  dir: '  '\n", ["run.dir", "empty"]),
        ("parallel:\n  data: 2\n", ["c.yaml:2", "parallel.data", "what is left of the world size"]),
    ],
)
def test_mistakes_name_file_key_value_and_remedy(write, text, words):
    message = refused(write(text))
    assert "c.yaml" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--training.steps", ["--training.steps=VALUE"]),
        ("training.steps=3", ["--section.key=value"]),
        ("--", ["--section.key=value"]),
        ("--=3", ["--section.key=value"]),
        ("--training.step=3", ["training.step", "did you mean training.steps?"]),
        ("--stepz", ["stepz"]),
        ("--training.steps=", ["training.steps", "whole number"]),
        ("--training.steps=1e3", ["training.steps = 1e3", "whole number"]),
        ("--training=3", ["training is a section", "--training.steps=200"]),
        ("--run.dir=", ["run.dir", "empty"]),
        ("--data.paths=[a", ["data.paths = [a", "list"]),
        ("--training.steps=a\nb", ["training.steps"]),
    ],
)
def test_override_mistakes(write, override, words):
    message = refused(write("{}"), override)
    for word in words:
        assert word in message


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


def test_override_given_twice(write):
    message = refused(write("{}"), "--training.steps=3", "--training.steps=4")
    assert "--training.steps=4" in message and "--training.steps=3" in message


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("--parallel.context=2", "context parallelism"),
        ("--parallel.context_parallel_size=2", "context parallelism"),
        ("--training.dtype=fp8", "FP8"),
        ("--training.dtype=fp16", "fp16"),
        ("--training.dtype=bfloat16", "written bf16"),
        ("--training.fp8=true", "FP8"),
        ("--model.mtp_layers=1", "MTP"),
        ("--parallel.data=2", "data parallel is what is left of the world size"),
        ("--parallel.dp=2", "data parallel is what is left of the world size"),
        ("--parallel.data_parallel_size=2", "data parallel is what is left of the world size"),
        ("--training.cuda_graphs=true", "CUDA graphs"),
        ("--model.enable_cuda_graph=true", "CUDA graphs"),
    ],
)
def test_absent_features_are_refused_by_name(write, override, word):
    message = refused(write("{}"), override)
    assert word in message and override.removeprefix("--").split("=")[0] in message
    section, _, rest = override.removeprefix("--").partition(".")
    assert word in refused(write(f"{section}:\n  {rest.replace('=', ': ')}\n"))


def test_missing_file_and_directory(tmp_path):
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "is a directory" in refused(tmp_path)


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
    )
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


def test_dump_says_what_has_no_effect(write):
    text = dump_config(load_config(write("{}"), ["--connection.kind=residual"]))
    assert "#   n: 4  (no effect: connection.kind is residual)" in text
    assert load_config(write(text)) == load_config(write("{}"), ["--connection.kind=residual"])


def test_loading_needs_no_torch(write):
    code = (
        "import sys; from hcmegatron.config import *; from hcmegatron.config import check_config; "
        f"check_config(load_config({str(write('{}'))!r})); "
        "print([name for name in ('torch', 'numpy', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

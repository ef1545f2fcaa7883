"""What runs of the tests train on."""

import pytest


@pytest.fixture(scope="package")
def text(tmp_path_factory):
    """A file of 400 lines."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return path

"""The text that profiled runs train on."""

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "".join(f"line {i} of the text has {i * i % 97} and {i % 13} in it\n" for i in range(400))
    )
    return path

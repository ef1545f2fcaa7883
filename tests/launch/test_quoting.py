"""Words that would mean something to a shell."""

import pytest

from launch.job import LaunchError
from launch.quoting import directive, quote, quote_all


def test_a_command_line_is_quoted_word_by_word():
    assert quote_all(["python", "-m", "x", "a b", "it's", "$(id)", ""]) == (
        """python -m x 'a b' 'it'"'"'s' '$(id)' ''"""
    )


@pytest.mark.parametrize("word", ["a\0b", "\ud800"])
def test_what_no_program_can_be_given_is_refused_in_one_line(word):
    with pytest.raises(LaunchError, match="leave it out") as refused:
        quote(word)
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()


def test_a_directive_carries_plain_words_alone():
    assert directive("partition", "gpu-a100,gpu_b") == "--partition=gpu-a100,gpu_b"
    for value in ("two words", "a\nb", 'a"b', "a#b", "", "back\\slash"):
        with pytest.raises(LaunchError, match="cannot stand in a job's header"):
            directive("partition", value)

"""What an error says in a part of a sentence."""

from __future__ import annotations

import pytest

from crayon.errors import first_line, last_line, one_line, with_type


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("mark"), "KeyError: 'mark'"),
        (KeyError("two words"), "KeyError: 'two words'"),
        (IndexError(7), "IndexError: 7"),
        (StopIteration(), "StopIteration"),
        (ValueError("The loss is NaN."), "The loss is NaN"),
        ("mark", "mark"),
    ],
)
def test_an_error_that_says_no_sentence_has_its_type_named(error, text):
    assert first_line(error) == last_line(error) == one_line(error) == text


def test_a_type_is_named_once():
    assert with_type(KeyError("mark")) == "KeyError: 'mark'"
    assert with_type(OSError("no space\nleft.")) == "OSError: no space left"

"""Names with options in one word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.options import Entry, parse_entries, parse_entry


def test_entries_and_their_values():
    assert parse_entries("--x", "euler, ghvb:order=2.7:frame=denoised,cfg:interval=[0.1, 2]:scale=1e1") == [
        Entry("euler", {}, "euler"),
        Entry("ghvb", {"order": 2.7, "frame": "denoised"}, "ghvb:order=2.7:frame=denoised"),
        Entry("cfg", {"interval": [0.1, 2], "scale": 10.0}, "cfg:interval=[0.1, 2]:scale=1e1"),
    ]
    assert parse_entry("--x", "a:b={c: 1, d: 2}").options == {"b": {"c": 1, "d": 2}}


@given(
    st.dictionaries(
        st.text("abcxyz", min_size=1), st.one_of(st.integers(), st.booleans(), st.lists(st.integers())), max_size=4
    )
)
def test_what_is_written_is_read(options):
    word = ":".join(["name", *(f"{key}={str(value).lower()}" for key, value in options.items())])
    assert parse_entries("--x", f"other,{word}")[1] == Entry("name", options, word)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' has an empty name"),
        ("a,,b", "'a,,b' has an empty name"),
        ("a,b,a", "'a' is given twice"),
        (":order=2", "':order=2' has no name"),
        ("a:order", "'order' is not of the form key=value"),
        ("a:order=1:order=2", "'order' is given twice"),
        ("a:order=[1", "the value of 'order' cannot be read"),
    ],
)
def test_refusals_name_the_argument_and_the_word(text, says):
    with pytest.raises(InputError) as error:
        parse_entries("--schedulers", text)
    assert str(error.value).startswith("--schedulers: ")
    assert says in str(error.value)

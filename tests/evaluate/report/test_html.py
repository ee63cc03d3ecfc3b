"""No text becomes markup, whatever is in it."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genflow.evaluate.report.html import Cell, Markup, data_uri, element, join, table

# An HTML parser reads a carriage return as a line feed and no NUL or lone surrogate.
TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


class Read(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, attributes))

    def handle_data(self, text) -> None:
        self.text += text


@given(TEXT, TEXT)
def test_text_and_attributes_come_back_as_they_were(text: str, attribute: str) -> None:
    read = Read(element("p", text, title=attribute))
    assert read.text == text
    assert read.tags == [("p", [("title", attribute)])]


@given(st.lists(TEXT, min_size=1), TEXT)
def test_elements_nest_and_texts_beside_them_stay_text(texts: list[str], caption: str) -> None:
    read = Read(element("ul", *(element("li", text) for text in texts), caption))
    assert [tag for tag, _ in read.tags] == ["ul"] + ["li"] * len(texts)
    assert read.text == "".join(texts) + caption


def test_a_part_of_markup_is_text_again() -> None:
    """Slices and sums of markup are plain strings, which are escaped."""
    assert join(Markup("<b>")[:2] + ">") == "&lt;b&gt;"
    assert isinstance(element("p"), Markup)


def test_attributes() -> None:
    text = element("td", 1.5, None, class_="number", data_value=0, hidden=False, title=None, open=True)
    assert text == '<td class="number" data-value="0" open>1.5</td>'
    assert element("img", src="a&b") == '<img src="a&amp;b">'


def test_table_names_its_rows_and_columns() -> None:
    text = table(("a", "<b>"), [("x", Cell("1.00", 1.0)), ("y", Cell("-", None)), ("z", "word")], caption="c")
    assert text.count('<th scope="row">') == 3
    assert '<th scope="col">&lt;b&gt;</th>' in text
    assert '<td data-value="1.0" class="number">1.00</td>' in text
    assert '<td class="number">-</td>' in text
    assert "<td>word</td>" in text
    assert "sortable" not in text
    assert 'class="wide sortable"' in table(("a",), [], caption="c", sortable=True, class_="wide")


@pytest.mark.parametrize(("content", "kind"), [(b"", "text/plain"), (bytes(range(256)), "image/png")])
def test_data_uri(content: bytes, kind: str) -> None:
    import urllib.request

    with urllib.request.urlopen(data_uri(kind, content)) as answer:
        assert answer.read() == content
        assert answer.headers["content-type"] == kind

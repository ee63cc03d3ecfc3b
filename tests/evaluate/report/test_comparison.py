"""Several sets side by side: every figure in its place, marked as the tests found."""

import base64
import json
from pathlib import Path

import pytest

from genflow.evaluate.measures import MEASURES
from genflow.evaluate.report import write_comparison_report
from genflow.evaluate.report.comparison import render_comparison

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def compared(make_evaluation):
    """Two sets, of which the first is a copy of the reference, and a result as compare_sets gives it."""

    def copy(made, real) -> None:
        made[:] = real

    found = [make_evaluation(name="runs/good", edit=copy), make_evaluation(name="runs/poor")]
    sets = [one.result for one in found]
    comparisons = {}
    for key, best, p in (("fd", 0, 0.004), ("precision", 0, 0.04), ("recall", 0, 0.6), ("kid", 1, None)):
        values = [one["metrics"][key] for one in sets]
        pair = {"first": 0, "second": 1, "difference": values[0] - values[1]}
        if p is not None:
            pair |= {"low": values[0] - values[1] - 0.5, "high": values[0] - values[1] + 0.5, "p": p, "p_corrected": p}
        comparisons[key] = {"best": best, "pairs": [pair]}
    protocol = {
        "reference": "shapes",
        "paired": False,
        "bootstrap": {"draws": 200, "level": 0.95, "seed": 0},
        "correction": "Holm, over the pairs of each metric",
        "warnings": ["different numbers of samples"],
    }
    return {"sets": sets, "comparisons": comparisons, "protocol": protocol}, found


def test_figures_and_differences(compared, parse) -> None:
    result, found = compared
    page = parse(render_comparison(result, found))
    assert page.titles == ["Comparison of good, poor"]
    assert list(page.sections) == ["figures", "differences", "samples", "protocol"]
    words = " ".join(page.sections["figures"].split())
    kid = MEASURES["kid"].form
    good, poor = (one["metrics"] for one in result["sets"])
    assert f"{good['precision']:.4f} best {poor['precision']:.4f} ↑ higher" in words
    assert f"{kid.format(good['kid'])} {kid.format(poor['kid'])} best ↓ lower" in words
    assert "Warning: different numbers of samples" in words
    assert words.count("60 samples") == 2
    words = " ".join(page.sections["differences"].split())
    fd = good["fd"] - poor["fd"]
    assert f"FD (pixels) good less poor {fd:.4f} {fd - 0.5:.4f} to {fd + 0.5:.4f} 0.004 yes" in words
    assert "0.040 yes" in words
    assert "0.600 no" in words
    assert words.count("\N{EN DASH}") == 2  # of the one that was not tested: p, and whether it is more than chance
    assert "200 resamples, drawn each set by itself" in words


def test_samples_are_those_of_their_set(compared, parse, decode) -> None:
    result, found = compared
    page = parse(render_comparison(result, found))
    names = [given["alt"] for given in page.all("img")]
    assert len(names) == 48
    assert all(name.startswith("sample runs/good/") for name in names[:24])
    assert all(name.startswith("sample runs/poor/") for name in names[24:])
    assert [name.rpartition("/")[2] for name in names[:24]] == [name.rpartition("/")[2] for name in names[24:]]


def test_the_whole_result_is_in_it(compared, parse) -> None:
    result, _ = compared
    page = parse(render_comparison(result))
    (link,) = [given for given in page.all("a") if "download" in given]
    assert json.loads(base64.b64decode(link["href"].partition("base64,")[2])) == result
    assert link["download"] == "comparison.json"
    assert "not kept" in page.sections["samples"]
    assert "sets / poor / density_k" in page.sections["protocol"]


def test_names_stay_text_and_bytes_the_same(make_evaluation, compared, parse, tmp_path: Path) -> None:
    result, found = compared
    bad = make_evaluation(name=EVIL)
    result = {**result, "sets": [bad.result, result["sets"][1]]}
    write_comparison_report(tmp_path / "a.html", result, [bad, found[1]])
    write_comparison_report(tmp_path / "b.html", result, [bad, found[1]])
    text = (tmp_path / "a.html").read_text("utf-8")
    assert text == (tmp_path / "b.html").read_text("utf-8")
    page = parse(text)
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert "<script>alert" not in text
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(set(ids)) == len(ids)


def test_without_resamples_no_test_is_claimed(compared, parse) -> None:
    result, _ = compared
    pairs = [{"first": 0, "second": 1, "difference": 1.0}]
    plain = {
        **result,
        "comparisons": {"fd": {"best": None, "pairs": pairs}},
        "protocol": {**result["protocol"], "bootstrap": None},
    }
    page = parse(render_comparison(plain))
    assert "No resamples were asked for" in page.sections["differences"]
    assert "best" not in page.sections["figures"].replace("0 is best", "")

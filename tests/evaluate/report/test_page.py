"""The report's page: whole, self-contained, the same every time, and right about which picture is which."""

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.report import write_report
from genflow.evaluate.report.page import render
from genflow.evaluate.report.style import STYLE
from genflow.metrics import memorization, nearest

SECTIONS = ["figures", "samples", "nearest", "density", "classes", "map", "extrapolation", "protocol"]
EVIL = "<script>alert(1)</script>"
EVIL_ATTRIBUTE = "\"><img src=x onerror='alert(2)'>"


def copy_one(made: np.ndarray, real: np.ndarray) -> None:
    made[11] = real[42]


def move(made: np.ndarray, real: np.ndarray) -> None:
    made[:] = np.roll(made, 3, axis=1)


def one_far_out(made: np.ndarray, real: np.ndarray) -> None:
    made[7] = np.random.default_rng(0).choice([0, 255], made[7].shape)


def images_within(text: str, start: str) -> list[str]:
    """Addresses of the pictures after ``start``."""
    return re.findall(r'<img src="([^"]+)"', text[text.index(start) :])


def test_structure(whole) -> None:
    page = whole[2]
    assert page.elements[0] == ("html", {"lang": "en"})
    assert page.titles == ["Evaluation of out"]
    assert list(page.sections) == SECTIONS
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [address for _, given in page.elements if (address := given.get("href") or "").startswith("#")]
    assert {link[1:] for link in links} <= set(ids)
    assert {f"#{key}" for key in SECTIONS} <= set(links)
    assert all(given["aria-labelledby"] in ids for given in page.all("section"))


def test_it_can_be_read_without_seeing(whole) -> None:
    page = whole[2]
    assert len(page.all("img")) > 80
    assert all(given["alt"].strip() for given in page.all("img"))
    assert {given["alt"].split()[0] for given in page.all("img")} == {"sample", "reference"}
    assert all(given["role"] == "img" and given["aria-label"] for given in page.all("svg"))
    assert len(page.all("svg")) == 3
    assert {given["scope"] for given in page.all("th")} == {"row", "col"}
    assert len(page.all("caption")) == len(page.all("table")) == 3


def test_nothing_comes_from_elsewhere(whole) -> None:
    _, text, page = whole
    for _, given in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert re.match(r"data:|#", given.get(name) or "#")
        assert not any(name.startswith("on") for name in given)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    (policy,) = [given["content"] for given in page.all("meta") if given.get("http-equiv")]
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_names_of_users_stay_text(make_evaluation, parse) -> None:
    evaluation = make_evaluation(name=EVIL + EVIL_ATTRIBUTE, class_names=(EVIL, EVIL_ATTRIBUTE))
    evaluation.result["protocol"]["generated"] = {EVIL: [EVIL_ATTRIBUTE], "skipped": EVIL}
    evaluation.result["protocol"]["warnings"] = [EVIL]
    evaluation.result["protocol"]["features"] = EVIL
    text = render(evaluation)
    page = parse(text)
    assert len(page.scripts) == len(page.all("script")) == 1
    assert "alert" not in page.scripts[0]
    assert all((given.get("src") or "data:").startswith("data:") for _, given in page.elements)
    assert not any("onerror" in given for _, given in page.elements)
    assert page.titles == [f"Evaluation of {EVIL}{EVIL_ATTRIBUTE}"]
    for key in ("figures", "nearest", "classes", "protocol"):
        assert EVIL in page.sections[key]
    assert any(EVIL in given["alt"] for given in page.all("img"))
    assert "<script>alert" not in text


def test_the_same_evaluation_gives_the_same_bytes(whole, make_evaluation, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", make_evaluation())
    assert (tmp_path / "a.html").read_text("utf-8") == whole[1]
    write_report(tmp_path / "c.html", whole[0], date="2026-11-28")
    assert "2026-11-28" not in (tmp_path / "a.html").read_text("utf-8")
    assert "2026-11-28" in (tmp_path / "c.html").read_text("utf-8")


def test_figures(whole) -> None:
    evaluation, _, page = whole
    words = " ".join(page.sections["figures"].split())
    metrics = evaluation.result["metrics"]
    fd = metrics["fd"]
    assert f"{fd:.4f} {0.9 * fd:.4f} to {1.1 * fd:.4f} (95%) ↓ lower" in words
    assert f"± {MEASURES['kid'].form.format(0.125)}" in words
    assert f"{metrics['recall']:.4f} ↑ higher" in words
    assert "FD (pixels)" in words
    assert "near samples (k = 3)" in words
    assert "Warning: 60 samples: below 2048" in words
    assert words.index("Warning") < words.index("FD (pixels)") < words.index("Note: alpha left out")


def test_a_copy_comes_first_beside_what_it_copies(make_evaluation, parse, decode) -> None:
    evaluation = replace(make_evaluation(edit=copy_one), extrapolation=None)
    text = render(evaluation)
    first = images_within(text, '<div class="four">')[:4]
    assert first[0] == first[1]
    assert np.array_equal(decode(first[1]), evaluation.reference.source.read(42)[:, :, 0])
    distances, places = nearest(
        evaluation.reference.features.features, evaluation.generated.features.features[11:12], count=3
    )
    assert places[0, 0] == 42
    for address, place in zip(first[1:], places[0].tolist(), strict=True):
        assert np.array_equal(decode(address), evaluation.reference.source.read(place)[:, :, 0])
    words = " ".join(parse(text).sections["nearest"].split())
    numbers = " ".join(f"{distance:#.4g}" for distance in distances[0].tolist())
    assert f"sample {numbers} out/011.png : 0.000 of the nearest image's radius" in words.replace("png:", "png :")


def test_with_a_training_set_its_pictures_are_shown(make_evaluation, parse, decode) -> None:
    evaluation = replace(make_evaluation(), extrapolation=None)
    other = make_evaluation(name="train", edit=move)
    train = other.generated
    found = memorization(train.features.features, evaluation.generated.features.features)
    text = render(replace(evaluation, train=train, memorization=found))
    page = parse(text)
    assert "Nearest training images" in page.sections["nearest"]
    worst = int(found.ratios.argmin())
    first = images_within(text, '<div class="four">')[:2]
    assert np.array_equal(decode(first[0]), evaluation.generated.source.read(worst)[:, :, 0])
    assert np.array_equal(decode(first[1]), train.source.read(int(found.nearest[worst]))[:, :, 0])
    assert page.sections["nearest"].split("sample ")[1].split()[3] == evaluation.generated.source.names[worst]


def test_worst_and_best_by_density(make_evaluation, parse, decode) -> None:
    evaluation = replace(make_evaluation(edit=one_far_out), extrapolation=None)
    details, pictures = evaluation.neighbours, evaluation.generated.source
    text = render(evaluation)
    worst = images_within(text, "In the fewest balls")
    best = images_within(text, "In the most balls")
    assert np.array_equal(decode(worst[0]), pictures.read(7)[:, :, 0])
    most = int(details.held.max())
    candidates = torch.nonzero(details.held == most).flatten().tolist()
    assert any(np.array_equal(decode(best[0]), pictures.read(row)[:, :, 0]) for row in candidates)
    words = " ".join(parse(text).sections["density"].split())
    far = float(details.distance[7] / details.density_radius[details.nearest[7]])
    assert f"In the fewest balls, farthest first 0 balls, {far:#.4g}" in words
    assert f"In the most balls {most} balls" in words
    assert f"{int((details.held == 0).sum())} of 60 samples are in none" in words


def test_classes(whole) -> None:
    evaluation, _, page = whole
    assert f"circle 30 30 {evaluation.result['per_class']['fd'][0]:.4f}" in " ".join(page.sections["classes"].split())
    values = [float(given["data-value"]) for given in page.all("td") if given.get("data-value") is not None]
    assert evaluation.result["per_class"]["precision"][1] in values
    (table,) = [given for given in page.all("table") if "sortable" in (given.get("class") or "")]
    assert table["class"] == "classes sortable"


def test_samples_stand_in_rows_of_their_class(whole, decode) -> None:
    evaluation, text, _ = whole
    rows = re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", text)
    assert [name for name, _ in rows] == ["circle", "square"]
    pictures = evaluation.generated.source.images[..., 0]
    for label, (_, row) in enumerate(rows):
        shown = [decode(address) for address in images_within(row, "")]
        assert len(shown) == 10
        for picture in shown:
            (places,) = np.nonzero((pictures == picture).all((1, 2)))
            assert places[0] % 2 == label


def test_samples_without_classes(make_evaluation, parse) -> None:
    page = parse(render(make_evaluation(labelled=False)))
    assert "60 of 60, drawn at random" in page.sections["samples"]
    assert "not asked for (--per-class), or no class is known" in page.sections["classes"]


def test_the_map_counts_what_the_figures_count(make_evaluation, parse) -> None:
    evaluation = make_evaluation(edit=one_far_out)
    words = parse(render(evaluation)).sections["map"]
    metrics = evaluation.result["metrics"]
    assert f"Samples: {metrics['precision']:.1%} near a real image (precision)" in words
    assert f"Reference images: {metrics['recall']:.1%} near a sample (recall)" in words


def test_extrapolation(whole) -> None:
    evaluation, _, page = whole
    words = page.sections["extrapolation"]
    assert (
        f"{float(evaluation.extrapolation.distances[0]):#.4g} of {evaluation.extrapolation.sizes[0]} samples" in words
    )
    assert f"ends at {evaluation.extrapolation.value:#.4g}" in words
    assert "∞" in words  # the axis


def test_protocol_and_json(whole, make_evaluation, parse) -> None:
    evaluation, _, page = whole
    words = " ".join(page.sections["protocol"].split())
    assert "nested / a x; y" in words
    assert "density_k 5" in words
    (link,) = [given for given in page.all("a") if "download" in given]
    content = base64.b64decode(link["href"].partition("base64,")[2])
    assert json.loads(content) == evaluation.result
    evaluation = replace(make_evaluation(), neighbours=None, extrapolation=None)  # without drawings: quicker
    evaluation.result["protocol"]["skipped"] = [f"{i}.png" for i in range(1000)]
    words = parse(render(evaluation)).sections["protocol"]
    assert "19.png; and 980 more, in the JSON" in words
    assert "20.png" not in words


def test_files_of_features_have_no_pictures(make_evaluation, without_pictures, parse) -> None:
    page = parse(render(without_pictures(make_evaluation())))
    assert list(page.sections) == SECTIONS
    assert not page.all("img")
    for key in ("samples", "nearest", "density"):
        assert "features were given" in page.sections[key]
    assert "circle" in page.sections["classes"]
    assert len(page.all("svg")) == 3


def test_one_side_alone_has_pictures(make_evaluation, without_pictures, parse) -> None:
    whole = make_evaluation()
    page = parse(render(replace(whole, reference=without_pictures(whole).reference)))
    assert {given["alt"].split()[0] for given in page.all("img")} == {"sample"}
    assert "of the nearest image's radius" in page.sections["nearest"]
    assert "The pictures of the latter are not at hand." in page.sections["nearest"]


def test_statistics_leave_the_pictures_of_the_samples(make_evaluation, statistics_only, parse) -> None:
    page = parse(render(statistics_only(make_evaluation())))
    assert list(page.sections) == SECTIONS
    assert page.all("img")
    for key in ("nearest", "density", "map"):
        assert "known by its statistics only" in page.sections[key]
    assert "FD-infinity was not asked for" in page.sections["extrapolation"]


def test_no_measure_by_neighbours(make_evaluation, parse) -> None:
    page = parse(render(replace(make_evaluation(), neighbours=None, extrapolation=None)))
    for key in ("nearest", "density", "map"):
        assert "was asked for" in page.sections[key]


def test_the_fid_is_called_that(make_evaluation, parse) -> None:
    evaluation = replace(make_evaluation(), neighbours=None)
    metrics = evaluation.result["metrics"]
    evaluation.result["metrics"] = {"fid": metrics["fd"], "fid_infinity": metrics["fd_infinity"]}
    page = parse(render(evaluation))
    assert "FID against the number of samples" in page.sections["extrapolation"]
    assert " FID " in page.sections["classes"]


def test_a_picture_that_is_gone_is_said(make_evaluation, parse) -> None:
    evaluation = replace(make_evaluation(), extrapolation=None)
    evaluation.generated.source.broken = int(evaluation.neighbours.held.argmax())
    page = parse(render(evaluation))
    assert "cannot be read" in page.sections["density"]


def test_pictures_of_a_pipeline_are_made_together_and_once(whole, make_evaluation) -> None:
    """The page is the same, no picture is made alone, and none twice."""
    from genflow.evaluate.sources.pixels import Picture

    evaluation, asked = make_evaluation(), []
    source = evaluation.generated.source
    read, source.read = source.read, lambda index: pytest.fail(f"{index} is made alone")

    def batches(indices, batch_size):
        asked.extend(indices)
        for start in range(0, len(indices), batch_size):
            yield [Picture(read(index), ()) for index in indices[start : start + batch_size]]

    source.batches = batches
    assert render(evaluation) == whole[1]
    assert len(set(asked)) == len(asked) > 20


def test_large_pictures_make_no_large_page(make_evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is the worst that a picture can be."""
    evaluation = make_evaluation()
    random = np.random.default_rng(0)
    for source in (evaluation.generated.source, evaluation.reference.source):
        monkeypatch.setattr(source, "read", lambda index: random.integers(0, 256, (400, 512, 3), np.uint8))
    text = render(evaluation)
    assert len(text) < 5e6
    sizes = set(re.findall(r'width="(\d+)" height="(\d+)" alt', text))
    assert sizes == {("128", "100")}


def test_one_feature_and_few_samples(make_evaluation, parse) -> None:
    """A line is no plane, and three neighbours are all there are; nothing else changes."""
    from genflow.evaluate.evaluation import Evaluation
    from genflow.metrics import FeatureStatistics, neighbour_details

    whole, sides = make_evaluation(), []
    for side in (whole.generated, whole.reference):
        values = side.features.features[:6, :1]
        sides.append(
            replace(
                side,
                features=replace(
                    side.features,
                    features=values,
                    statistics=FeatureStatistics.from_features(values),
                    labels=None,
                    names=side.features.names[:6],
                ),
            )
        )
    details = neighbour_details(sides[1].features.features, sides[0].features.features)
    page = parse(render(Evaluation(whole.result, *sides, neighbours=details)))
    assert "component 2 (0% of the variance)" in page.sections["map"]


def test_nothing_is_half_written(make_evaluation, tmp_path: Path) -> None:
    evaluation = replace(make_evaluation(), neighbours=None, extrapolation=None)
    evaluation.result["metrics"]["fd"] = float("nan")  # JSON has none
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "report.html", evaluation)
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=r"report: .*folder.html' cannot be written: Is a directory"):
        write_report(tmp_path / "folder.html", replace(make_evaluation(), neighbours=None, extrapolation=None))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def colours(scheme: str) -> dict[str, str]:
    return dict(re.findall(r"--(\S+): (#[0-9a-f]{6})", scheme))


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_enough_by_day_and_by_night() -> None:
    before, _, after = STYLE.partition("@media (prefers-color-scheme: dark)")
    light, dark = colours(before), colours(after)
    assert light.keys() == dark.keys()
    pairs = [(text, ground) for text in ("ink", "muted", "link", "first") for ground in ("paper", "surface")]
    for scheme in (light, dark):
        for text, ground in [*pairs, ("second", "paper"), ("warn", "warn-paper")]:
            low, high = sorted(luminance(scheme[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_importing_the_report_is_light() -> None:
    import subprocess

    code = "import sys, genflow.evaluate.report; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]

"""Metrics by name: what is known, what can be had, what is called FID."""

import pytest

from genflow.errors import InputError
from genflow.evaluate.measures import DEFAULT, MEASURES, NEEDS, Naming, choose, label, meaning, parse_metrics

ALL = {need: True for measure in MEASURES.values() for need in measure.needs}
PLAIN = Naming("dinov2", False)


def test_names_are_read_as_people_write_them() -> None:
    assert parse_metrics(None) is None
    assert parse_metrics(" FID,fd-infinity,Intra_FD,colorfulness,inception-score,fid") == (
        "fid",
        "fd_infinity",
        "intra_fd",
        "colourfulness",
        "is",
    )
    assert parse_metrics(["precision", "recall"]) == ("precision", "recall")


@pytest.mark.parametrize(
    ("text", "match"),
    [("presicion", "did you mean 'precision'"), ("fd,,kid", "'' is not known"), ([], "none given")],
)
def test_unknown_names_are_refused_with_the_nearest(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse_metrics(text)


def test_by_default_all_that_can_be_had_are_taken() -> None:
    assert set(choose(None, ALL, PLAIN)) == set(DEFAULT)
    assert choose(None, {**ALL, "features": False}, PLAIN) == ("fd", "accuracy")
    nothing = dict.fromkeys(ALL, False)
    assert choose(None, nothing, PLAIN) == ("fd",)
    assert "accuracy" in choose(None, {}, PLAIN)  # not known yet: it may be


@pytest.mark.parametrize("key", [key for key, measure in MEASURES.items() if measure.needs])
def test_what_cannot_be_had_is_refused_with_the_reason(key: str) -> None:
    for need in MEASURES[key].needs:
        with pytest.raises(InputError, match=f"metrics: {key.replace('_', '-')} needs ") as caught:
            choose([key], {**ALL, need: False}, PLAIN)
        assert NEEDS[need.partition(".")[0]].format(features="dinov2") in str(caught.value)
    choose([key], ALL, PLAIN)


def test_only_the_published_inception_gives_a_fid() -> None:
    published = Naming.of("inception", published=True, wanted=None)
    assert choose(None, {}, published)[0] == "fid"
    assert not published.notes
    unknown = Naming.of("inception", published=False, wanted=("kid",))
    assert choose(["fd", "kid"], {}, unknown) == ("fd", "kid")
    assert "not known here" in unknown.notes[0]
    declared = Naming.of("inception", published=False, wanted=("fid", "fd_infinity"))
    assert choose(["fid", "fd_infinity"], {}, declared) == ("fid", "fid_infinity")
    assert "asked for" in declared.notes[0]
    for features in ("dinov2", "inception:64", "my-net"):
        other = Naming.of(features, published=True, wanted=("fid",))
        assert choose(["fid", "intra_fid"], {}, other) == ("fd", "intra_fd")
        assert features in other.notes[0]
        assert not Naming.of(features, published=False, wanted=("fd",)).notes


def test_labels_and_meanings_carry_the_protocol() -> None:
    protocol = {
        "k": 4,
        "density_k": 6,
        "labelled": 11,
        "kid_subsets": 100,
        "kid_subset_size": 7,
        "is_splits": 10,
        "memorization_ratio": 1 / 3,
        "reference_images": {"contrast": 0.25},
    }
    for key in MEASURES:
        assert "{" not in label(key, "dinov2") + meaning(key, protocol)
    assert label("fd", "fashion-mnist-classifier") == "FD (fashion-mnist)"
    assert label("fid", "inception") == "FID"
    assert "k = 4" in meaning("recall", protocol)
    assert meaning("contrast", protocol).endswith("0.2500 in the reference")

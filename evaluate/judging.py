"""One or several sets of samples against one reference: what is asked for, checked, then done in order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genflow.errors import InputError, check_choice, check_flag, check_number
from genflow.evaluate.evaluation import Evaluation, Side
from genflow.evaluate.facts import expected_facts, known_facts
from genflow.evaluate.feature_set import check_comparable
from genflow.evaluate.intervals import NOT_RESAMPLED, intervals, resampling
from genflow.evaluate.measures import COVERING, INTRA, MEASURES, NEEDS, Naming, choose, parse_metrics
from genflow.evaluate.pair import Pair, Settings
from genflow.evaluate.per_class import left_out_classes, per_class_table
from genflow.evaluate.record import notes_on, protocol_of, warnings_about
from genflow.evaluate.sides import Given, choose_extractor, complete, recognise
from genflow.metrics.features import DTYPES, Extractor

__all__ = ["Request", "check_draws", "judge"]

_EXTRAPOLATED = 27  # the fewest samples of which fifteen different numbers from a half on can be drawn


@dataclass(frozen=True)
class Request:
    """What is asked for beside samples and reference; see :func:`genflow.evaluate.run.evaluate_in_detail`.

    Raises InputError on a number or a name out of range.
    """

    features: str | Path | None = None
    weights: str | Path | None = None
    metrics: str | Iterable[str] | None = None
    resize: str | None = None
    count: int | None = None
    seed: int = 0
    k: int = 3
    density_k: int = 5
    strict: bool = False
    per_class: bool = False
    train: str | Path | None = None
    bootstrap: int = 0
    level: float = 0.95
    skip_bad: bool = False
    device: str | torch.device = "cpu"
    dtype: str = "float32"
    batch_size: int | None = None
    workers: int | None = None
    cache: bool | str | Path = True
    progress: bool = False
    settings: Settings = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", parse_metrics(self.metrics))
        object.__setattr__(
            self, "settings", Settings(self.k, self.density_k, self.strict, self.seed, self.device, self.progress)
        )
        check_flag("per_class", self.per_class)
        check_flag("skip_bad", self.skip_bad)
        check_draws(self.bootstrap)
        check_number("level", self.level, above=0, below=1)
        check_choice("dtype", self.dtype, DTYPES)
        for name, least in (("count", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=least, integer=True)

    @property
    def place(self) -> dict[str, Any]:
        """How a network runs."""
        batch = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return {"device": self.device, "dtype": self.dtype, **batch}

    @property
    def extraction(self) -> dict[str, Any]:
        """How images are seen."""
        names = ("batch_size", "workers", "skip_bad", "cache", "progress")
        return {name: getattr(self, name) for name in names}


def check_draws(bootstrap: int) -> None:
    """Raise InputError unless it is a number of resamples that has a scatter, or 0, which asks for none."""
    check_number("bootstrap", bootstrap, at_least=0, integer=True)
    if bootstrap == 1:
        raise InputError("bootstrap: got 1; allowed: 0 for no intervals, or an integer >= 2; 200 is usual")


def judge(sets: Sequence[Given], reference: str | Path, request: Request) -> list[Evaluation]:
    """Each of ``sets`` against ``reference``, all in the same features; the reference is seen once.

    All that can be told beforehand is told before any image is seen. Raises InputError.
    """
    theirs = recognise("reference", reference, features=request.features, **request.place)
    train = None
    if request.train is not None:
        train = recognise("train", request.train, features=request.features, **request.place)
    givens = [given for given in (theirs, *sets, train) if given is not None]
    extractor = choose_extractor(
        givens, request.features, weights=request.weights, resize=request.resize, **request.place
    )
    naming = _naming(extractor, theirs, request)
    by_class = request.per_class or any("labels" in MEASURES[key].needs for key in request.metrics or ())
    for ours in sets:
        facts = expected_facts(ours, theirs, train, extractor, by_class=by_class)
        keys = _plan(facts, naming, request)
        if request.count is not None and ours.number is not None and request.count > ours.number:
            raise InputError(f"count: got {request.count}; there are {ours.number} samples in {ours.name}")
        _check_number("samples", ours.name, request.count or ours.number, _least_samples(keys, request.k))
        _check_number("reference", theirs.name, theirs.number, _least(keys, max(request.k, request.density_k)))

    needed = request.metrics is None or request.per_class or any("features" in MEASURES[key].needs for key in keys)
    names = _class_names(extractor, theirs, request)
    real = complete(theirs, extractor, class_names=names, need_features=needed, **request.extraction)
    names = names or real.features.class_names
    copied = None if train is None else complete(train, extractor, **request.extraction)
    found = []
    for ours in sets:
        made = complete(
            ours, extractor, class_names=names, count=request.count, seed=request.seed, **request.extraction
        )
        remarks = check_comparable(made.features, real.features)
        if copied is not None:
            remarks += check_comparable(made.features, copied.features)
        found.append(_evaluate(ours, theirs, made, real, copied, naming, request, remarks))
    return found


def _evaluate(
    ours: Given,
    theirs: Given,
    made: Side,
    real: Side,
    train: Side | None,
    naming: Naming,
    request: Request,
    remarks: list[str],
) -> Evaluation:
    pair = Pair(made.features, real.features, request.settings, None if train is None else train.features)
    keys = _plan(known_facts(pair), naming, request)
    _check_number("samples", ours.name, pair.generated.statistics.count, _least_samples(keys, request.k))
    left_out = left_out_classes(pair) if request.per_class else []
    if left_out and not any(key in INTRA for key in request.metrics or ()):
        keys = tuple(key for key in keys if key not in INTRA)  # the table tells of the other classes
    metrics = {key: MEASURES[key].value(pair) for key in keys}
    spreads = {key: MEASURES[key].spread(pair) for key in keys if MEASURES[key].spread is not None}
    bounds = intervals(pair, metrics, request.bootstrap, level=request.level, seed=request.seed)
    given = {
        "samples": ours.name,
        "reference": theirs.name,
        "train": None if request.train is None else str(request.train),
        "bootstrap": resampling(request.bootstrap if bounds else 0, request.level, request.seed),
    }
    protocol = protocol_of(pair, keys, given)
    protocol["notes"] = [*naming.notes, *notes_on(pair)]
    protocol["warnings"] = [*warnings_about(pair, keys), *left_out, *dict.fromkeys(remarks)]
    if request.bootstrap and not bounds:
        protocol["warnings"].append(NOT_RESAMPLED.format(ours.name))
    result = {
        "metrics": metrics,
        "spreads": spreads,
        "intervals": bounds,
        "per_class": per_class_table(pair) if request.per_class else None,
        "protocol": protocol,
    }
    return Evaluation(
        result,
        made,
        real,
        neighbours=pair.done("neighbours"),
        extrapolation=pair.done("extrapolation"),
        memorization=pair.done("memorization"),
        train=train,
        pair=pair,
    )


def _plan(facts: Mapping[str, bool | None], naming: Naming, request: Request) -> tuple[str, ...]:
    """The metrics to compute, as far as ``facts`` tell. Raises InputError for one that cannot be had."""
    if request.per_class:
        for need in ("features", "labels", "reference_labels"):
            if facts.get(need) is False:
                raise InputError(f"per_class: needs {NEEDS[need]}")
    return choose(request.metrics, facts, naming, extra=("intra_fd",) if request.per_class else ())


def _naming(extractor: Extractor | None, theirs: Given, request: Request) -> Naming:
    network = str(theirs.known.protocol.get("features", "unnamed features")) if extractor is None else extractor.name
    return Naming.of(network, published=getattr(extractor, "published", False), wanted=request.metrics)


def _class_names(extractor: Extractor | None, theirs: Given, request: Request) -> tuple[str, ...] | None:
    """By which labels are understood: the network's classes, but those of the reference where they have no name in
    common and figures by class are asked for."""
    names = None if extractor is None else extractor.class_names
    if names and request.per_class and theirs.source is not None:
        own = theirs.source.class_names
        if own and not set(own) & set(names):
            return own
    return names


def _least(keys: Sequence[str], k: int) -> int:
    """How many samples there have to be on a side: two for a covariance, one more than the neighbours asked for."""
    return max(k + 1, 2) if any(key in COVERING for key in keys) else 2


def _least_samples(keys: Sequence[str], k: int) -> int:
    """The same of the samples alone, of which an extrapolation takes subsets of different sizes."""
    extrapolated = any(key in ("fid_infinity", "fd_infinity") for key in keys)
    return max(_least(keys, k), _EXTRAPOLATED if extrapolated else 2)


def _check_number(argument: str, name: str, number: int | None, least: int) -> None:
    if number is not None and number < least:
        raise InputError(f"{argument}: {number} of {name} can be judged; at least {least} are needed")

"""Recipes: everything that decides a training run, read from YAML and checked by name before any work starts."""

import contextlib
import copy
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from genflow.errors import InputError, nearest
from genflow.optim.registry import check_name
from genflow.options import parse_entry

__all__ = ["Recipe", "Section", "build_recipe", "load_recipe"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, and no key but its own."""

    # YAML has a word for infinity; without the last option it would be written as null
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class DataSection(Section):
    """Where the images come from; see :func:`genflow.training.load_images`."""

    source: str = Field(description="fashion-mnist, a folder, an .npz/.npy, an IDX file or a data set's id")
    split: Literal["train", "test"] = "train"
    classes: list[str | int] | None = Field(None, description="only images of these, by name or number")
    flip: bool = Field(False, description="mirror half of the images left to right")


class NetworkSection(Section):
    """Which network; ``options`` go to its constructor as they are."""

    type: Literal["lean-unet", "unet2d", "dit"] = "lean-unet"
    options: dict[str, Any] = {}


class PathSection(Section):
    """Which Gaussian path; ``options`` are the keys of diffusers' scheduler configs (beta_schedule, sigma_max ...).

    ``pfgm++`` has ``D`` besides: a number > 0 or inf, 128 by default.
    """

    type: Literal["linear", "trigonometric", "vp", "edm", "pfgm++"] = "linear"
    options: dict[str, Any] = {}


class ObjectiveSection(Section):
    """What the network learns, and how training times are drawn; see :mod:`genflow.training.objectives`."""

    type: Literal["velocity", "epsilon", "sample", "v_prediction", "edm", "pfgm++"] = "velocity"
    times: Literal["logit-normal", "uniform", "log-normal", "u-shaped"] = "logit-normal"
    times_mean: float = 0.0
    times_std: Positive = 1.0
    times_shape: Positive = 4.0
    error: Literal["l2", "pseudo-huber", "lpips-huber"] = "l2"
    label_dropout: Fraction = 0.1


class InterpolantSection(Section):
    """A flow between two sets of images: ``data`` stands at t = 0, the ``source`` of this section at t = 1.

    It takes the place of ``path`` and ``objective``; ``coupling`` says which image of a micro-batch goes with which.
    See :mod:`genflow.training.two_sided`.
    """

    source: str | None = Field(None, description="the images at t = 1, as in data; a mirror interpolant has none")
    split: Literal["train", "test"] = "train"
    classes: list[str | int] | None = Field(None, description="only images of these, by name or number")
    type: Literal["linear", "trigonometric", "encoder-decoder", "mirror"] = "linear"
    gamma: str | dict[str, Any] | None = Field(
        None, description="latent noise: brownian, parabola, sine, sigmoid, zero, or {name: brownian, scale: 0.5}"
    )
    learns: list[Literal["velocity", "flow", "denoiser", "score"]] = Field(
        ["velocity", "denoiser"], description="what the one network gives; an SDE needs a denoiser or a score"
    )
    pairing: Literal["independent", "paired"] = Field(
        "independent", description="paired: images of the same name in both folders, or at the same place in arrays"
    )
    class_wise: bool = Field(False, description="pair within classes, and tell the network the class")
    antithetic: bool = Field(True, description="use each latent noise with both signs")
    margin: Annotated[float, Field(ge=0, lt=0.5)] = Field(1e-3, description="how far times stay from 0 and 1")
    epsilon: Annotated[float, Field(ge=0)] = Field(0.0, description="noise of the finished pipeline's SDE; 0: the ODE")


class CouplingSection(Section):
    """Which noise, or which image at t = 1, goes with which image of a batch; see :mod:`genflow.transport.couplings`.

    In short ``coupling: sinkhorn-newton``, or ``sinkhorn-newton:reg=0.05`` with options. Each micro-batch is coupled by
    itself. Samplers that add noise do not fit a coupled model.
    """

    type: Literal["independent", "exact", "sinkhorn", "sinkhorn-newton"] = "independent"
    options: dict[str, Any] = Field({}, description="reg and tolerance of the entropic ones")
    class_wise: bool | Literal["auto"] = Field("auto", description="each class by itself; auto: where there are labels")

    def model_post_init(self, _: Any) -> None:
        if "class_wise" in self.options:
            raise InputError("options: class_wise is a key of its own")
        if self.type != "independent" or self.options:
            from genflow.transport import create_coupling

            create_coupling(self.type, class_wise=self.class_wise, **self.options)


def _coupling_section(value: Any) -> Any:
    """The section that a name, with options or without, is short for."""
    if not isinstance(value, str):
        return value
    entry = parse_entry("coupling", value)
    own = {key: entry.options.pop(key) for key in ("class_wise",) if key in entry.options}
    return {"type": entry.name, "options": entry.options, **own}


class OptimizerSection(Section):
    """An optimizer by name, see :func:`genflow.optim.create_optimizer`; biases, norms and embeddings do not decay."""

    name: Annotated[str, AfterValidator(check_name)] = Field("adamw", description="a name, or package.module:Class")
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    options: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = Field({}, description="options by the names of the network's parts")


class ScheduleSection(Section):
    """The learning rate: linear warm-up, then a cosine to ``final`` times the peak, or constant."""

    warmup_steps: Annotated[int, Field(ge=0)] = 500
    decay: Literal["cosine", "constant"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0


class EMASection(Section):
    """Averaged weights: decay at step n is ``min(decay, 1 - (1 + n)^-power)`` (diffusers' warm-up)."""

    decay: Fraction = 0.9999
    power: Positive = 0.75


class BudgetSection(Section):
    """When training ends: after so many images, or so many minutes of this process's CPU time."""

    images: Count | None = None
    cpu_minutes: Positive | None = None


class LogSection(Section):
    """What is written while training, and how often."""

    every_steps: Count = 50
    checkpoint_every_steps: Count = 500
    keep_checkpoints: Count = 2
    sample_every_steps: Annotated[int, Field(ge=0)] = Field(2000, description="0: no sample grids")


class DynamicsSection(Section):
    """Sharpness, stability and spectrum of the loss while training; see :mod:`genflow.training.dynamics`."""

    enabled: bool = False
    every_steps: Count = 1000
    images: Count = Field(64, description="images that are measured on, the same all run long")
    micro_batch: Count = Field(64, description="images at a time; memory grows with it, and time where it is fewer")
    lanczos_steps: Count = Field(12, description="Hessian products, at most, for an eigenvalue or a probe")
    probes: Annotated[int, Field(ge=0)] = Field(1, description="probes of spectrum and trace; 0: neither")
    max_share: Fraction | None = Field(0.2, description="of the run's time; measurements beyond it are left out")


class GrowthSection(Section):
    """Batches that grow by AdAdaGrad's tests (arXiv 2402.11215): more micro-batches a step, see
    :class:`genflow.optim.BatchSizeController`. The first ones are ``batch_size`` in ``accumulate`` micro-batches.
    """

    test: Literal["norm", "coordinate", "inner-product", "orthogonality", "augmented"] = "norm"
    eta: Positive = Field(0.5, description="of the norm and coordinate tests; smaller asks for larger batches")
    theta: Positive = Field(0.5, description="of the inner-product test")
    nu: Positive = Field(1.0, description="of the orthogonality test")
    quantile: Fraction = Field(0.5, description="of the coordinates that decide the coordinate test; 1: the worst")
    every_steps: Count = Field(10, description="steps between tests; each keeps copies of the gradient")
    max_batch_size: Count = 4096


class SamplingSection(Section):
    """Defaults that the finished pipeline carries, also used for the sample grids."""

    scheduler: Literal["euler", "heun"] = "heun"
    steps: Count = 18
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0
    guidance_interval: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] | None = Field(
        None, description="noise levels between which guidance acts"
    )


class Recipe(Section):
    """One training run."""

    data: DataSection
    network: NetworkSection = NetworkSection()
    path: PathSection = PathSection()
    objective: ObjectiveSection = ObjectiveSection()
    coupling: Annotated[CouplingSection, BeforeValidator(_coupling_section)] = CouplingSection()
    interpolant: InterpolantSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EMASection = EMASection()
    budget: BudgetSection
    batch_size: Count = Field(128, description="images a step, over all processes and accumulated micro-batches")
    accumulate: Count = Field(1, description="micro-batches a step")
    batch_growth: GrowthSection | None = None
    clip_norm: Positive | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    log: LogSection = LogSection()
    dynamics: DynamicsSection = DynamicsSection()
    sampling: SamplingSection = SamplingSection()

    def model_post_init(self, _: Any) -> None:
        if self.budget.images is None and self.budget.cpu_minutes is None:
            raise InputError("budget: got neither images nor cpu_minutes; allowed: at least one of them")
        denoised = ("edm", "pfgm++")
        if self.objective.type != self.path.type and {self.objective.type, self.path.type} & set(denoised):
            raise InputError(
                f"objective.type: {self.objective.type!r} on the {self.path.type!r} path; "
                "allowed: edm on the edm path, pfgm++ on the pfgm++ path, the others on the other paths"
            )
        if (self.objective.times == "log-normal") != (self.path.type in denoised):
            raise InputError(
                f"objective.times: {self.objective.times!r} on the {self.path.type!r} path; "
                "allowed: log-normal on the edm and the pfgm++ path, the others on the other paths"
            )
        if self.interpolant is not None:
            unused = {"path": PathSection(), "objective": ObjectiveSection()}
            for key, default in unused.items():
                if getattr(self, key) != default:
                    raise InputError(f"{key}: given together with interpolant, which takes its place")
            if (self.interpolant.source is None) != (self.interpolant.type == "mirror"):
                raise InputError(
                    f"interpolant.source: {self.interpolant.source!r} with the {self.interpolant.type!r} interpolant; "
                    "allowed: images for every interpolant but the mirror, which has none"
                )
            one_way = self.interpolant.pairing == "paired" or self.interpolant.type == "mirror"
            if self.coupling.type != "independent" and one_way:
                raise InputError(
                    f"coupling: {self.coupling.type!r}; allowed for a mirror or paired images: independent"
                )
            if self.coupling.class_wise not in ("auto", self.interpolant.class_wise):
                raise InputError(
                    f"coupling.class_wise: {self.coupling.class_wise}, and interpolant.class_wise is "
                    f"{self.interpolant.class_wise}; allowed: auto, or the same"
                )
        if self.batch_size % self.accumulate:
            raise InputError(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


R = typing.TypeVar("R", bound=Section)


def load_recipe(
    recipe: str | Path,
    overrides: typing.Sequence[str] = (),
    kind: type[R] = Recipe,  # type: ignore[assignment]
    defaults: dict[str, Any] | None = None,
) -> R:
    """Read a recipe and check it.

    Args:
        recipe: the name of a shipped one (``assets/recipes/NAME.yaml``), or a YAML file.
        overrides: ``"optimizer.lr=3e-4"`` and the like; the values are YAML.
        kind: the class that the recipe is one of.
        defaults: values that stand where the recipe says nothing, section by section.

    Raises:
        InputError: no such recipe, broken YAML, an unknown key (with the nearest known one), a value out of range.
    """
    path = Path(recipe)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        from genflow.assets import recipe_path

        path = recipe_path(str(recipe))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe: {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe: {path} holds no keys; allowed: {', '.join(kind.model_fields)}")
    return build_recipe(values, overrides, kind, defaults, path.name)


def build_recipe(
    values: dict[str, Any],
    overrides: typing.Sequence[str] = (),
    kind: type[R] = Recipe,  # type: ignore[assignment]
    defaults: dict[str, Any] | None = None,
    name: str = "recipe",
) -> R:
    """A checked recipe from the values that a file ``name`` would hold; else as :func:`load_recipe`."""
    values = _merged(defaults or {}, values)
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_describe(error, name, kind)) from error


def _merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over ``defaults``, dictionary by dictionary; a copy."""
    merged = copy.deepcopy(defaults)
    for key, value in values.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set: got {override!r}; allowed: KEY=VALUE, such as optimizer.lr=3e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key}: {text!r} is not a YAML value") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 3e-4 as a word, since it wants a dot
            value = float(value)
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {key}: {section!r} is a value, not a section")
        values = inner
    values[last] = value


def _keys_at(location: tuple[Any, ...], kind: type[Section]) -> list[str]:
    """The known keys of the section that ``location`` leads to in a ``kind``."""
    model: Any = kind
    for part in location:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = field.annotation
        if isinstance(model, types.UnionType):
            model = next((a for a in typing.get_args(model) if a is not type(None)), model)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _describe(error: ValidationError, name: str, kind: type[Section]) -> str:
    """The first complaint, as one line: the key, what came, what is allowed."""
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], kind)
        return f"{name}: unknown key {key!r}{nearest(str(location[-1]), known)}; known here: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{name}: {key!r} is missing"
    own = first.get("ctx", {}).get("error")
    if isinstance(own, InputError) and not location:  # a check of the whole, which names its key
        return f"{name}: {own}"
    return f"{name}: {key}: got {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}"

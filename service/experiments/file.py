"""The experiment file: what it may say, and what makes it valid (docs/experiments.md documents every key).

YAML or JSON. Refused whole when anything is wrong; nothing in it is ever repaired: weights that sum to 0.9 are an
error, not 0.9 of the traffic. Knows nothing of bundles: whether a model is there is the registry's question.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
from collections.abc import Hashable, Iterable
from decimal import ROUND_CEILING, Decimal
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from models.problems import problems_of
from service.errors import ExperimentError
from service.experiments.assignment import BUCKETS, HASHES, Assigner, HashName, Layer, Range, arm_ranges

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
MAX_FILE_BYTES = 1 << 20
MAX_YAML_CHARACTERS = 1 << 16
"""The YAML reader takes seconds a megabyte, and following the file waits for it. JSON may be longer."""
MAX_YAML_DEPTH = 32
MAX_INTEGER = (1 << 31) - 1


def _as_written(value: object) -> object:
    """A share as the decimal the file shows: 0.57 is 57 hundredths, not the nearest binary fraction."""
    if isinstance(value, (str, bool)):
        raise ValueError(f"expected a number, got {str(value)[:60]!r}")
    return Decimal(repr(value)) if isinstance(value, float) and math.isfinite(value) else value


def _number_or_latest(value: object) -> int | Literal["latest"]:
    if value == "latest":
        return "latest"
    if type(value) is int and 1 <= value <= MAX_INTEGER:
        return value
    raise ValueError(f"expected a whole number from 1, or latest (at most {MAX_INTEGER})")


Share = Annotated[Decimal, BeforeValidator(_as_written), Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Arm(_Part):
    """One way to answer: a model, and the share of the units it gets."""

    name: Name
    """What answers, metrics and analysis call it."""

    model: Name
    """The model that answers: a folder of the repository."""

    version: Annotated[int | Literal["latest"], PlainValidator(_number_or_latest)] = "latest"
    """A number, or `latest`: the model's live version at the moment the phase starts."""

    follow: bool = False
    """With `latest`: go along when the live version changes within the phase (results are then split by version)."""

    weight: Share
    """Share of the experiment's units, in steps of 0.0001; the arms' weights sum to 1."""

    fallback: Name | None = None
    """The arm whose model answers when this one cannot meet a deadline or fails. Absent: an ensemble's arm falls back
    to the first arm with a distilled student, or else with any model that is no ensemble."""

    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False, strict=True)] | None = None
    """From the first byte of a request: where this arm's model cannot answer within it, its fallback does. Says who
    answers, never that nobody does: that is the request's own `deadline_ms`."""

    @model_validator(mode="after")
    def _follow_needs_latest(self) -> Self:
        if self.follow and self.version != "latest":
            raise ValueError("follow: true needs version: latest (a number never changes)")
        return self

    @field_validator("weight")
    @classmethod
    def _weight_is_whole_buckets(cls, weight: Decimal) -> Decimal:
        if weight * BUCKETS % 1 != 0:
            raise ValueError("expected a multiple of 0.0001")
        return weight


_Bucket = Annotated[int, Field(ge=0, le=BUCKETS, strict=True)]


class LayerPlace(_Part):
    """The share of a layer that an experiment owns."""

    name: Name
    """The layer."""

    buckets: tuple[_Bucket, _Bucket] = (0, BUCKETS)
    """[first, one past the last] of the layer's 10,000 buckets. Experiments of one layer may not overlap."""

    @model_validator(mode="after")
    def _buckets_hold_some(self) -> Self:
        if self.buckets[0] >= self.buckets[1]:
            raise ValueError("buckets: the first must be below the second")
        return self


class Shadow(_Part):
    """A sample of what was answered is scored by another arm too, unseen: by this one; what it answered itself, by
    control; and what control answered, where this is control, by the first treatment."""

    arm: Name
    """The arm whose model scores in the shadow."""

    sample: Share
    """Share of the scored requests."""


class GuardRails(_Part):
    """Bounds beyond which the analysis halts an arm. Read, checked, not yet acted on."""

    max_error_rate: Share | None = None
    """Share of an arm's requests that may fail."""

    max_fallback_rate: Share | None = None
    """Share of an arm's requests that may be answered by another."""

    max_p99_ms: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """Latency."""

    max_calibration_error: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """|ln(predicted/actual)| that may not be exceeded with confidence."""

    max_ctr_loss: Share | None = None
    """Relative loss of CTR against control that may not be exceeded with confidence."""


class Ramp(_Part):
    """How the coverage grows by itself (`python -m service ramp`), while everything is well."""

    steps: Annotated[tuple[Share, ...], Field(min_length=1, max_length=100)] = tuple(
        Decimal(share) for share in ("0.01", "0.05", "0.1", "0.25", "0.5")
    )
    """Shares of the units that treatment arms get, one after the other; of the units that the experiment's layer lets
    in."""

    hold_seconds: Annotated[float, Field(ge=0, le=10**8, allow_inf_nan=False)] = 86400.0
    """How long each step lasts at least: a day shows what only happens at night."""

    minimum_impressions: Annotated[int, Field(ge=1, le=10**12, strict=True)] = 1000
    """Impressions that every arm must have had since the step began, old enough for their clicks to be in."""

    paused: bool = False
    """Whether the ramp stays where it is."""

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        if self.steps[0] == 0 or any(low >= high for low, high in itertools.pairwise(self.steps)):
            raise ValueError("steps: expected shares above 0, each above the one before")
        return self


class Analysis(_Part):
    """What is stated before the experiment, so that nobody chooses it by the result (docs/answers.md)."""

    alpha: Annotated[float, Field(gt=0, lt=0.5, allow_inf_nan=False)] = 0.05
    """Share of experiments without an effect that may ever seem to have one, all arms and looks together."""

    minimum_effect: Annotated[float, Field(gt=-1, lt=10, allow_inf_nan=False)] = 0.0
    """Relative lift of CTR that an arm must be better than: .02, or -.01 where losing less than that is fine."""

    expected_impressions: Annotated[int, Field(ge=1000, le=10**12, strict=True)] = 5000
    """Impressions, of both arms, at which a decision is expected: there the confidence sequence is narrowest."""

    attribution_window_seconds: Annotated[float, Field(ge=0, le=10**8, allow_inf_nan=False)] = 86400.0
    """A click counts within this time; impressions younger than it wait."""


def _plain(value: object) -> object:
    """Decimals as the numbers that read back as the same decimals; the rest as it is."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


class Experiment(_Part):
    """One experiment in one phase."""

    name: Name
    """What requests, answers and metrics call it."""

    salt: Annotated[str, Field(min_length=1, max_length=200)]
    """Hashed with the unit. A new phase needs a new one."""

    hash: HashName = "sha256"
    """What makes a bucket of salt and unit: the published sha256, or GrowthBook's (version 2)."""

    phase: Annotated[int, Field(ge=1, le=MAX_INTEGER, strict=True)] = 1
    """Counts up when weights, arms or models change: no analysis mixes two phases."""

    coverage: Share = Decimal(1)
    """Share of each arm's units that is enrolled; the rest gets control. Raising it moves nobody."""

    default: bool = False
    """Requests that name no experiment belong to this one. Exactly one experiment is the default."""

    layer: LayerPlace | None = None
    """The layer the experiment lives in, if any."""

    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=100)]
    """In order; the first is control."""

    shadow: Shadow | None = None
    guard_rails: GuardRails | None = None
    ramp: Ramp | None = None
    """Steps in which the coverage grows by itself; needs a guard-rail."""

    analysis: Analysis = Analysis()

    halted: tuple[Name, ...] = ()
    """Arms that are switched off: their units get control. Control itself cannot be halted."""

    @property
    def control(self) -> Arm:
        return self.arms[0]

    def arm_index(self, name: str) -> int | None:
        """The place of an arm by name, or None."""
        return next((index for index, arm in enumerate(self.arms) if arm.name == name), None)

    def content(self) -> dict[str, Any]:
        """What the file says of it, as JSON-able values; keys that it leaves out are left out here."""
        content = _plain(self.model_dump(exclude_unset=True))
        assert isinstance(content, dict)
        return content

    def tag(self) -> str:
        """A hash of all that is stated, defaults included: equal for two experiments that are the same."""
        text = json.dumps(_plain(self.model_dump()), sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    def ranges(self) -> list[Range]:
        """The buckets of each arm under the coverage."""
        return arm_ranges([arm.weight for arm in self.arms], self.coverage)

    def ramp_coverages(self) -> list[Decimal]:
        """The coverage at each step of the ramp; none without one.

        The smallest of eight places at which an arm has no bucket less than its share of the step.
        """
        treated = 1 - self.control.weight
        steps = () if self.ramp is None else self.ramp.steps
        return [(step / treated).quantize(Decimal("1e-8"), ROUND_CEILING) for step in steps]

    @model_validator(mode="after")
    def _ramp_can_be(self) -> Self:
        if self.ramp is None:
            return self
        treated = 1 - self.control.weight
        if self.ramp.steps[-1] > treated:
            raise ValueError(
                f"ramp: steps: treatment arms have a weight of {treated.normalize():f}, which is the most a step can "
                f"give them, got {self.ramp.steps[-1].normalize():f}"
            )
        if self.guard_rails is None or all(bound is None for bound in self.guard_rails.model_dump().values()):
            raise ValueError(
                "ramp: expected at least one bound in guard_rails: a ramp goes on only where they are kept"
            )
        return self

    @model_validator(mode="after")
    def _arms_agree(self) -> Self:
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"arm '{name}' stands twice")
        total = sum((arm.weight for arm in self.arms), Decimal(0))
        if total != 1:
            raise ValueError(f"the arms' weights sum to {total.normalize():f}, expected 1")
        mentioned = [("halted", name) for name in self.halted]
        mentioned += [("fallback", arm.fallback) for arm in self.arms if arm.fallback is not None]
        mentioned += [("shadow", self.shadow.arm)] if self.shadow is not None else []
        for key, name in mentioned:
            if name not in names:
                raise ValueError(f"{key}: no arm is called '{name}' (arms: {', '.join(names)})")
        if self.control.name in self.halted:
            raise ValueError(f"halted: '{self.control.name}' is control, which cannot be halted")
        for arm in self.arms:
            if arm.fallback == arm.name:
                raise ValueError(f"fallback: arm '{arm.name}' cannot fall back to itself")
        return self


class LayerSpec(_Part):
    """A layer: its experiments share its buckets; two layers are independent of each other."""

    name: Name
    """What experiments refer to."""

    salt: Annotated[str, Field(min_length=1, max_length=200)]
    """Hashed with the unit, as an experiment's salt is."""


class ExperimentFile(_Part):
    """The whole file."""

    format_version: Literal[1]
    """1."""

    layers: tuple[LayerSpec, ...] = ()
    """Only where experiments must exclude each other."""

    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1, max_length=1000)]
    """Every experiment that is running."""

    @property
    def default(self) -> Experiment:
        return next(experiment for experiment in self.experiments if experiment.default)

    def assigner(self, experiment: Experiment) -> Assigner:
        """The assignment of one of this file's experiments."""
        layer = None
        if (place := experiment.layer) is not None:
            salt = next(layer.salt for layer in self.layers if layer.name == place.name)
            layer = Layer(salt, Range(*place.buckets))
        return Assigner(experiment.salt, tuple(experiment.ranges()), layer, HASHES[experiment.hash])

    @model_validator(mode="after")
    def _experiments_agree(self) -> Self:
        for key, names in (
            ("experiment", [experiment.name for experiment in self.experiments]),
            ("layer", [layer.name for layer in self.layers]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{key} '{name}' stands twice")
        defaults = [experiment.name for experiment in self.experiments if experiment.default]
        if len(defaults) != 1:
            raise ValueError(f"expected exactly one experiment with default: true, got {len(defaults)}")
        salts: dict[str, str] = {}
        owners = [(f"experiment '{experiment.name}'", experiment.salt) for experiment in self.experiments]
        owners += [(f"layer '{layer.name}'", layer.salt) for layer in self.layers]
        for owner, salt in owners:
            if salt in salts:
                raise ValueError(f"{owner} has the salt of {salts[salt]}: the two would not be independent")
            salts[salt] = owner
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        known = {layer.name for layer in self.layers}
        placed: dict[str, list[tuple[int, int, str]]] = {}
        for experiment in self.experiments:
            if experiment.layer is None:
                continue
            if experiment.layer.name not in known:
                raise ValueError(f"experiment '{experiment.name}': no layer is called '{experiment.layer.name}'")
            placed.setdefault(experiment.layer.name, []).append((*experiment.layer.buckets, experiment.name))
        for layer, places in placed.items():
            places.sort()
            for (_, stop, first), (start, _, second) in itertools.pairwise(places):
                if start < stop:
                    raise ValueError(f"layer '{layer}': experiments '{first}' and '{second}' overlap")


def _refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A key that stands twice would silently lose one of its values."""
    _refuse_duplicates(key for key, _ in pairs)
    return dict(pairs)


def _refuse_duplicates(keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if isinstance(key, Hashable):  # another key is refused by YAML itself
            if key in seen:
                raise ValueError(f"key '{key}' stands twice in one object")
            seen.add(key)


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases that explode, without a key that stands twice, and not nested for ever."""

    _depth = 0

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # Before the parser comes to it: the scanner looks ahead, in quadratic time.
        if self.flow_level >= MAX_YAML_DEPTH:
            raise ValueError(f"nested more than {MAX_YAML_DEPTH} deep")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("YAML aliases are not used here")
        if self._depth > MAX_YAML_DEPTH:
            raise ValueError(f"nested more than {MAX_YAML_DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: yaml.Node) -> Any:
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 4000:  # 0xfff...: Python will not show it
            raise ValueError("a number of too many digits")
        return super().construct_scalar(node)  # type: ignore[arg-type]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_duplicates(keys)
        return super().construct_mapping(node, deep)


def decode_json(text: str) -> Any:
    """What JSON says, a key that stands twice refused. `ValueError` or `RecursionError` where it is none."""
    return json.loads(text, object_pairs_hook=_refuse_duplicate_keys)


def is_json(text: str) -> bool:
    """Whether a file is read as JSON; else as YAML."""
    return text.lstrip().startswith("{")


def decode_experiments(text: str, source: str) -> dict[str, Any]:
    """What a file says, not yet known to be valid; `ExperimentError` where it is neither YAML nor JSON."""
    try:
        if is_json(text):
            data = decode_json(text)
        elif len(text) > MAX_YAML_CHARACTERS:
            raise ExperimentError(f"{source}: longer than {MAX_YAML_CHARACTERS} characters of YAML: write it as JSON")
        else:
            data = yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML fails in many ways where a tag and its value do not fit.
        what = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            what = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        raise ExperimentError(f"{source}: neither valid YAML nor valid JSON: {what}") from None
    if not isinstance(data, dict):
        raise ExperimentError(f"{source}: expected an object with `format_version` and `experiments`")
    return data


def parse_experiments(text: str, source: str) -> ExperimentFile:
    """A valid experiment file, or `ExperimentError` that names `source`, the place in it and what was expected."""
    return validate_experiments(decode_experiments(text, source), source)


def validate_experiments(data: object, source: str) -> ExperimentFile:
    """The same of what was decoded."""
    try:
        return ExperimentFile.model_validate(data)
    except ValidationError as error:
        raise ExperimentError(f"{source}: {problems_of(error, ExperimentFile)[0]}") from None


def validate_experiment(data: object, source: str) -> Experiment:
    """One experiment, by the same rules, but for those that hold between experiments."""
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise ExperimentError(f"{source}: {problems_of(error, Experiment)[0]}") from None


def read_experiments(path: Path) -> ExperimentFile:
    """The experiment file at `path`; `ExperimentError` if it cannot be read or is not valid."""
    return parse_experiments(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The file's text; `ExperimentError` if it cannot be read, is too long or is no text."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ExperimentError(f"{path}: no regular file")
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ExperimentError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ExperimentError(f"{path}: not UTF-8 text") from None

"""A recipe: everything a run depends on, in one YAML file, checked whole before anything runs.

`load_recipe("synthetic")` reads a shipped recipe, `load_recipe("my/log.yaml")` yours. `--set a.b=c` overrides one value
by its path, written as YAML: `--set student.fit.kd_weight=0.5 --set teachers.dnn=null` (null drops a teacher).
The recipe travels into the bundle it produces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.documents import DocumentError, parse_document
from models.problems import problems_of, shown
from models.schema import FeatureSchema
from training.data.sources import FilesSettings, RealSettings, Unlabelled
from training.data.split import Split
from training.distillation.distill import DistillOptions
from training.distillation.gate import GateOptions
from training.distillation.shares import Copies
from training.distillation.together import Cotrain, Mutual, Pretrain
from training.errors import RecipeError
from training.export.quantize import Quantize
from training.fit.devices import SETTING
from training.fit.loop import FitOptions, NetworkSpec
from training.fit.negatives import EVERY_ROW, Negatives
from training.zoo.embedding import FieldSpec

NOT_OF_MUTUAL = ("temperature", "scale_by_tau_squared", "losses", "aggregate", "auxiliary_head")
"""Settings of `student.fit` that mean nothing to peers, which teach by a loss of their own."""
TUNED_OPTIONS = ("init_sd", "dropout")
"""Of a network's options, those in which two that are compared may differ."""
SHIPPED = Path(__file__).parent / "recipes"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SyntheticSettings(_Settings):
    """The built-in log, made by `training/data/synthetic/`: needs no file, and its true probabilities are known."""

    kind: Literal["synthetic"]
    seed: int = Field(0, ge=0)
    """Seed of the world and of its log. Seeds of training are another matter: `--seeds`."""
    rows: int = Field(185_000, ge=1_000)
    """Impressions in the whole log."""
    days: int = Field(8, ge=3, le=365)
    """Days it spans."""


SourceSettings = Annotated[SyntheticSettings | FilesSettings | RealSettings, Field(discriminator="kind")]


def _by_name(value: Any) -> Any:
    """`scheme: cotrain` is short for `scheme: {kind: cotrain}`."""
    return {"kind": value} if isinstance(value, str) else value


Scheme = Annotated[Pretrain | Cotrain | Mutual, Field(discriminator="kind"), BeforeValidator(_by_name)]


class Teacher(NetworkSpec):
    """One of the ensemble, or several of one architecture: a network and how it is trained on clicks."""

    fit: FitOptions
    """Learning rate, batch, epochs, patience."""
    copies: Copies | None = None
    """As many teachers, <name>-1, <name>-2, ..., that differ in their seed or in the rows they see."""


class ControlOptions(FitOptions):
    """As for a teacher, with as many epochs as a student has."""

    max_epochs: int = Field(default=DistillOptions.model_fields["max_epochs"].default, ge=1)
    patience: int = Field(default=DistillOptions.model_fields["patience"].default, ge=1)


class Untaught(NetworkSpec):
    """The control: the student's network and how it is trained on clicks alone."""

    fit: ControlOptions
    """Learning rate, batch, epochs, patience."""


class Distilled(NetworkSpec):
    """The student: a network and how it is trained on the ensemble's soft labels."""

    fit: DistillOptions
    """As for a teacher, with the weight of the distillation loss and its temperature."""


class OtherStudent(NetworkSpec):
    """A student of another network than the recipe's own: distilled as that one, by settings found for this one."""

    fit: ControlOptions
    """Learning rate, batch, epochs, patience. Weights, losses and temperature are those of the recipe's student."""


class Recipe(_Settings):
    """One run, from the log to the exported models."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Names the folder under runs/."""
    description: str = ""
    """For people: what this log is and what to expect."""
    source: SourceSettings
    """Where the rows come from."""
    schema_file: str | None = None
    """The log's FeatureSchema, relative to the recipe file. The synthetic log brings its own."""
    split: Split
    """Which rows train, validate and test."""
    unlabelled: Unlabelled | None = None
    """Further rows, without clicks, that the student learns from as the ensemble labels them."""
    scheme: Scheme = Pretrain()
    """When teachers and student train: pretrain, cotrain or mutual."""
    teachers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")], Teacher] = Field(min_length=1)
    """The ensemble, by name, in this order."""
    warm_start: str | None = None
    """The folder of an earlier run that encoders and networks start from, relative to the recipe file."""
    negatives: Negatives = EVERY_ROW
    """Which rows without a click are trained on; undone in the exported graph."""
    for_teachers: list[str] = Field(default_factory=list)
    """training_only fields that teachers learn from, while student and control see their serving_value throughout."""
    gate: GateOptions = GateOptions()
    """How the ensemble weighs its teachers."""
    student: Distilled
    """What serves the traffic in the end."""
    control: Untaught
    """The student's own network on hard labels: what a user runs today, tuned as hard as the student."""
    zoo: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")], Teacher] = {}
    """Networks that only comparisons train (`training ablate`), by the name of the network: sizes and settings tuned
    like the teachers'."""
    students: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")], OtherStudent] = {}
    """Students that only comparisons train, by the name of the network: tuned for what a student learns from, which is
    not clicks."""
    device: str = Field(default="auto", pattern=SETTING)
    """Where networks train: auto (every CUDA GPU there is, else the CPU), cpu, cuda, or one GPU as cuda:0."""
    quantize: Quantize | None = None
    """A graph of the student in smaller numbers, served in place of the float32 one where it loses next to nothing."""
    merge_validation: bool = True
    """Once epochs, gate and calibration are found, train everything again on train + validation rows."""

    @model_validator(mode="after")
    def _control_is_the_student_untaught(self) -> "Recipe":
        """A control of another size would measure the size, not the teaching."""

        if (self.control.network, sizes(self.control)) != (self.student.network, sizes(self.student)):
            raise ValueError(
                "control: expected the student's network and sizes (only init_sd, dropout and fit may differ), "
                f"got {(self.control.network, sizes(self.control))} against "
                f"{(self.student.network, sizes(self.student))}"
            )
        for budget in ("max_epochs", "patience"):
            least, got = getattr(self.student.fit, budget), getattr(self.control.fit, budget)
            if got < least:
                raise ValueError(f"control.fit.{budget}: expected at least the student's, {least}, got {got}")
        return self

    @model_validator(mode="after")
    def _zoo_is_named_after_its_networks(self) -> "Recipe":
        for name, setting in self.zoo.items():
            if name != setting.network:
                raise ValueError(f"zoo.{name}: expected the network's own name, {setting.network}")
            if setting.copies is not None:
                raise ValueError(f"zoo.{name}: expected no copies, a comparison makes its own")
        return self

    @model_validator(mode="after")
    def _students_are_of_the_size_of_their_controls(self) -> "Recipe":
        """A student's control is its network as tuned on clicks; one of another size would measure the size."""
        for name, student in self.students.items():
            if name != student.network:
                raise ValueError(f"students.{name}: expected the network's own name, {student.network}")
            on_clicks = self.on_clicks(name)
            if on_clicks is not None and sizes(student) != sizes(on_clicks):
                raise ValueError(
                    f"students.{name}: expected the sizes that {name} has on clicks (zoo, else teachers; only init_sd, "
                    f"dropout and fit may differ), {sizes(on_clicks)}, got {sizes(student)}"
                )
        return self

    @model_validator(mode="after")
    def _copies_have_names_of_their_own(self) -> "Recipe":
        names = self.teacher_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teachers: expected other names beside the copies', got {twice} twice; rename one")
        return self

    @model_validator(mode="after")
    def _hidden_layers_are_there(self) -> "Recipe":
        """LR, FM and their like have none to imitate, to weigh by, or to imitate with."""
        fit = self.student.fit
        if fit.needs_student_hint and not _has_hint(self.student):
            raise ValueError(
                "student: expected a network with a hidden layer for losses.hint or auxiliary_head, "
                f"got {self.student.network}; say student.network: dnn"
            )
        wants = "student.fit.losses.hint" if "hint" in fit.losses else "gate.form: hints"
        if "hint" in fit.losses or self.gate.form == "hints":
            without = [name for name, teacher in self.teachers.items() if not _has_hint(teacher)]
            if without:
                dropped = " ".join(f"--set teachers.{name}=null" for name in without)
                raise ValueError(
                    f"{wants}: expected teachers with a hidden layer, got {', '.join(without)} without one; "
                    f"drop them: {dropped}"
                )
        return self

    @model_validator(mode="after")
    def _choices_go_together(self) -> "Recipe":
        fit, parts = self.student.fit, self.has_parted_copies
        if self.gate.form == "stacking":
            if fit.aggregate == "probabilities":
                raise ValueError(
                    "gate.form: stacking has weights below 0 and no mean of probabilities; "
                    "say student.fit.aggregate: logits"
                )
            if "hint" in fit.losses:
                raise ValueError("gate.form: stacking has no weights for hints; say gate.form: static")
            if parts and fit.taught_by == "unseen":
                raise ValueError(
                    "gate.form: stacking cannot leave teachers out of a row's label; say student.fit.taught_by: all"
                )
        if self.scheme.kind != "pretrain" and parts:
            raise ValueError(
                f"scheme {self.scheme.kind}: expected every teacher to see every batch, got copies by {parts}; "
                "say by: seeds, or scheme: pretrain"
            )
        if self.scheme.kind != "pretrain" and self.gate.learns_by != "clicks":
            raise ValueError(
                f"gate.learns_by {self.gate.learns_by}: expected scheme pretrain, where a student of the average comes "
                f"first, got {self.scheme.kind}"
            )
        if self.scheme.kind != "pretrain" and self.for_teachers:
            raise ValueError(
                f"for_teachers: expected teachers that see rows of their own, got scheme {self.scheme.kind}, where all "
                "networks share a batch; say scheme: pretrain"
            )
        if self.unlabelled is not None:
            if self.scheme.kind != "pretrain":
                raise ValueError(
                    "unlabelled: expected scheme pretrain, where the ensemble is there before a student learns what it "
                    f"says, got {self.scheme.kind}"
                )
            if fit.kd_weight == 0:
                raise ValueError(
                    "unlabelled: expected student.fit.kd_weight above 0; such rows have no clicks to teach"
                )
            if self.unlabelled.stopping_share and fit.stop_by != "kd":
                raise ValueError(
                    "unlabelled.stopping_share: expected student.fit.stop_by: kd, rows without clicks have no AUC; "
                    "say stop_by: kd, or stopping_share: 0"
                )
        if self.scheme.kind == "cotrain" and self.gate.form == "stacking":
            raise ValueError("scheme cotrain: expected a gate that is a softmax, got stacking; say gate.form: static")
        if self.scheme.kind == "mutual":
            defaults = DistillOptions.model_fields
            changed = sorted(name for name in NOT_OF_MUTUAL if getattr(fit, name) != defaults[name].default)
            if changed:
                raise ValueError(
                    f"scheme mutual: peers teach by their own loss, expected student.fit without {', '.join(changed)}; "
                    "kd_weight is all it takes"
                )
        return self

    def on_clicks(self, network: str) -> Teacher | None:
        """A network as the recipe tuned it on clicks: of the zoo, else the first teacher of that network."""
        if network in self.zoo:
            return self.zoo[network]
        return next((teacher for teacher in self.teachers.values() if teacher.network == network), None)

    @property
    def has_parted_copies(self) -> str:
        """How teachers are parted by the rows they see; empty where all see all."""
        ways = (teacher.copies.by for teacher in self.teachers.values() if teacher.copies)
        return ", ".join(sorted({way for way in ways if way != "seeds"}))

    @property
    def teacher_names(self) -> list[str]:
        """Every teacher there will be, in the ensemble's order."""
        return [name for teacher in self.teachers for name in self.names_of(teacher)]

    def names_of(self, teacher: str) -> list[str]:
        """The teachers that stand under this name: itself, or its copies."""
        copies = self.teachers[teacher].copies
        return [teacher] if copies is None else [f"{teacher}-{number}" for number in range(1, copies.count + 1)]

    @model_validator(mode="after")
    def _a_log_of_files_has_a_schema(self) -> "Recipe":
        if (self.schema_file is None) != (self.source.kind == "synthetic"):
            raise ValueError(
                "schema_file: expected for every log but the synthetic one, which brings its own; "
                "`python -m training infer-schema FILE` proposes one"
            )
        return self


def sizes(spec: NetworkSpec) -> dict[str, Any]:
    """What makes a network of its name larger or smaller: its options, less those that are tuned."""
    return {option: value for option, value in spec.options.items() if option not in TUNED_OPTIONS}


_ANY_FIELDS = (
    FieldSpec("a", 1, "context"),
    FieldSpec("b", 1, "context", is_sequence=True),
    FieldSpec("c", 1, "candidate"),
    FieldSpec("d", 1, "candidate"),
)


def _has_hint(spec: NetworkSpec) -> bool:
    """Whether a network gives a hidden layer. One that cannot be built on fields this plain is asked at training."""
    try:
        return spec.hint_width(_ANY_FIELDS) is not None
    except (ValueError, KeyError, TypeError, RuntimeError):
        return True


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with the schema it names and the folder its relative paths start from."""

    recipe: Recipe
    base: Path
    schema: FeatureSchema


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override and check a recipe; RecipeError says what is wrong and where."""
    path = _find(name_or_path)
    try:
        tree = parse_document(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8 text: {error}") from None
    except DocumentError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a mapping of settings, got {shown(tree)}")
    for override in overrides:
        _override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError("\n  ".join([f"{path}:", *map(str, problems_of(error, Recipe))])) from None
    if isinstance(recipe.source, SyntheticSettings):
        from training.data.synthetic import World

        schema = World.schema()
    else:
        schema = FeatureSchema.from_file(path.parent / str(recipe.schema_file))
    known = {field.name for field in schema.training_only_fields}
    for name in recipe.for_teachers:
        if name not in known:
            there = ", ".join(sorted(known)) or "there is none"
            raise RecipeError(f"{path}: for_teachers: expected training_only fields ({there}), got {name!r}")
    return LoadedRecipe(recipe=recipe, base=path.parent, schema=schema)


def shipped() -> list[str]:
    """Names of the recipes that come with Retort."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml") if not path.name.endswith(".schema.yaml"))


def _find(name_or_path: str) -> Path:
    if name_or_path in shipped():
        return SHIPPED / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise RecipeError(f"recipe {name_or_path!r}: expected a file, or one of {', '.join(shipped())}")


def _override(tree: dict[str, Any], text: str) -> None:
    """Put `a.b=c` into the tree; null drops the key."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {text}: expected path=value, as in --set student.fit.kd_weight=0.5")
    place: Any = tree
    for depth, key in enumerate(keys[:-1]):
        # A copy: a YAML anchor makes one mapping of several, and only the one named is meant.
        inner = place.get(key, {})
        place[key] = dict(inner) if isinstance(inner, dict) else inner
        place = place[key]
        if not isinstance(place, dict):
            raise RecipeError(f"--set {text}: {'.'.join(keys[: depth + 1])} is a single value and has no parts")
    try:
        parsed = parse_document(value)
    except DocumentError as error:
        raise RecipeError(f"--set {text}: the value is {error}") from None
    if parsed is None:
        place.pop(keys[-1], None)
    else:
        place[keys[-1]] = parsed

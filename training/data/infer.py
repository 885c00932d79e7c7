"""A first schema for a log nobody has described yet, for a person to read, correct and train with.

`infer_schema` looks at a sample and proposes: the label, the time and its unit, the user, and of every column its type,
kind, role and encoding. It leaves out, with the reason beside them, columns that cannot help (constant, empty, row
ids) and columns that seem to give the label away. It guesses by names and by values; so what it writes says what it
saw, and the commented YAML is meant to be edited.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.schema import FeatureSchema
from training.data.column_names import LABELS, PARTS, POSITIONS, TRUTHS, UNITS, is_id, is_outcome, side_of, words_of
from training.data.evidence import (
    determined_by,
    has_decimal_commas,
    is_code,
    is_counter,
    knows_label,
    separator_of,
    time_form,
)
from training.data.faults import closest, shown
from training.data.profile import Profile, form_of, profile_of
from training.data.readers import FileSource, TextFormat
from training.data.sampling import Sample, draw_sample
from training.data.schema_text import Page, Proposed, field_names
from training.data.timestamps import parse_times, to_iso, zone_of
from training.errors import DataError

SAMPLE_ROWS = 200_000
MAX_BAD_ROWS: float = FeatureSchema.model_fields["max_bad_rows"].default
MAX_LENGTH = 50
"""Elements kept of a sequence, at most."""
LEAK_AUC = 0.95
"""A column that alone ranks held-out rows this well knows the answer."""
LEAK_SHARE = 0.1
"""So does one whose values that always come with a click have this share of the clicks."""


@dataclass(frozen=True)
class Inferred:
    """A proposal: YAML text that loads as a `FeatureSchema`, and what a person should look at first."""

    text: str
    warnings: tuple[str, ...]


def infer_schema(
    paths: Sequence[Path],
    text: TextFormat | None = None,
    *,
    label: str | None = None,
    sample_rows: int = SAMPLE_ROWS,
) -> Inferred:
    """A schema for these files, which must be one log.

    `label` names the label's column where its name does not tell. Raises `DataError` for files that cannot be read, a
    log without rows, and one without a column that could be the label.
    """
    source = FileSource(tuple(paths), text or TextFormat())
    for file in source.opened:
        if file.header_advice():
            raise DataError(f"{file.path}:1: expected several columns, got one.{file.header_advice()}")
    sample = draw_sample(source, sample_rows)
    if not sample.rows:
        raise DataError(f"{paths[0]}: no rows that can be read; expected some to look at")
    page, warnings = _Inference(sample, label).page([str(p) for p in paths])
    written = page.text()
    FeatureSchema.from_text(written, "the proposed schema")
    return Inferred(written, tuple(warnings))


class _Inference:
    """The steps from a sample to a proposal, and the warnings collected on the way."""

    def __init__(self, sample: Sample, label: str | None) -> None:
        self.sample = sample
        self.warnings: list[str] = []
        self.profiles = {name: profile_of(name, column) for name, column in sample.columns.items()}
        if sample.faults.bad_rows:
            first, faults = next(iter(sample.faults.reasons.values())), sample.faults
            share = faults.bad_rows / faults.rows
            refused = f", more than max_bad_rows allows ({MAX_BAD_ROWS:.1%}), so training refuses it" * (
                share > MAX_BAD_ROWS
            )
            self.warn(
                f"{faults.bad_rows} of {faults.rows} rows cannot be read ({share:.2%}){refused}; "
                f"the first: {first.first}: {first.example}"
            )
        self.label = self._find_label(label)
        self.clicks = self._clicks()
        self.truth = next((n for n in self.profiles if n.lower() in TRUTHS and self._is_probability(n)), None)
        self.times = self._find_times()
        self.time = self._best_time()
        self.unit = self._find_unit()
        self.item = self._find_item()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    # The columns with a part of their own.

    def _find_label(self, said: str | None) -> str:
        binary = [name for name, p in self.profiles.items() if _is_binary(p)]
        if said is not None:
            if said not in self.profiles:
                raise DataError(
                    f"--label {said}: no such column.{closest(said, list(self.profiles))} "
                    f"Only 0 and 1 are in {', '.join(binary) or 'none'}; all columns: {', '.join(self.profiles)}"
                )
            if said not in binary:
                came = ", ".join(shown(v) for v in self.profiles[said].examples(4)) or "nothing"
                raise DataError(
                    f"--label {said}: expected only 0 and 1, got {came}; make a column of 0 and 1 of it first"
                )
            return said
        for name in LABELS:
            found = [b for b in binary if b.lower() == name]
            if found:
                return found[0]
        named = [b for b in binary if {"click", "clicked", "clk"} & set(words_of(b))]
        if named or len(binary) == 1:
            chosen = (named or binary)[0]
            self.warn(f"label: {chosen!r} is a guess; say --label COLUMN if it is another")
            return chosen
        if not binary:
            raise DataError(
                "no column holds only 0 and 1, so there is no label: make one (a rating above 3, say) and name it by "
                f"--label. Columns: {', '.join(self.profiles)}"
            )
        raise DataError(f"which column is the label? Say --label with one of {', '.join(binary)}")

    def _clicks(self) -> npt.NDArray[np.bool_]:
        profile = self.profiles[self.label]
        if (profile.codes < 0).any():
            self.warn(f"label {self.label!r} is missing in some rows; such a log is refused: leave those rows out")
        positive = np.array([_truthy(v) for v in profile.values] + [False])
        clicks: npt.NDArray[np.bool_] = positive[profile.codes]
        rate = float(clicks.mean())
        if rate in (0.0, 1.0):
            self.warn(f"label {self.label!r} is {int(rate)} in every row looked at: nothing can be learned from it")
        return clicks

    def _is_probability(self, name: str) -> bool:
        profile = self.profiles[name]
        numbers = profile.numbers if profile.type in ("integer", "float") else np.array([np.nan])
        return bool(len(numbers) and (numbers >= 0).all() and (numbers <= 1).all())

    def _find_times(self) -> dict[str, dict[str, str]]:
        """Columns that hold times, and how the schema would say so."""
        found = {}
        for name, profile in self.profiles.items():
            if name in (self.label, self.truth) or not profile.present:
                continue
            form = time_form(profile, self.warn)
            if form is not None:
                found[name] = form
        return found

    def _best_time(self) -> str | None:
        """The finest: the one with the most distinct moments."""
        return max(self.times, key=lambda name: self.profiles[name].distinct, default=None)

    def _find_unit(self) -> str | None:
        for word in UNITS:
            for name, profile in self.profiles.items():
                words = words_of(name)
                named = word in words and (len(words) == 1 or is_id(name))
                if named and profile.lengths is None and profile.distinct > 1 and name not in self._taken():
                    return name
        return None

    def _find_item(self) -> str | None:
        """The column that names the candidate: an id among the candidate words, with the most values that repeat."""
        ids = [
            name
            for name, profile in self.profiles.items()
            if side_of(name) == "candidate" and is_id(name) and 1 < profile.distinct < 0.5 * profile.present
        ]
        return max(ids, key=lambda name: self.profiles[name].distinct, default=None)

    def _taken(self) -> set[str]:
        return {name for name in (self.label, self.truth, self.time) if name is not None}

    # Every other column.

    def _propose(self, name: str) -> Proposed:
        profile = self.profiles[name]
        if profile.form == "other" or not profile.present:
            kind = profile.array.type
            reason = f"of type {kind}, which no field can have" if profile.form == "other" else "missing in every row"
            self.warn(f"{name}: {reason}; left out")
            return Proposed(name, {}, "", left_out=reason)
        field, elements = self._field(profile)
        notes = [self._seen(profile, elements), *self._oddities(profile, field)]
        useless = self._useless(profile)
        leak, always = ("", "") if useless else self._leak(profile)
        if useless and name != self.unit:
            self.warn(f"{name}: {useless}; left out")
        if leak:
            self.warn(f"{name}: {leak}; left out, because a model must not read the answer")
        if always:
            notes.append(always)
            self.warn(f"{name}: {always}; is it known before the impression?")
        return Proposed(name, field, "; ".join(notes), left_out=useless or leak)

    def _useless(self, profile: Profile) -> str:
        """Why no model could learn from a column; "" where one could."""
        if profile.name in self.times:
            return "another time; fields are derived from the timestamp"
        if {str(v).lower() for v in profile.values} <= PARTS and profile.distinct > 1:
            return f"says which part a row is in: `split: {{by: column, column: {profile.name}}}` in the recipe"
        whole = profile.distinct == 1 and profile.missing_share == 0 and profile.lengths is None
        if whole:
            return f"constant ({shown(profile.values[0])})"
        # In a thinned sample ids that stand in several rows look nearly unique; a true row id is wholly so.
        enough = 0.95 if self.sample.is_whole else 0.999
        if profile.lengths is None and profile.present >= 50 and profile.distinct >= enough * profile.present:
            named = is_id(profile.name)
            if profile.type == "string" or (profile.type == "integer" and (named or is_counter(profile))):
                return f"looks like a row id: {profile.distinct:,} values in {profile.present:,} rows"
        return ""

    def _leak(self, profile: Profile) -> tuple[str, str]:
        """(why a column must not be a field because it gives the label away, what is suspicious); "" for neither."""
        if profile.name == self.unit or profile.lengths is not None or not 0 < self.clicks.mean() < 1:
            return "", ""
        score, share, pure = knows_label(profile, self.clicks)
        always = f"with {shown(pure)} there is always a click" if pure is not None else ""
        if score >= LEAK_AUC:
            return f"gives the label away: alone it ranks held-out rows with AUC {score:.3f}", ""
        if share >= LEAK_SHARE:
            return f"gives the label away: {always}, and {share:.0%} of all clicks have such a value", ""
        if is_outcome(profile.name):
            return "by its name known only after the impression", ""
        return "", always

    def _field(self, profile: Profile) -> tuple[dict[str, Any], Profile]:
        """(the field as the schema says it, the profile of what it encodes: a list's elements, else the column)."""
        separator, elements = separator_of(profile)
        known = elements or profile
        proposed: dict[str, Any] = {"name": profile.name, "type": known.type, "role": self._role(profile)}
        if known.lengths is not None:
            proposed["kind"] = "sequence"
            if separator:
                proposed["separator"] = separator
            proposed["max_length"] = int(min(MAX_LENGTH, max(1, known.lengths.max())))
            proposed["keep"] = "last" if proposed["role"] == "context" else "first"
            proposed["encoding"] = _vocabulary(known)
        elif profile.type in ("integer", "float") and not is_code(profile):
            proposed |= {"kind": "numeric", "encoding": {"method": "quantile", "buckets": 32}}
        else:
            proposed |= {"kind": "categorical", "encoding": _vocabulary(profile)}
        if proposed["role"] == "training_only":
            numbers = profile.numbers[~np.isnan(profile.numbers)]
            proposed["serving_value"] = int(numbers.min())  # what an ad in the best place would have
        return proposed, known

    def _role(self, profile: Profile) -> str:
        words = words_of(profile.name)
        if words[-1:] and words[-1] in POSITIONS and profile.type == "integer":
            return "training_only"
        if profile.name == self.unit:
            return "context"
        if profile.name == self.item:
            return "candidate"
        by_name = side_of(profile.name)
        if by_name:
            return by_name
        if self.item and profile.lengths is None:
            of_item = determined_by(profile, self.profiles[self.item])
            of_unit = determined_by(profile, self.profiles[self.unit]) if self.unit else 0.0
            if of_item > 0.98 and of_item > of_unit:
                return "candidate"
        return "context"

    def _oddities(self, profile: Profile, field: Mapping[str, Any]) -> list[str]:
        """What to say about a column that becomes a field: in the YAML, and where it may cost values, as a warning."""
        notes = []
        forms = profile.forms if profile.form == "text" else {}
        count, first = profile.misfits
        if count:
            notes.append(f"{count:,} cells are no {field['type']} (the first: {shown(first)}) and would be missing")
            self.warn(f"{profile.name}: mixed types: {notes[-1]}")
        if field["type"] == "string" and field["kind"] != "sequence":
            if forms.get("zeros") and not forms.get("text"):
                notes.append("digits led by zeros, so a string: 007 is not 7")
                self.warn(f"{profile.name}: {notes[-1]}")
            elif forms.get("huge"):
                notes.append("digits beyond 64 bits, so a string")
            elif sum(forms.get(f, 0) for f in ("integer", "integral", "decimal")) > 0.5 * profile.present:
                notes.append("numbers and other text mixed, so a string")
                self.warn(f"{profile.name}: mixed types: {notes[-1]}")
            elif has_decimal_commas(profile):
                notes.append(
                    'numbers with a decimal comma, so a string: write 8.12 for 8,12, or separator: "," if it is a list'
                )
                self.warn(f"{profile.name}: {notes[-1]}")
            elif forms.get("padded"):
                notes.append("numbers with blanks around them, which do not read as numbers")
                self.warn(f"{profile.name}: {notes[-1]}")
            if forms.get("blank_word"):
                word = next(v for v in profile.values if form_of(str(v)) == "blank_word")
                notes.append(f"{shown(word)} is a value like any other; an empty cell would be missing")
                self.warn(f"{profile.name}: {notes[-1]}")
            if {str(v).lower() for v in profile.values} <= {"yes", "no", "y", "n", "t", "f", "on", "off"}:
                notes.append("yes and no in words; type boolean takes true, false, 1 and 0 only")
            if str(profile.values[0]).startswith("[") and str(profile.values[0]).endswith("]"):
                notes.append("looks like lists in brackets; write them with a separator, or as Parquet lists")
                self.warn(f"{profile.name}: {notes[-1]}")
        elif forms.get("integral") and field["type"] == "integer":
            notes.append("whole numbers written as 3.0")
        if field["kind"] == "numeric" and profile.distinct > 0.5 * profile.present and profile.type == "float":
            notes.append(f"a float with {profile.distinct:,} values, cut into ranges")
        if field["role"] == "training_only":
            notes.append("known only once the ad is placed; serving_value stands in. If requests know it: role context")
        elif not side_of(profile.name) and profile.name not in (self.unit, self.item):
            notes.append("role guessed")
        return notes

    def _seen(self, profile: Profile, known: Profile) -> str:
        """What a person wants to know of a column: how many values, how many missing, which."""
        words = [f"{self._amount(known)} {'elements' if known.lengths is not None else 'values'}"]
        if profile.missing_share:
            words.append(f"{profile.missing_share:.1%} {'empty' if known.lengths is not None else 'missing'}")
        words.append("such as " + ", ".join(shown(v, 24) for v in known.examples()))
        return "; ".join(words)

    def _amount(self, profile: Profile) -> str:
        known = self.sample.is_whole or profile.distinct < 0.001 * profile.present
        return f"{profile.distinct:,}" if known else f"at least {profile.distinct:,}"

    def page(self, paths: Sequence[str]) -> tuple[Page, list[str]]:
        """The proposal and the warnings."""
        columns = [self._propose(name) for name in self.profiles if name not in self._taken()]
        fields = [c for c in columns if not c.left_out]
        if all(c.field["role"] == "training_only" for c in fields):
            raise DataError("no column is left that a model could read: " + "; ".join(self.warnings))
        if not any(c.field["role"] == "candidate" for c in fields):
            self.warn("no field is a candidate's, so every ad of a request would score alike: set the roles")
        names = field_names([c.column for c in columns])
        for column, name in zip(columns, names, strict=True):
            if name != column.column:
                column.field.update(name=name, column=column.column)
        page = Page(
            title=f"Proposed for {', '.join(paths[:3])}{f' and {len(paths) - 3} more' * (len(paths) > 3)}, "
            f"from {self.sample.words}.",
            warnings=self.warnings,
            label=(self.label, f"{self.clicks.mean():.2%} clicks"),
            columns=columns,
        )
        if self.time is not None:
            page.timestamp = ({"column": self.time} | self.times[self.time] | {"timezone": "UTC"}, self._range())
            page.has_hours = self.times[self.time]["format"] != "%Y%m%d" and not str(
                self.profiles[self.time].array.type
            ).startswith("date")
        if self.unit is not None:
            page.unit = (self.unit, f"{self._amount(self.profiles[self.unit])} values")
        if self.truth is not None:
            page.truth = self.truth
        return page, self.warnings

    def _range(self) -> str:
        """The sample's first and last moment; warns of rows without one, which a log must hardly have."""
        assert self.time is not None
        profile, said = self.profiles[self.time], self.times[self.time]
        times, good = parse_times(profile.array, said["format"], said.get("unit", "s"), zone_of("UTC"))
        if not good.all():
            self.warn(
                f"{self.time}: {1 - good.mean():.2%} of the rows have no time that can be read; they would be skipped, "
                "and more than max_bad_rows refuse the log"
            )
        return f"{to_iso(int(times[good].min()))} to {to_iso(int(times[good].max()))}"


def _truthy(value: object) -> bool:
    return str(value).lower() in ("true", "1", "1.0")


def _is_binary(profile: Profile) -> bool:
    values = {str(v).lower() for v in profile.values}
    return profile.lengths is None and bool(values) and values <= {"0", "1", "0.0", "1.0", "true", "false"}


def _vocabulary(profile: Profile) -> dict[str, Any]:
    encoding: dict[str, Any] = {"method": "vocabulary", "min_count": 2 if profile.distinct > 100 else 1}
    if profile.distinct > 50_000:
        encoding["max_size"] = 1_000_000
    return encoding


def main(argv: Sequence[str] | None = None) -> int:
    """The command: YAML on stdout or in a file, warnings on stderr. Errors are raised, as `DataError`."""
    parser = argparse.ArgumentParser(
        prog="python -m training infer-schema",
        description="Propose a schema for a click log, as commented YAML for a person to edit: types, kinds, roles, "
        "label, time, user, separators of lists. Warns of row ids and of columns that give the label away.",
        epilog="Then: edit it, name it as `schema_file` in a recipe (docs/logs.md), and run the recipe.",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments, for a program that has other commands too."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="CSV, TSV (also .gz, .zst) or Parquet; one log"
    )
    parser.add_argument("--label", metavar="COLUMN", help="the label's column, where its name does not tell")
    parser.add_argument("--separator", metavar="C", help="of text files; by default by the ending")
    parser.add_argument("--no-quotes", action="store_true", help="text files never quote: a quote is a character")
    parser.add_argument("--header", metavar="A,B,…", help="columns' names, for text files without a header line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the YAML there; never over an existing file")
    parser.add_argument("--rows", type=int, default=SAMPLE_ROWS, metavar="N", help=f"rows to look at ({SAMPLE_ROWS:,})")


def run(arguments: argparse.Namespace) -> int:
    """What the command does with its arguments; the exit code."""
    separator = "\t" if arguments.separator in ("\\t", "tab") else arguments.separator
    header = tuple(arguments.header.split(",")) if arguments.header else None
    form = TextFormat(separator, None if arguments.no_quotes else '"', header)
    if arguments.output is not None and arguments.output.exists():
        raise DataError(f"{arguments.output}: stands already, and may have been edited; name another file")
    inferred = infer_schema(arguments.files, form, label=arguments.label, sample_rows=arguments.rows)
    for warning in inferred.warnings:
        print(f"! {warning}", file=sys.stderr)
    if arguments.output is None:
        print(inferred.text, end="")
    else:
        arguments.output.write_text(inferred.text, encoding="utf-8")
        print(f"wrote {arguments.output}: read and edit it before you train", file=sys.stderr)
    return 0

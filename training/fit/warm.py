"""Starting from an earlier run: the daily retrain. Vocabularies grow, ids stay, weights are copied field by field.

    version.json     in a run's folder, written when it is complete: where its encoder and its networks lie
    Version          that file, read by the run that starts from it
    Start            one earlier fit, and how its weights get into a fresh network

An embedding table holds all fields one behind the other, so one that grows moves those behind it: rows are copied by
field, and ids that are new keep the rows that were drawn for them. Everything else has the shape it had. Adam starts
afresh, without moments: those of rows that are not met for days would say little, and a bundle holds none.

What is measured must be new to the weights it starts from: a first fit starts from the first fit of the earlier run, a
refit from its refit, and the rows that those learned from have to end before the rows that the new ones are judged by
(`data/seen_before.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.errors import RecipeError
from training.whole import write_whole
from training.zoo import FieldEmbedding, Fields

VERSION_FILE = "version.json"


@dataclass(frozen=True)
class Version:
    """A complete run, to start from. Folders are relative to `runs`, each named with the key of its step."""

    runs: Path
    prepared: str
    seeds: Mapping[str, Mapping[str, Mapping[str, str]]]
    """By seed and place in the recipe: the folders `first` and `again` of a fit."""

    @classmethod
    def read(cls, runs: Path) -> Version:
        """Of a run's folder; `RecipeError` where it holds no complete run."""
        try:
            facts = json.loads((runs / VERSION_FILE).read_text(encoding="utf-8"))
            found = cls(runs.resolve(), facts["prepared"], facts["seeds"])
        except FileNotFoundError:
            raise RecipeError(
                f"warm_start: {runs}: expected the folder of a complete run, got one without {VERSION_FILE}; "
                "name a folder under runs/, or run that recipe to its end first"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"warm_start: {runs / VERSION_FILE}: cannot be read: {error}") from None
        fits = [fit for by_place in found.seeds.values() for fit in by_place.values()]
        for folder in (found.prepared, *(path for fit in fits for path in fit.values())):
            if not (found.runs / folder).is_dir():
                raise RecipeError(f"warm_start: {runs / folder}: is gone; start from another run, or run it again")
        return found

    def write(self) -> None:
        """Into the run's folder."""
        facts = {"prepared": self.prepared, "seeds": self.seeds}
        write_whole(self.runs / VERSION_FILE, json.dumps(facts, indent=1) + "\n")

    @property
    def places(self) -> dict[str, str]:
        """Where steps find it: the run, and its prepared log."""
        return {"start": str(self.runs), "earlier": str(self.runs / self.prepared)}

    def fit(self, seed: int, place: str, which: str) -> str | None:
        """The folder to start a fit from: of the same seed, or the first there is; None where there was no such fit."""
        fits = self.seeds.get(str(seed)) or next(iter(self.seeds.values()))
        return fits[place][which] if place in fits else None


@dataclass(frozen=True)
class Start:
    """An earlier fit of a network, over the same fields with as many or fewer ids."""

    folder: Path
    fields: Fields

    def into(self, network: nn.Module, fields: Fields) -> None:
        """Put its weights into a fresh `network` over `fields`; `RecipeError` where that is of other sizes."""
        if [(spec.name, spec.side, spec.is_sequence) for spec in self.fields] != [
            (spec.name, spec.side, spec.is_sequence) for spec in fields
        ]:
            raise RecipeError(f"warm_start: {self.folder}: expected a fit over the same fields, got one over others")
        tables = {f"{name}.table" for name, module in network.named_modules() if isinstance(module, FieldEmbedding)}
        now = network.state_dict()
        with np.load(self.folder / "weights.npz", allow_pickle=False) as earlier, torch.no_grad():
            if set(earlier.files) != set(now):
                raise self._other_sizes(sorted(set(earlier.files) ^ set(now))[0])
            for name, weight in now.items():
                then = torch.from_numpy(earlier[name])
                if name in tables:
                    self._grow(name, then, weight, fields)
                elif then.shape == weight.shape:
                    weight.copy_(then)
                else:
                    raise self._other_sizes(name)

    def _grow(self, name: str, then: Tensor, now: Tensor, fields: Fields) -> None:
        """Rows of each field to where that field now begins; the rest of `now` stays."""
        sizes_then, sizes_now = ([spec.size for spec in of] for of in (self.fields, fields))
        if len(then) != sum(sizes_then) or then.shape[1:] != now.shape[1:]:
            raise self._other_sizes(name)
        at_then = at_now = 0
        for spec, before, after in zip(fields, sizes_then, sizes_now, strict=True):
            if after < before:
                raise RecipeError(f"warm_start: field {spec.name!r}: expected at least its {before} ids, got {after}")
            now[at_now : at_now + before] = then[at_then : at_then + before]
            at_then, at_now = at_then + before, at_now + after

    def _other_sizes(self, name: str) -> RecipeError:
        return RecipeError(
            f"warm_start: {self.folder}: its {name!r} does not fit the network of now; expected the same network and "
            "sizes. Say the options it had, or leave warm_start out"
        )

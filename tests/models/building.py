"""Small builders for the tests of this room: schemas of one field, object arrays, encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.encoder import Encoder
from models.schema import FeatureSchema


def set_live(repository: Path, name: str, version: int | str) -> None:
    """Roll a model to a version (or `latest`) as docs/bundle.md says: beside first, then renamed."""
    beside = repository / name / "live.new"
    beside.write_text(f"{version}\n", encoding="utf-8")
    beside.replace(repository / name / "live")


def objects(values: Sequence[Any]) -> np.ndarray:
    """A flat object array, also of lists of one length, which numpy would make a matrix of."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def schema_of(*fields: dict[str, Any], **others: Any) -> FeatureSchema:
    """A schema of these fields; each is a categorical candidate string unless it says otherwise."""
    defaults = {"role": "candidate", "type": "string", "kind": "categorical", "encoding": {"method": "vocabulary"}}
    document = {"label": {"column": "click"}, "fields": [defaults | field for field in fields], **others}
    return FeatureSchema.model_validate(document)


def encoder_for(type_: str, values: Sequence[Any] | None, **field: Any) -> Encoder:
    """An encoder of the single candidate field `f` with these values (or edges) in id order."""
    schema = schema_of({"name": "f", "type": type_, **field})
    return Encoder(schema, {} if values is None else {"f": values})

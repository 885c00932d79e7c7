"""The networks, by the name a recipe gives them.

Each takes its fields and a few keyword options, and maps an encoded batch to (logit [N], hint [N, H] or
None). A new network is one file and one line here.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from training.zoo.dcnv2 import DCNV2
from training.zoo.deepfm import DeepFM
from training.zoo.dnn import DNN
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields, FieldSpec
from training.zoo.fm import FM
from training.zoo.ipnn import IPNN
from training.zoo.lr import LR

NETWORKS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "fm": FM,
    "dnn": DNN,
    "deepfm": DeepFM,
    "dcnv2": DCNV2,
    "ipnn": IPNN,
}


def build(name: str, fields: Fields, **options: Any) -> nn.Module:
    """The network called `name` over `fields`; ValueError for a name or an option it does not know."""
    if name not in NETWORKS:
        raise ValueError(f"network: expected one of {sorted(NETWORKS)}, got {name!r}")
    known = options_of(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"network {name!r}: expected options among {sorted(known)}, got {unknown}")
    return NETWORKS[name](fields, **options)


def options_of(name: str) -> set[str]:
    """Names of the keyword options that a network takes, for recipes to check against."""
    parameters = inspect.signature(NETWORKS[name].__init__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


__all__ = ["NETWORKS", "Embedded", "Encoded", "FieldEmbedding", "FieldSpec", "Fields", "build", "options_of"]

"""The networks, by the name a recipe gives them.

Each takes its fields and a few keyword options, and maps an encoded batch to (logit [N], hint [N, H] or None): the
hint is the hidden vector that a student may imitate, stated by each network. A new network is one file and one line
here. Options that mean the same everywhere:

    dim       width of an embedding
    hidden    widths of the perceptron's layers, first to last; each ends in a ReLU
    dropout   share of each of these layers that training leaves out
    init_sd   standard deviation of fresh embeddings; dense layers start as torch's nn.Linear does
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from training.errors import NetworkError
from training.zoo.autoint import AutoInt
from training.zoo.dcn import DCN
from training.zoo.dcnv2 import DCNV2
from training.zoo.deepfm import DeepFM
from training.zoo.din import DIN
from training.zoo.dnn import DNN
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields, FieldSpec
from training.zoo.ffm import FFM
from training.zoo.fibinet import FiBiNET
from training.zoo.finalmlp import FinalMLP
from training.zoo.fm import FM
from training.zoo.gdcn import GDCN
from training.zoo.ipnn import IPNN
from training.zoo.lr import LR
from training.zoo.nfm import NFM
from training.zoo.onn import ONN
from training.zoo.widedeep import WideDeep
from training.zoo.xdeepfm import XDeepFM

NETWORKS: dict[str, type[nn.Module]] = {
    "lr": LR,
    "fm": FM,
    "ffm": FFM,
    "dnn": DNN,
    "widedeep": WideDeep,
    "ipnn": IPNN,
    "nfm": NFM,
    "deepfm": DeepFM,
    "dcn": DCN,
    "xdeepfm": XDeepFM,
    "fibinet": FiBiNET,
    "autoint": AutoInt,
    "dcnv2": DCNV2,
    "finalmlp": FinalMLP,
    "gdcn": GDCN,
    "onn": ONN,
    "din": DIN,
}


def build(name: str, fields: Fields, **options: Any) -> nn.Module:
    """The network called `name` over `fields`; NetworkError for what `check_options` refuses, and for fields that the
    network has no use for."""
    check_options(name, options)
    return NETWORKS[name](fields, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """NetworkError for a name, an option or a value that there is not."""
    if name not in NETWORKS:
        raise NetworkError(f"network: expected one of {sorted(NETWORKS)}, got {name!r}")
    known = options_of(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise NetworkError(f"network {name!r}: expected options among {sorted(known)}, got {unknown}")
    missing = sorted(option for option in known - set(options) if default_of(name, option) is inspect.Parameter.empty)
    if missing:
        raise NetworkError(f"network {name!r}: expected the options {missing} too, which have no default")
    for option, value in options.items():
        fits, expected = _VALUES[option]
        if not fits(value):
            raise NetworkError(f"options.{option}: expected {expected}, got {value!r} for network {name!r}")


def options_of(name: str) -> set[str]:
    """Names of the keyword options that a network takes, for recipes to check against."""
    parameters = inspect.signature(NETWORKS[name].__init__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def default_of(name: str, option: str) -> Any:
    """What an option is when a recipe does not say; `inspect.Parameter.empty` where it has to."""
    return inspect.signature(NETWORKS[name].__init__).parameters[option].default


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_widths(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_count, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and all(isinstance(name, str) for pair in value.items() for name in pair)
    )


_COUNT = (_is_count, "a whole number of at least 1")
_WIDTHS = (_are_widths, "a list of whole numbers of at least 1, not empty")
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dim": _COUNT,
    "hidden": _WIDTHS,
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a share from 0 to below 1"),
    "init_sd": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "cross_layers": _COUNT,
    "cin_layers": _WIDTHS,
    "attention_layers": _COUNT,
    "heads": _COUNT,
    "head_dim": _COUNT,
    "bilinear": (lambda value: value in ("all", "each", "interaction"), "all, each or interaction"),
    "reduction": _COUNT,
    "second_hidden": (lambda value: value is None or _are_widths(value), _WIDTHS[1] + ", or null"),
    "gate_hidden": _WIDTHS,
    "targets": (_is_names, "a mapping of sequence fields to the candidate's fields, or null"),
    "attention_hidden": _WIDTHS,
    "max_length": _COUNT,
}


__all__ = [
    "NETWORKS",
    "Embedded",
    "Encoded",
    "FieldEmbedding",
    "FieldSpec",
    "Fields",
    "build",
    "check_options",
    "default_of",
    "options_of",
]

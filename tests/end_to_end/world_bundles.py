"""Models of the synthetic world that nobody trained: they know of each ad how good it is, or they guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import write_bundle
from models.encoder import Encoder
from models.golden import Golden, GoldenRequest
from models.manifest import Calibration
from models.schema import FeatureSchema
from tests.models.tiny_bundle import TinyModel, tiny_card, tiny_graph
from training.data.synthetic import World
from training.simulate.auctions import Auction

KNOWS, GUESSES = 1.0, 0.0


def write_world_bundle(
    repository: Path,
    name: str,
    world: World,
    auctions: list[Auction],
    *,
    skill: float,
    spread: float = 0.5,
    teachers: int = 0,
    golden_error: float = 0.0,
) -> Path:
    """The next version of `name`: an ad's score is its mean true logit, as far as there is `skill`, else chance, with
    that `spread`. `golden_error`: by how much its golden rows have another logit than it gives."""
    schema = FeatureSchema.model_validate({**world.schema().model_dump(mode="json"), "truth": None})
    codes = world.impressions(np.random.default_rng(5), world.days - 1, 20_000)
    logit, ads = world.true_logit(codes), codes["ad"]
    seen = np.unique(ads)
    quality = np.array([logit[ads == ad].mean() for ad in seen])
    score = skill * quality + (1 - skill) * np.random.default_rng(6).normal(-1.8, spread, len(seen))
    encoder = Encoder(schema, {field.name: _values(field) for field in schema.fields} | {"ad_id": _names(seen)})
    starts, total = {}, 0
    for field in schema.fields:
        starts[field.name] = total
        total += encoder.sizes[field.name]
    weights = np.zeros(total, np.float32)
    weights[starts["ad_id"] : starts["ad_id"] + 2] = -1.8
    weights[starts["ad_id"] + 2 : starts["ad_id"] + 2 + len(seen)] = score
    model = TinyModel(encoder, weights, starts, 0.0, Calibration(scale=1.0, bias=0.0))
    return write_bundle(
        repository,
        name,
        encoder=encoder,
        card=tiny_card(model, teachers=teachers),
        golden=Golden(requests=tuple(_golden(model, json.loads(one.body), golden_error) for one in auctions[:3])),
        model=tiny_graph(model, teachers=teachers),
    )


def _values(field: Any) -> list[Any]:
    return [1.0, 10.0] if field.kind == "numeric" else {"boolean": ["0", "1"], "integer": ["0"]}.get(field.type, ["x"])


def _names(ads: np.ndarray) -> list[str]:
    return [f"a{ad:05d}" for ad in ads]


def _golden(model: TinyModel, body: dict[str, Any], error: float) -> GoldenRequest:
    context, candidates = body["context"], body["candidates"]
    logit, pctr = model.score(model.encoder.encode_context(context), model.encoder.encode_candidates(candidates))
    return GoldenRequest(
        context=context, candidates=tuple(candidates), logit=tuple((logit + error).tolist()), pctr=tuple(pctr.tolist())
    )

"""What a score is made of, for administrators: how each field of a request was read, and what each teacher said.

The same body as `/predict` takes, answered by the same model, so that "why this number?" is one changed word in the
path. Tells of every field whether its value was known, missing or unknown; never the value itself, nor its id.

A diagnosis, not traffic: it makes no exposure, counts in no field's missing or unknown values, and teaches nothing to
the estimate that deadlines are judged by. Its graph runs in a thread, beside the requests of callers; a deadline in
the body is checked like every member, and not kept to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder import EncodedRows
from models.errors import EncodeError
from models.graph import GATE_WEIGHTS, LOGIT, PCTR, TEACHER_LOGITS, graph_inputs
from models.tables import MISSING, UNKNOWN
from service.scoring.json_body import refuse_wide_integers
from service.scoring.plan import Chosen, Plan, Served
from service.scoring.predict import Target, choose
from service.scoring.request import PredictRequest, decode_request, encode_request, refuse_encoding
from service.scoring.scorer import Floats, Scorer

EXPLAIN_ROUTE = "/explain"
EXPLAIN_MODEL_ROUTE = "/models/{name}/explain"
EXPLAIN_VERSION_ROUTE = "/models/{name}/versions/{version}/explain"

STATES = ("missing", "unknown", "known")
"""By id: 0, 1, and everything from 2."""

State = str | list[str]
"""Of one value; of a sequence, one for each element that was kept."""


async def explain(
    plan: Plan,
    target: Target,
    body: bytes,
    *,
    max_candidates: int,
    new_id: Callable[[], str],
    load_version: Callable[[str, int], Awaitable[Served]],
) -> dict[str, Any]:
    """The answer, ready for JSON. Raises `Refusal`, for the same bodies as `/predict` and with the same codes."""
    request = decode_request(body, max_candidates, new_id)
    chosen = choose(plan, target, request)
    if not isinstance(chosen, Chosen):
        chosen = Chosen(await load_version(*chosen))
    served = chosen.served
    scorer = served.scorer
    schema = scorer.bundle.schema
    context, candidates, unknown = _encode(request, scorer, body)
    context_states = _states([field.name for field in schema.context_id_fields], context)
    places = sorted(set(range(request.count)) - set(unknown))
    explained: dict[str, Any] = {
        "request_id": request.request_id,
        "experiment": served.experiment,
        "arm": served.arm,
        "assigned_arm": chosen.assigned,
        "enrolled": chosen.enrolled,
        "forced": chosen.forced,
        "model": scorer.bundle.name,
        "version": scorer.bundle.version,
        "ignored_fields": request.ignored + context.ignored + (0 if candidates is None else candidates.ignored),
        "context": {name: states[0] for name, states in context_states.items()},
        "candidates": {},
        "logit": [None] * request.count,
        "pctr": [None] * request.count,
    }
    if unknown:
        explained["unknown_candidates"] = unknown
    if candidates is not None:
        columns = _states([field.name for field in schema.candidate_id_fields], candidates)
        explained["candidates"] = {name: _spread(states, places, request.count) for name, states in columns.items()}
        outputs = await asyncio.to_thread(scorer.look_into, graph_inputs([context], [candidates]))
        for name in (LOGIT, PCTR):
            explained[name] = _spread(_shortest(outputs[name]), places, request.count)
        if scorer.is_ensemble:
            explained["teachers"] = [teacher.name for teacher in scorer.bundle.manifest.teachers]
            for name in (TEACHER_LOGITS, GATE_WEIGHTS):
                explained[name] = _spread([_shortest(row) for row in outputs[name]], places, request.count)
    return explained


def _encode(request: PredictRequest, scorer: Scorer, body: bytes) -> tuple[EncodedRows, EncodedRows | None, list[int]]:
    """As `encode_request`, with what `/predict` refuses."""
    try:
        context, candidates, unknown = encode_request(request, scorer)
    except EncodeError as error:
        raise refuse_encoding(error) from None
    if request.ignored or context.ignored or (candidates is not None and candidates.ignored):
        refuse_wide_integers(request.members, body)
    return context, candidates, unknown


def _states(names: Sequence[str], rows: EncodedRows) -> dict[str, Sequence[State]]:
    """Field -> the state of each row."""
    states: dict[str, Sequence[State]] = {name: _named(rows.ids[:, place]) for place, name in enumerate(names)}
    for name, (ids, offsets) in rows.sequences.items():
        states[name] = [_named(ids[start:end]) for start, end in pairwise(offsets.tolist())]
    return states


def _named(ids: NDArray[np.int32]) -> list[str]:
    assert (MISSING, UNKNOWN) == (0, 1)
    return [STATES[id_] for id_ in np.minimum(ids, len(STATES) - 1).tolist()]


def _spread(values: Sequence[Any], places: Sequence[int], count: int) -> list[Any]:
    """Values at their places among `count`, None elsewhere."""
    spread: list[Any] = [None] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread


def _shortest(numbers: Floats) -> list[float]:
    """Float32s as floats that are written with the fewest digits that give them again, as `/predict` writes them."""
    return [float(str(number)) for number in numbers]

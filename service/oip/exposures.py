"""What an inference request leaves in the exposure log: nothing, unless its parameters say whom it was for.

    {"id": "auction-1", "parameters": {"unit_id": "user-831", "experiment": "student-vs-ensemble"}, "inputs": […]}

The protocol knows models and no units, and who names a model has chosen already. So `unit_id` alone leaves the exposure
of a model route: outside any experiment. With `experiment` too the caller says that it routes by that experiment: the
unit is assigned as for `/predict`, and the exposure is the arm's where the model that was named is what the unit gets;
else that of an arm that was forced, which no analysis counts.
"""

from __future__ import annotations

from service.errors import Code, Refusal
from service.oip.request import InferenceRequest
from service.scoring.plan import Chosen, Plan, RunningExperiment, Served
from service.scoring.predict import Call, Predictor, Target
from service.scoring.request import PredictRequest


def begin_exposure(
    predictor: Predictor, plan: Plan, target: Target, request: InferenceRequest, served: Served, started: float
) -> Call | None:
    """The request as one whose answer may be recorded; None where it names no unit. Raises `Refusal`.

    Gives the request an id where it has none: feedback refers to it.
    """
    if request.unit is None:
        if request.experiment is not None:
            detail = "parameter 'experiment': expected the parameter 'unit_id' with it"
            raise Refusal(Code.INVALID_REQUEST, detail, field="parameters")
        return None
    request.id = request.id or predictor.new_id()
    call = Call(_tell_nobody, target, b"", started, _tell_nobody, plan)
    call.request = PredictRequest()
    call.request.request_id, call.request.unit, call.request.ids = request.id, request.unit, None
    call.served, call.chosen = served, Chosen(served)
    if request.experiment is not None:
        running = plan.experiments.get(request.experiment)
        if running is None:
            raise Refusal(Code.UNKNOWN_EXPERIMENT, "no such experiment is running", field="parameters")
        call.chosen = _chosen(running, request.unit, served)
        call.served = call.chosen.served
    return call


def _tell_nobody(_: object) -> None:
    """The answer goes its own way."""


def _chosen(running: RunningExperiment, unit: str, served: Served) -> Chosen:
    """Where the unit goes, if that is the version that was named; else the arm that has it, forced."""
    assigned = running.choose(unit, None)
    if assigned.served.scorer is served.scorer:
        return assigned
    for arm in running.arms:
        if arm.served.scorer is served.scorer:
            return running.choose(unit, arm.name)
    detail = "the version that was named answers for no arm of the experiment"
    raise Refusal(Code.OUTSIDE_EXPERIMENT, detail, field="parameters")

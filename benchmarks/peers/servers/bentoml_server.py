"""BentoML: `bentoml serve bentoml_server:Predict`, one worker."""

from typing import Any

import bentoml
from scoring import Scoring


@bentoml.service(workers=1, traffic={"timeout": 30})
class Predict:
    def __init__(self) -> None:
        self.scoring = Scoring()

    @bentoml.api
    def predict(self, context: Any, candidates: Any) -> dict[str, Any]:
        return {"pctr": self.scoring.score(context, candidates)}

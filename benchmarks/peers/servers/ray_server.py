"""Ray Serve: one replica behind its HTTP proxy."""

import sys
import time

import ray
from ray import serve
from scoring import Scoring
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
class Predict:
    def __init__(self) -> None:
        self.scoring = Scoring()

    async def __call__(self, request: Request):
        if request.method == "GET":
            return "ready"
        body = await request.json()
        # A response with a length: of anything else Ray makes one in chunks, which costs both sides more.
        return JSONResponse({"pctr": self.scoring.score(body["context"], body["candidates"])})


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Predict.bind(), route_prefix="/predict")
    while True:
        time.sleep(60)

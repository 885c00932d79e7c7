"""KServe: a custom model behind its model server, asked by the first version of its protocol (plain JSON)."""

import sys

from kserve import Model, ModelServer
from scoring import Scoring


class Predict(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.scoring = Scoring()
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        return {"predictions": self.scoring.score(payload["context"], payload["candidates"])}


if __name__ == "__main__":
    server = ModelServer(http_port=int(sys.argv[1]), workers=1, enable_grpc=False, access_log_format=None)
    server.start([Predict()])

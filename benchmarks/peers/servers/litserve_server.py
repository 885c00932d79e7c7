"""LitServe: one API, one worker process beside its server process."""

import sys

import litserve
from scoring import Scoring


class Predict(litserve.LitAPI):
    def setup(self, device):
        self.scoring = Scoring()

    def decode_request(self, request):
        return request

    def predict(self, request):
        return self.scoring.score(request["context"], request["candidates"])

    def encode_response(self, output):
        return {"pctr": output}


if __name__ == "__main__":
    server = litserve.LitServer(Predict(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False, num_api_servers=1
    )

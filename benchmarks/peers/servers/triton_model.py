"""Triton's Python backend: what a model.py of its repository holds. The wheel has this backend alone."""

import json
import os
import sys

sys.path.insert(0, os.environ["PEER_SERVERS"])

import numpy as np
import triton_python_backend_utils as triton
from scoring import Scoring


class TritonPythonModel:
    def initialize(self, args):
        self.scoring = Scoring()

    def execute(self, requests):
        return [triton.InferenceResponse([triton.Tensor("pctr", self.score(request))]) for request in requests]

    def score(self, request):
        if self.scoring.model is not None:
            body = json.loads(triton.get_input_tensor_by_name(request, "body").as_numpy()[0])
            return np.array(self.scoring.score(body["context"], body["candidates"]), np.float32)
        tensors = [triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("context", "candidates")]
        return self.scoring.run(*tensors)

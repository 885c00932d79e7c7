"""What every peer's server is given: the graph of a bundle, one thread and no spinning, as our own service runs it.

Imported by each server in its own environment, where there is numpy and onnxruntime and nothing of ours. The bundle's
folder stands in PEER_BUNDLE, and PEER_TAKES says what a request holds: `ids`, ready-made, or `raw` features, which are
encoded as `naive_service.py` does it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[2]))

from naive_model import NaiveModel


class Scoring:
    """pctr of a request."""

    def __init__(self) -> None:
        bundle = Path(os.environ["PEER_BUNDLE"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(bundle / "model.onnx", options)
        self.model = NaiveModel(bundle, self.session) if os.environ["PEER_TAKES"] == "raw" else None

    def score(self, context: Any, candidates: Any) -> list[float]:
        """Of JSON values: raw features, or ids [1, Fc] and [N, Fa]."""
        if self.model is not None:
            return self.model.predict(context, candidates)
        return self.run(np.array(context, np.int32), np.array(candidates, np.int32)).tolist()

    def run(self, context: Any, candidates: Any) -> Any:
        """Of int32 arrays."""
        index = np.zeros(len(candidates), np.int32)
        return self.session.run(["pctr"], {"context": context, "candidates": candidates, "request_index": index})[0]

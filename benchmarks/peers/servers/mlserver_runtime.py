"""MLServer: a custom runtime, as its documentation shows one; no parallel workers: nothing crosses processes."""

import json

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from scoring import Scoring


class Runtime(MLModel):
    async def load(self) -> bool:
        self.scoring = Scoring()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        if self.scoring.model is not None:
            request = json.loads(payload.inputs[0].data.root[0])
            found = self.scoring.score(request["context"], request["candidates"])
        else:
            by_name = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
            found = self.scoring.run(by_name["context"], by_name["candidates"]).tolist()
        output = ResponseOutput(name="pctr", shape=[len(found)], datatype="FP32", data=found)
        return InferenceResponse(model_name=self.name, outputs=[output])

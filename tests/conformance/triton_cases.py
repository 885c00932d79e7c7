"""What both of tritonclient's protocols are checked with: the cases as arrays, and what a check and a refusal are."""

import json
import traceback

import numpy as np
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def check(name, work):
    """Prints whether `work` raised nothing."""
    try:
        work()
        print(json.dumps({"check": name, "passed": True}))
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"check": name, "passed": False, "why": f"{type(error).__name__}: {error}"[:300]}))


def tensors(case, kind):
    """The client's own tensors, each with its values and whether one is missing: (input, array, bool)."""
    for given in case["inputs"]:
        dtype = np.object_ if given["datatype"] == "BYTES" else triton_to_np_dtype(given["datatype"])
        missing = b"" if given["datatype"] == "BYTES" else np.nan
        values = [missing if value is None else value for value in given["data"]]
        values = [value.encode() if isinstance(value, str) else value for value in values]
        made = kind.InferInput(given["name"], given["shape"], given["datatype"])
        yield made, np.array(values, dtype), None in given["data"]


def refuses(status, text, call):
    """The client raises its own error, with our status and our words."""
    refused = None
    try:
        call()
    except InferenceServerException as error:
        refused = error
    assert refused is not None, "was not refused"
    assert refused.status() == status, (refused.status(), refused.message())
    assert text in refused.message(), refused.message()

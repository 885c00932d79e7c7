"""What bad tensors cost: in proportion to their bytes, and no more, whatever is in them."""

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.oip.tensors import HEADER, tensor
from tests.service.running import ask, make_app, started

LIMIT = 1 << 19
PRICE = b'{"inputs":[{"name":"price","datatype":"FP64","shape":[1000],"data":['

Make = Callable[[int], tuple[bytes, dict[str, str]]]


def repeated(head: bytes, item: bytes, tail: bytes) -> Make:
    """A body of any length, of one item many times."""

    def make(size: int) -> tuple[bytes, dict[str, str]]:
        return head + item * ((size - len(head) - len(tail)) // len(item)) + tail, {}

    return make


def numbered(size: int) -> tuple[bytes, dict[str, str]]:
    """Many tensors that no field takes."""
    entries = (b'{"name":"%d","datatype":"FP64","shape":[1],"data":[1]}' % number for number in range(size // 60))
    return b'{"inputs":[' + b",".join(entries) + b"]}", {}


def sequences(text: str) -> Make:
    """A thousand rows at most of a sequence, each with this JSON."""

    def make(size: int) -> tuple[bytes, dict[str, str]]:
        texts = [text] * min(1000, size // (len(json.dumps(text)) + 2) - 1)
        return json.dumps({"inputs": [tensor("tags", "BYTES", texts)]}).encode(), {}

    return make


def binary(element: bytes, rows: int) -> Make:
    """Elements of BYTES, more than there are rows."""

    def make(size: int) -> tuple[bytes, dict[str, str]]:
        data = element * ((size - 200) // len(element))
        parameters = {"binary_data_size": len(data)}
        entry = {"name": "ad_id", "datatype": "BYTES", "shape": [rows], "parameters": parameters}
        head = json.dumps({"inputs": [entry]}).encode()
        return head + data, {HEADER: str(len(head))}

    return make


def cases() -> Iterator[tuple[str, Make]]:
    yield "tensors of nobody", numbered
    yield "inputs without a name", repeated(b'{"inputs":[', b"{},", b"{}]}")
    yield "long data", repeated(PRICE, b"1,", b"1]}]}")
    yield "lists for data", repeated(PRICE, b"[],", b"[]]}]}")
    yield "exponents", repeated(PRICE, b"4.9406564584124654e-324,", b"1]}]}")
    yield (
        "outputs of nobody",
        repeated(
            b'{"inputs":[{"name":"price","datatype":"FP64","shape":[1],"data":[1]}],"outputs":[',
            b'{"name":"x"},',
            b'{"name":"y"}]}',
        ),
    )
    yield "a wide integer that nobody reads", repeated(b'{"inputs":[],"x":[', b"[[]],", b"9" * 20 + b"]}")
    yield "sequences of numbers slow to read", sequences("[" + "4.9e-324," * 50 + "1]")
    yield "a sequence of many lists", lambda size: sequences("[" + "[]," * (size // 4) + "[]]")(size)
    yield "elements of no length", binary(bytes(4), 1000)
    yield (
        "an element that is no text",
        lambda size: binary((size - 300).to_bytes(4, "little") + b"\xff" * (size - 300), 1)(size),
    )


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0].replace(" ", "-"))
def test_a_bad_body_of_twice_the_length_costs_twice_as_much(repository: Path, case: tuple[str, Make]):
    """Processor time of this thread, the best of five; what costs next to nothing may vary."""

    async def costs() -> tuple[list[float], list[int]]:
        async with started(make_app(repository)) as app:
            gc.collect()
            gc.disable()  # its turns come with the number of objects made, and are the whole heap's
            try:
                best, statuses = [], []
                for size in (LIMIT // 4, LIMIT // 2, LIMIT):
                    body, headers = case[1](size)
                    assert len(body) <= LIMIT
                    times = []
                    for _ in range(5):
                        began = time.thread_time()
                        reply: Any = await ask(app, "/v2/models/student/infer", body, headers=list(headers.items()))
                        times.append(time.thread_time() - began)
                    best.append(min(times))
                    statuses.append(reply.status)
                return best, statuses
            finally:
                gc.enable()

    best, statuses = asyncio.run(costs())

    assert all(400 <= status < 500 for status in statuses)
    assert best[2] < 4 * 2.5 * max(best[0], 0.0005), best

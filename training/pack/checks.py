"""Does the wrapped graph answer as the one that came, row by row, and as their library said it does?

The reference is the graph as it came, run as their library runs it: their ids made in numpy, each row its own copy of
the context. The nodes around it, and the graph's indifference to which rows are scored together, are on the other side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.graph import CANDIDATES, CONTEXT, LOGIT, PCTR, REQUEST_INDEX, ids_input, offsets_input
from models.manifest import Calibration
from training.data.golden_rows import spread_out
from training.errors import PackError
from training.export.bundles import wiring_of
from training.export.parity import TOLERANCE, Feed, random_feeds
from training.fit.metrics import sigmoid
from training.pack.graph import Foreign
from training.pack.rows import Batch

FEW = 7
"""Rows scored once more by themselves."""


def drawn_feeds(foreign: Foreign) -> Iterator[Feed]:
    """Ids drawn at random, and the first and last of each table, as an encoder gives them: no list is empty (its id is
    then 0) or longer than its field keeps."""
    encoder = foreign.encoder
    for feed in random_feeds(wiring_of(encoder)):
        for field in encoder.schema.sequence_fields:
            ids, offsets = feed[ids_input(field.name)], feed[offsets_input(field.name)]
            none = np.zeros(1, np.int32)
            lists = [ids[start:end][: field.max_length] if end > start else none for start, end in pairwise(offsets)]
            feed[ids_input(field.name)] = np.concatenate([none[:0], *lists])
            feed[offsets_input(field.name)] = np.cumsum([0, *map(len, lists)]).astype(np.int32)
        yield feed


def refuse_ids_beyond(foreign: Foreign) -> None:
    """Feed every id of every table, or its ends; `PackError` names the field whose ids the graph has no row for."""
    for feed in drawn_feeds(foreign):
        try:
            foreign.answers(feed)
        except PackError as error:
            for name, size in foreign.encoder.sizes.items():
                try:
                    foreign.answers(_all_missing_but(foreign, name, size))
                except PackError:
                    largest = int(foreign.their_ids(name, np.arange(size)).max())
                    raise PackError(
                        f"{foreign.path}: field {name!r}: its vocabulary gives ids up to {largest}, and the graph "
                        "cannot score one of them: its embedding table is smaller. Expected the vocabulary that the "
                        f"graph was trained with ({error})"
                    ) from None
            raise


def check_answers(
    foreign: Foreign, packed: onnxruntime.InferenceSession, calibration: Calibration, feeds: Iterable[tuple[str, Feed]]
) -> float:
    """The largest difference in logit, as part of max(1, |logit|); `PackError` where it is above the tolerance.

    `feeds` come with where they are from, for the error.
    """
    worst = 0.0
    for place, feed in feeds:
        theirs = foreign.answers(feed)
        refuse_numbers(foreign, theirs, place)
        logit, pctr = (found.astype(np.float64) for found in packed.run([LOGIT, PCTR], feed))
        worst = max(worst, _compare(foreign, theirs, logit, pctr, calibration, place))
        few = spread_out(np.arange(len(logit)), FEW).tolist() if len(logit) > 1 else []
        for row in few:
            alone = foreign.answers(_one_row(foreign, feed, row))
            for name, value in alone.items():
                if not abs(value[0] - theirs[name][row]) <= TOLERANCE * max(1.0, abs(value[0])):
                    raise PackError(
                        f"{foreign.path}: {place}: row {row} scores {value[0]:.7g} by itself and "
                        f"{theirs[name][row]:.7g} among others; expected rows that do not see each other. Export in "
                        "evaluation mode (model.eval(): dropout and batch normalisation), with the batch dimension free"
                    )
    return worst


def refuse_numbers(foreign: Foreign, theirs: dict[str, NDArray[np.float64]], place: str) -> None:
    """`PackError` for a score that is NaN or infinite, or a probability outside 0 to 1."""
    for name, values in theirs.items():
        output = foreign.logit if name == "logit" else foreign.probability
        good = np.isfinite(values)
        if not good.all():
            row = int((~good).argmax())
            raise PackError(
                f"{foreign.path}: output {output!r}: {place}: row {row} scores {values[row]}; expected a number. "
                "A list without elements? torch.onnx.export drops FuxiCTR's `+ 1e-12` under a mean unless told "
                "optimize=False. Otherwise look for weights that diverged"
            )
        if name == "probability" and ((values < 0) | (values > 1)).any():
            row = int(((values < 0) | (values > 1)).argmax())
            raise PackError(
                f"{foreign.path}: output {output!r}: {place}: row {row}: expected a probability from 0 to 1, got "
                f"{values[row]:.7g}; if it is a logit, say --logit {output}"
            )


def refuse_unexpected(
    foreign: Foreign, batch: Batch, logit: NDArray[np.float64], expected: NDArray[np.float32], column: str
) -> float:
    """The largest |sigmoid(logit) - expected|; `PackError` above the tolerance, with what such rows share."""
    pctr = sigmoid(logit)
    gap = np.abs(pctr - expected)
    wrong = ~(gap <= TOLERANCE)
    if wrong.any():
        row = int(gap.argmax())
        raise PackError(
            f"{batch.place(row)}: column {column!r}: expected {expected[row]:.7g}, got {pctr[row]:.7g} from the "
            f"graph; {int(wrong.sum())} of {len(gap)} rows differ by more than {TOLERANCE:g}. "
            f"{_what_they_share(foreign, batch, wrong)}"
        )
    return float(gap.max(initial=0.0))


def _what_they_share(foreign: Foreign, batch: Batch, wrong: NDArray[np.bool_]) -> str:
    """The likeliest cause: something that all rows marked in `wrong` [n] have, and as few of the others as possible."""
    schema, feed = foreign.encoder.schema, batch.feed
    clues: list[tuple[NDArray[np.bool_], str]] = []
    for name, fields in ((CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)):
        for place, field in enumerate(fields):
            ids = feed[name][:, place]
            missing = 'what does the library put in its place (FuxiCTR: --fill-na; elsewhere its "missing")?'
            unknown = 'is the vocabulary cut short, are values spelled otherwise, is its "unknown" right?'
            clues.append((ids == 0, f"have no {field.name!r}: {missing}"))
            clues.append((ids == 1, f"have a {field.name!r} that its vocabulary does not know: {unknown}"))
    for field in schema.sequence_fields:
        ids, offsets = feed[ids_input(field.name)], feed[offsets_input(field.name)]
        kept = "does `keep` name the end that the library keeps, and pads at the other?"
        clues.append((np.diff(offsets) == field.max_length, f"have a full list of {field.name!r}: {kept}"))
        clues.append((ids[offsets[:-1]] != 0, f"have a list of {field.name!r}: {kept}"))
    fitting = [(int((clue & ~wrong).sum()), said) for clue, said in clues if clue[wrong].all() and not clue.all()]
    if wrong.all() or not fitting:
        return (
            "Nothing that they share tells why: is a vocabulary of another field or run, is a field read from another "
            f"column, is {foreign.path.name} the model that predicted?"
        )
    return f"All of those {min(fitting)[1]}"


def _compare(
    foreign: Foreign,
    theirs: dict[str, NDArray[np.float64]],
    logit: NDArray[np.float64],
    pctr: NDArray[np.float64],
    calibration: Calibration,
    place: str,
) -> float:
    worst = 0.0
    if "logit" in theirs:
        worst = _gap(foreign, LOGIT, theirs["logit"], logit, place)
    if "probability" in theirs:
        gap = _gap(foreign, "sigmoid(logit)", theirs["probability"], sigmoid(logit), place)
        worst = worst if "logit" in theirs else gap
        if (calibration.scale, calibration.shift) == (1.0, 0.0):
            _gap(foreign, PCTR, theirs["probability"], pctr, place)
            return worst
    _gap(foreign, PCTR, sigmoid(calibration.scale * logit + calibration.shift), pctr, place)
    return worst


def _gap(foreign: Foreign, output: str, wanted: NDArray[np.float64], got: NDArray[np.float64], place: str) -> float:
    if got.shape != wanted.shape:
        raise PackError(f"{foreign.path}: {output}: {place}: expected shape {wanted.shape}, got {got.shape}")
    gap = np.abs(got - wanted) / np.maximum(1.0, np.abs(wanted))
    if not (gap <= TOLERANCE).all():
        row = int(gap.argmax())
        both = " Is the output of --logit the logit of that of --probability?" if "sigmoid" in output else ""
        raise PackError(
            f"{foreign.path}: {output}: {place}: row {row}: expected {wanted[row]:.7g} as the graph says, got "
            f"{got[row]:.7g} in the contract's form, which differs by more than {TOLERANCE:g}.{both}"
        )
    return float(gap.max(initial=0.0))


def _one_row(foreign: Foreign, feed: Feed, row: int) -> Feed:
    """One candidate of a feed with its request's context."""
    request = int(feed[REQUEST_INDEX][row])
    one: Feed = {
        CONTEXT: feed[CONTEXT][request : request + 1],
        CANDIDATES: feed[CANDIDATES][row : row + 1],
        REQUEST_INDEX: np.zeros(1, np.int32),
    }
    for field in foreign.encoder.schema.sequence_fields:
        place = request if field.role == "context" else row
        start, end = feed[offsets_input(field.name)][place : place + 2].tolist()
        one[ids_input(field.name)] = feed[ids_input(field.name)][start:end]
        one[offsets_input(field.name)] = np.array([0, end - start], dtype=np.int32)
    return one


def _all_missing_but(foreign: Foreign, name: str, size: int) -> Feed:
    """A candidate a row for each of the field's ids (their largest and smallest), in a request of its own."""
    theirs = foreign.their_ids(name, np.arange(size))
    ids = np.array([int(theirs.argmax()), int(theirs.argmin())], dtype=np.int32)
    schema, count = foreign.encoder.schema, len(ids)
    feed: Feed = {REQUEST_INDEX: np.arange(count, dtype=np.int32)}
    for input_, fields in ((CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)):
        feed[input_] = np.zeros((count, len(fields)), np.int32)
        for place, field in enumerate(fields):
            if field.name == name:
                feed[input_][:, place] = ids
    for field in schema.sequence_fields:
        feed[ids_input(field.name)] = ids if field.name == name else np.zeros(count, np.int32)
        feed[offsets_input(field.name)] = np.arange(count + 1, dtype=np.int32)
    return feed

"""Trained networks -> bundles that the service loads: steps of a run, and filling a repository with the result.

    graph      one model's graph, held to its networks (`parity.py`), with golden answers
    quantize   where a recipe asks: the student's graph in smaller numbers, and whether it may ship (`quantize.py`)
    export     what each graph costs (`cost.py`), and a card with everything a bundle's manifest says
    publish    bundles of these in the repository; a model whose newest version is this one already is left alone

Steps are cached like any other. Publishing is not, so that a repository that was emptied, or another one, is filled by
running again; and it makes no new version where nothing but measured milliseconds would differ.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle, read_bundle, write_bundle
from models.checksums import hash_file
from models.encoder import Encoder
from models.errors import BundleError
from models.golden import Golden, GoldenRequest
from models.graph import LOGIT, PCTR, graph_inputs
from models.manifest import (
    Calibration,
    Cost,
    DataFacts,
    FieldReference,
    GraphFigures,
    Histogram,
    Latency,
    ModelCard,
    PartFacts,
    Quantization,
    Reference,
    Teacher,
)
from models.versions import versions_in
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import PrepareReport, fields_of, load_encoder, load_golden_rows
from training.distillation.calibrate import Platt
from training.distillation.gate import Gate
from training.export.cost import bytes_of, conditions, measure_costs, open_session
from training.export.parity import Feed, check_parity, log_feed, random_feeds
from training.export.quantize import (
    Quantize,
    calibration_feeds,
    measure_quantized,
    quantize_graph,
    summary,
    tolerance_of,
)
from training.export.serving_graph import Head, ServingGraph, Wiring, count_parameters, write_graph
from training.fit.loop import load_network
from training.fit.metrics import sigmoid
from training.pipeline.stages import Report, same_file

STUDENT, CONTROL, ENSEMBLE = "student", "control", "ensemble"
_TEACHERS = "teachers/"
_QUANTIZED = "quantized/"

_ROOT = Path(__file__).parents[2]
_PARITY_ROWS = 512
_COST_REQUESTS = 32
_VOLATILE = {"cost", "git_commit", "git_dirty", "retort_version", "quantization"}
"""What a card may differ in and still be of the same model; of `quantization`, the milliseconds."""


@dataclass(frozen=True)
class About:
    """What a card says of a model beside what its graph knows.

    `logit` [rows of the log] is uncalibrated; the reference histogram of pctr comes from its test rows.
    """

    head: Head
    logit: NDArray[np.float32]
    teachers: Mapping[str, float] = field(default_factory=dict)
    """Mean gate weight by teacher, for a student or an ensemble."""
    temperature: float | None = None


@dataclass(frozen=True)
class Published:
    """Where a model went. `is_new` is false where the newest version was this model already."""

    name: str
    path: Path
    is_new: bool

    @property
    def version(self) -> int:
        return int(self.path.name)


def graph(
    folder: Path,
    report: Report,
    *,
    prepared: Path,
    calibration: str | None = None,
    keep: float = 1.0,
    platt: Path | None = None,
    gate: Path | None = None,
    **networks: Path,
) -> None:
    """The `graph` step of one model: `networks` are the folders `network:<name>` of fits, teachers in the gate's order.

    `calibration` names the entry of platt.json; without, as for a teacher by itself, pctr is the logit's sigmoid.
    `keep` is the share of non-clicks that the networks saw.
    """
    fields = EncodedLog.open(prepared / "log").fields
    loaded = {name.partition(":")[2]: load_network(place, fields) for name, place in networks.items()}
    build_graph(folder, loaded, _head(calibration, keep, platt, gate), prepared=prepared, report=report)


def quantize(folder: Path, report: Report, *, prepared: Path, graph: Path, options: Any) -> None:
    """The `quantize` step: fill `folder` with model.onnx in smaller numbers, its golden.json, and quantized.json, which
    says what was found and which of the two graphs ships."""
    asked, log, encoder = Quantize(**options), EncodedLog.open(prepared / "log"), load_encoder(prepared)
    wiring = wiring_of(encoder)
    report(0, 3, "to smaller numbers")
    stretched = quantize_graph(graph, folder, asked, lambda: calibration_feeds(log, wiring, asked.calibration_rows))
    report(1, 3, "beside float32 on test rows")
    found = measure_quantized(log, wiring, graph, asked, stretched)
    report(2, 3, "golden rows")
    rows = load_golden_rows(prepared)
    answers, others = (
        [session.run([LOGIT, PCTR], encode_request(encoder, request)) for request in rows]
        for session in (open_session(folder / "model.onnx"), open_session(graph / "model.onnx"))
    )
    gap = max(float(np.abs(one[0] - other[0]).max()) for one, other in zip(answers, others, strict=True))
    golden = golden_of(rows, answers).model_copy(update={"tolerance": tolerance_of(found, gap)})
    (folder / "golden.json").write_text(golden.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _write(folder / "quantized.json", found)
    report(3, 3, summary(found))


def export(
    folder: Path,
    report: Report,
    *,
    recipe: Any,
    prepared: Path,
    measured: Path,
    gate: Path,
    ensemble: Path,
    platt: Path,
    student: Path,
    control: Path,
    quantized: Path | None = None,
    **graphs: Path,
) -> None:
    """The `export` step: student, control and ensemble of one seed.

    `student`, `control` and `ensemble` are the folders of the refitted fits, for their logits; `graphs` the folders
    `graph:<model>` and `graph:teachers/<name>` of the graph steps; `quantized` that of the student's quantize step.
    """
    measures = _read(measured / "measure.json")
    weights = measures["gate"]["mean_weights"]
    temperature, keep = recipe["student"]["fit"]["temperature"], recipe["negatives"]["keep"]
    models = {
        STUDENT: About(_head("student", keep, platt), np.load(student / "logit.npy"), weights, temperature),
        CONTROL: About(_head("control_train", keep, platt), np.load(control / "logit.npy")),
        ENSEMBLE: About(_head("ensemble", keep, platt, gate), np.load(ensemble / "logit.npy"), weights),
    }
    places = {name.partition(":")[2]: place for name, place in graphs.items()}
    build_cards(
        folder,
        models,
        places,
        prepared=prepared,
        recipe=recipe,
        test=measures["test"],
        report=report,
        quantized={STUDENT: quantized} if quantized else {},
    )


def build_graph(folder: Path, networks: Mapping[str, nn.Module], head: Head, *, prepared: Path, report: Report) -> None:
    """Fill `folder` with model.onnx, golden.json, graph.json; `ExportError` where it answers otherwise than torch."""
    encoder, log = load_encoder(prepared), EncodedLog.open(prepared / "log")
    wiring = wiring_of(encoder)
    golden_rows = load_golden_rows(prepared)
    golden_feeds = [encode_request(encoder, request) for request in golden_rows]

    report(0, 3, "to ONNX")
    write_graph(ServingGraph(networks, wiring, head), folder)
    session = open_session(folder / "model.onnx")
    report(1, 3, "against torch")
    feeds = [*random_feeds(wiring), *_log_feeds(log, wiring), *golden_feeds]
    parity = check_parity(session, feeds, networks, wiring, head, name=" + ".join(networks))
    report(2, 3, "golden rows")
    golden = golden_of(golden_rows, [session.run([LOGIT, PCTR], feed) for feed in golden_feeds])
    (folder / "golden.json").write_text(golden.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _write(folder / "graph.json", {"parity_error": parity.logit, **count_parameters(networks)})
    report(3, 3, f"logits within {parity.logit:.1e} of torch on {parity.candidates} rows")


def build_cards(
    folder: Path,
    models: Mapping[str, About],
    graphs: Mapping[str, Path],
    *,
    prepared: Path,
    recipe: Mapping[str, Any],
    test: Mapping[str, Any],
    report: Report,
    quantized: Mapping[str, Path] | None = None,
) -> None:
    """Fill `folder` with <model>/{model.onnx, golden.json, card.json} for each model, and cost.json.

    `graphs` has the folder of every model's graph, and of others to be measured beside them, teachers/<name>.
    `prepared` is the folder of the prepare step; `test` holds the metrics on test rows, by model. `quantized` has the
    folder of a model's quantize step: its graph ships in the other's place where that step allowed it.
    """
    encoder, log, prepare = load_encoder(prepared), EncodedLog.open(prepared / "log"), PrepareReport.read(prepared)
    wiring = wiring_of(encoder)
    facts = {name: _read(place / "graph.json") for name, place in graphs.items()}
    quantized = quantized or {}
    timed = {**graphs, **{f"{_QUANTIZED}{name}": place for name, place in quantized.items()}}
    latencies = measure_costs(
        {name: place / "model.onnx" for name, place in timed.items()},
        lambda count: _requests(log, wiring, count),
        progress=lambda part, _, note: report(part, 1, note),
    )
    found_of = {name: _quantization(graphs[name], place, latencies, name) for name, place in quantized.items()}
    costs: dict[str, Any] = {}
    for name, place in graphs.items():
        ships = name in found_of and found_of[name].ships == "quantized"
        sizes = {key: facts[name][key] for key in ("parameters_embedding", "parameters_dense")}
        size = bytes_of(quantized[name] if ships else place)
        costs[name] = latencies[f"{_QUANTIZED}{name}" if ships else name] | sizes | {"bytes": size}
    for name, about in models.items():
        (folder / name).mkdir(parents=True)
        found = found_of.get(name)
        place = quantized[name] if found is not None and found.ships == "quantized" else graphs[name]
        for file in (*place.glob("model.onnx*"), place / "golden.json"):
            same_file(file, folder / name / file.name)
        card = _card(about, encoder, log, prepare, recipe, test, facts[name]["parity_error"], costs[name], found)
        (folder / name / "card.json").write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    worst = {name: facts[name]["parity_error"] for name in models}
    cost = {name: found for name, found in costs.items() if not name.startswith(_TEACHERS)}
    cost["teachers"] = {
        name.removeprefix(_TEACHERS): found for name, found in costs.items() if name.startswith(_TEACHERS)
    }
    decided = {name: found.model_dump(mode="json") for name, found in found_of.items()}
    _write(
        folder / "cost.json",
        {"cost": cost, "conditions": conditions(), "parity_error": worst, "quantization": decided},
    )
    student, whole = (costs.get(name, {}).get("50", {}).get("p50_ms") for name in (STUDENT, ENSEMBLE))
    report(1, 1, f"student {student:.3f} ms, ensemble {whole:.3f} ms at 50" if student and whole else "measured")


def publish(folder: Path, prepared: Path, repository: Path) -> list[Published]:
    """Write what `build` left in `folder` into the repository, each model as its next version unless it is there."""
    encoder = load_encoder(prepared)
    published = []
    for place in sorted(path.parent for path in folder.glob("*/card.json")):
        card = ModelCard.model_validate_json((place / "card.json").read_text(encoding="utf-8"))
        golden = Golden.model_validate_json((place / "golden.json").read_text(encoding="utf-8"))
        files = {file.name: file for file in sorted(place.glob("model.onnx*"))}
        published.append(publish_model(repository, place.name, encoder=encoder, card=card, golden=golden, files=files))
    return published


def publish_model(
    repository: Path, name: str, *, encoder: Encoder, card: ModelCard, golden: Golden, files: Mapping[str, Path]
) -> Published:
    """The next version of one model, unless its newest is this one already. `files`: model.onnx, and its weights
    beside it."""
    newest = _newest(repository, name)
    if newest is not None and _is_same(newest, encoder, card, golden, files):
        return Published(name, newest.path, is_new=False)
    external = {file_name: file for file_name, file in files.items() if file_name != "model.onnx"}
    path = write_bundle(
        repository, name, encoder=encoder, card=card, golden=golden, model=files["model.onnx"], external=external
    )
    return Published(name, path, is_new=True)


def wiring_of(encoder: Encoder) -> Wiring:
    """How an encoder's fields meet a graph: training-only ones as the values that stand in for them."""
    names = [field.name for field in encoder.schema.training_only_fields]
    return Wiring(fields_of(encoder), dict(zip(names, encoder.serving_ids().tolist(), strict=True)))


def git_state(root: Path = _ROOT) -> tuple[str | None, bool]:
    """The commit of the code, and whether files differ from it; (None, False) outside a repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return (None, False) if commit is None else (commit, bool(git("status", "--porcelain", "--untracked-files=no")))


def _head(calibration: str | None, keep: float, platt: Path | None, gate: Path | None = None) -> Head:
    pair = Platt() if calibration is None or platt is None else Platt(*_read(platt / "platt.json")[calibration])
    return Head(pair, None if gate is None else Gate.from_json(_read(gate / "gate.json")["gate"]), keep)


def _card(
    about: About,
    encoder: Encoder,
    log: EncodedLog,
    prepare: PrepareReport,
    recipe: Mapping[str, Any],
    test: Mapping[str, Any],
    parity_error: float,
    cost: Mapping[str, Any],
    quantization: Quantization | None = None,
) -> ModelCard:
    commit, dirty = git_state()
    head = about.head
    corrected = head.platt.apply(about.logit[log.rows([Part.TEST])]) + np.log(head.negative_keep_rate)
    served = {field.name for field in encoder.schema.fields if field.role != "training_only"}
    return ModelCard(
        retort_version=version(),
        git_commit=commit,
        git_dirty=dirty,
        data=DataFacts(
            source=", ".join(Path(file).name for file in prepare.files),
            fingerprint=prepare.fingerprint,
            parts=_parts(prepare),
        ),
        recipe=dict(recipe),
        teachers=tuple(Teacher(name=name, mean_gate_weight=weight) for name, weight in about.teachers.items()),
        temperature=about.temperature,
        calibration=Calibration(
            scale=head.platt.scale, bias=head.platt.bias, negative_sampling_rate=head.negative_keep_rate
        ),
        reference=Reference(
            fields={
                name: FieldReference(ids=found.ids, counts=found.counts, other=found.other)
                for name, found in prepare.reference.items()
                if name in served
            },
            pctr=Histogram.of_probabilities(sigmoid(corrected)),
        ),
        test_metrics=_flat(test),
        parity_error=parity_error,
        cost=Cost(
            parameters_embedding=cost["parameters_embedding"],
            parameters_dense=cost["parameters_dense"],
            bytes=cost["bytes"],
            latency={count: Latency(**value) for count, value in cost.items() if count.isdigit()},
        ),
        quantization=quantization,
    )


def _quantization(graph: Path, quantized: Path, latencies: Mapping[str, Any], name: str) -> Quantization:
    """What the quantize step found, with bytes and milliseconds of both graphs."""
    found = _read(quantized / "quantized.json")
    for which, place, timed in (("float32", graph, name), ("quantized", quantized, f"{_QUANTIZED}{name}")):
        found[which] = GraphFigures(
            metrics=found[which],
            bytes=bytes_of(place),
            latency={count: Latency(**value) for count, value in latencies[timed].items()},
        )
    return Quantization(**found | {"reasons": tuple(found["reasons"])})


def _parts(prepare: PrepareReport) -> dict[str, PartFacts]:
    """train, valid and test; the three parts of validation together."""
    parts = {}
    for name in ("train", "valid", "test"):
        within = [part for part in prepare.rows if part == name or part.startswith(f"{name}_")]
        times = {
            end: pick(datetime.fromisoformat(found[part]) for part in within if part in found)
            for end, pick, found in (("first", min, prepare.first_time), ("last", max, prepare.last_time))
            if any(part in found for part in within)
        }
        parts[name] = PartFacts(rows=sum(prepare.rows[part] for part in within), **times)
    return parts


def _flat(test: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics by model, a teacher's under teachers/<name>; a figure that the rows do not define is left out."""
    models = {name: found for name, found in test.items() if name != "teachers"}
    models |= {f"teachers/{name}": found for name, found in test.get("teachers", {}).items()}
    return {
        name: {metric: float(value) for metric, value in found.items() if value is not None}
        for name, found in models.items()
    }


def encode_request(encoder: Encoder, request: Mapping[str, Any]) -> Feed:
    """A raw request as the graph is fed it."""
    context = encoder.encode_context(request["context"])
    return graph_inputs([context], [encoder.encode_candidates(request["candidates"])])


def golden_of(rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[NDArray[np.float32]]]) -> Golden:
    """Raw requests with logit and pctr of each."""
    return Golden(
        requests=tuple(
            GoldenRequest(
                context=request["context"],
                candidates=tuple(request["candidates"]),
                logit=tuple(logit.tolist()),
                pctr=tuple(pctr.tolist()),
            )
            for request, (logit, pctr) in zip(rows, answers, strict=True)
        )
    )


def _log_feeds(log: EncodedLog, wiring: Wiring) -> list[Feed]:
    rows = log.rows([Part.TEST])
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), _PARITY_ROWS)).round().astype(np.int64)]
    return [log_feed(log, wiring, picked), log_feed(log, wiring, picked, one_request=True)]


def _requests(log: EncodedLog, wiring: Wiring, count: int) -> list[Feed]:
    """Requests of `count` candidates: the context of a test row, the candidates of others."""
    rows, rng = log.rows([Part.TEST]), np.random.default_rng(count)
    return [log_feed(log, wiring, rng.choice(rows, count), one_request=True) for _ in range(_COST_REQUESTS)]


def _newest(repository: Path, name: str) -> Bundle | None:
    versions = versions_in(repository / name)
    if not versions:
        return None
    try:
        return read_bundle(repository / name / str(versions[-1]))
    except BundleError:  # damaged, or of another format: a sound one goes beside it
        return None


def _is_same(bundle: Bundle, encoder: Encoder, card: ModelCard, golden: Golden, files: Mapping[str, Path]) -> bool:
    """Whether the bundle would score the same and says the same of itself, but for `_VOLATILE`."""
    there = {file.name: hash_file(file) for file in bundle.path.glob("model.onnx*")}
    written = {name: getattr(bundle.manifest, name) for name in ModelCard.model_fields}
    return (
        there == {name: hash_file(file) for name, file in files.items()}
        and bundle.schema == encoder.schema
        and bundle.encoder.to_vocabularies() == encoder.to_vocabularies()
        and bundle.golden == golden
        and all(written[name] == getattr(card, name) for name in written if name not in _VOLATILE)
        and _untimed(bundle.manifest.quantization) == _untimed(card.quantization)
    )


def _untimed(found: Quantization | None) -> dict[str, Any] | None:
    """What was found, less milliseconds."""
    return None if found is None else found.model_dump(exclude={"float32": {"latency"}, "quantized": {"latency"}})


def version() -> str:
    """Of this installation."""
    try:
        return importlib.metadata.version("retort")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "source"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, facts: Any) -> None:
    path.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")

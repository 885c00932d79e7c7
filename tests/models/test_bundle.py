"""A bundle on disk: what is written can be read, and whatever is not exactly that is refused by name."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from models import bundle as bundle_module
from models import checksums
from models.bundle import TEMPORARY_PREFIX, read_bundle, write_bundle
from models.checksums import SUMS_FILE
from models.errors import BundleError
from models.golden import check_golden
from models.graph import LOGIT, PCTR, graph_inputs
from models.manifest import BUNDLE_FORMAT, Manifest
from models.versions import Repository
from tests.models.tiny_bundle import tiny_card, tiny_golden, tiny_graph, tiny_model, write_tiny_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return write_tiny_bundle(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    shutil.copytree(pristine, tmp_path / "tiny" / "1")
    return tmp_path / "tiny" / "1"


def reseal(bundle: Path) -> None:
    """SHA256SUMS anew, as somebody would who edits a bundle knowingly: what is wrong has to be found deeper."""
    files = checksums.files_below(bundle) - {SUMS_FILE}
    (bundle / SUMS_FILE).write_bytes(checksums.render({file: checksums.hash_file(bundle / file) for file in files}))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON document by what `change` makes of it, or by itself as `change` left it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed), encoding="utf-8")
    reseal(path.parent if path.parent.name != "vocabularies" else path.parent.parent)


def refused(bundle: Path) -> BundleError:
    """The error that reading the bundle ends in."""
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    return caught.value


def every_file(bundle: Path) -> list[str]:
    return sorted(checksums.files_below(bundle))


# --- what is written can be read --------------------------------------------------------------------------------


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path):
    """Schema, encoder, golden rows and card come back equal; the version counts from 1."""
    model = tiny_model(bias=0.5)

    path = write_tiny_bundle(tmp_path, "student", bias=0.5)
    bundle = read_bundle(path)

    assert path == tmp_path / "student" / "1"
    assert (bundle.path, bundle.name, bundle.version) == (path, "student", 1)
    assert bundle.schema == model.encoder.schema
    assert bundle.encoder.to_vocabularies() == model.encoder.to_vocabularies()
    assert bundle.golden == tiny_golden(model)
    assert bundle.manifest.table_sizes == model.encoder.sizes
    assert {name: getattr(bundle.manifest, name) for name in type(tiny_card(model)).model_fields} == dict(
        tiny_card(model)
    )
    assert bundle.model_path.read_bytes() == tiny_graph(model)
    assert bundle.sha256 == hashlib.sha256((path / SUMS_FILE).read_bytes()).hexdigest()


def test_versions_count_up_and_leave_what_was_there(tmp_path: Path):
    """A new version changes nothing of an old one, and a number once used is not used again."""
    first = write_tiny_bundle(tmp_path)
    before = read_bundle(first).sha256

    second = write_tiny_bundle(tmp_path, bias=1.0)
    shutil.rmtree(first)
    third = write_tiny_bundle(tmp_path, bias=2.0)

    assert [path.name for path in (first, second, third)] == ["1", "2", "3"]
    assert read_bundle(second).sha256 != before


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum (coreutils)")
def test_sha256sum_agrees(tiny: Path):
    """`sha256sum -c` finds every file right, and the one that is damaged wrong."""
    command = ["sha256sum", "--strict", "-c", SUMS_FILE]

    good = subprocess.run(command, cwd=tiny, capture_output=True, text=True, check=False)
    (tiny / "golden.json").write_bytes(b"[]")
    bad = subprocess.run(command, cwd=tiny, capture_output=True, text=True, check=False)

    assert good.returncode == 0
    assert sorted(line.removesuffix(": OK") for line in good.stdout.splitlines()) == [
        file for file in every_file(tiny) if file != SUMS_FILE
    ]
    assert bad.returncode == 1
    assert "golden.json: FAILED" in bad.stdout


def test_no_file_is_a_pickle(pristine: Path):
    """JSON, ONNX and checksums: nothing that runs code when it is read."""
    assert {Path(file).suffix for file in every_file(pristine)} == {".json", ".onnx", ""}


def test_external_data_travels_with_the_graph(tmp_path: Path):
    """model.onnx.data is listed, verified and found by the runtime."""
    ort = pytest.importorskip("onnxruntime")
    model, graph = with_external_data(tmp_path, "model.onnx.data")

    path = write_bundle(
        tmp_path,
        "big",
        encoder=model.encoder,
        card=tiny_card(model),
        golden=tiny_golden(model),
        model=graph,
        external={"model.onnx.data": graph.parent / "model.onnx.data"},
    )
    bundle = read_bundle(path)

    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    check_golden(
        bundle.golden,
        lambda context, candidates: session.run(
            [LOGIT, PCTR],
            graph_inputs([bundle.encoder.encode_context(context)], [bundle.encoder.encode_candidates(candidates)]),
        ),
        path,
    )
    data = bytearray((path / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (path / "model.onnx.data").write_bytes(data)
    assert refused(path).path == path / "model.onnx.data"


def with_external_data(folder: Path, location: str) -> tuple[Any, Path]:
    """The tiny model, and its graph in `folder`/graph with the weights in `location`."""
    model = tiny_model()
    place = folder / "graph" / "model.onnx"
    place.parent.mkdir()
    onnx.save_model(
        onnx.load_from_string(tiny_graph(model)),
        str(place),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=256,
    )
    if location != "model.onnx.data":
        loaded = onnx.load(str(place), load_external_data=False)
        for tensor in loaded.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        place.write_bytes(loaded.SerializeToString())
    return model, place


# --- damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_refused_naming_the_file(tiny: Path):
    """Many positions of every file; the file itself is named and put back before the next."""
    rng = random.Random(0)

    for file in every_file(tiny):
        whole = (tiny / file).read_bytes()
        ends = {0, 1, len(whole) - 2, len(whole) - 1}
        for position in ends | {rng.randrange(len(whole)) for _ in range(40)}:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << rng.randrange(8)
            (tiny / file).write_bytes(damaged)

            error = refused(tiny)

            if file != SUMS_FILE:
                assert (error.path, "damaged" in error.reason) == (tiny / file, True), error
        (tiny / file).write_bytes(whole)
    assert read_bundle(tiny).version == 1


def test_no_bit_of_the_checksums_is_spare(tiny: Path):
    """Of two lines each bit, line ends and blanks among them; of the others one a byte."""
    rng = random.Random(0)
    whole = (tiny / SUMS_FILE).read_bytes()
    first, last = whole.index(b"\n") + 1, whole.rindex(b"\n", 0, -1)

    for position in range(len(whole)):
        for bit in range(8) if position < first or position >= last else (rng.randrange(8),):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            (tiny / SUMS_FILE).write_bytes(damaged)
            with pytest.raises(BundleError):
                read_bundle(tiny)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: text.upper(),
        lambda text: text.replace("  ", " *"),
        lambda text: "\ufeff" + text,
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: "\n".join(reversed(text.splitlines())) + "\n",
        lambda text: "# a comment\n" + text,
        lambda text: "",
    ],
)
def test_checksums_have_one_spelling(tiny: Path, change: Callable[[str], str]):
    """What some tools would let pass is not what was written."""
    text = (tiny / SUMS_FILE).read_text(encoding="ascii")
    (tiny / SUMS_FILE).write_bytes(change(text).encode())

    assert refused(tiny).path == tiny / SUMS_FILE


@pytest.mark.parametrize("sealed", [False, True])
def test_a_graph_cut_short_is_refused_at_any_length(tiny: Path, sealed: bool):
    """With checksums made anew too: its own structure tells, wherever a cut breaks it."""
    whole = (tiny / "model.onnx").read_bytes()

    for length in [0, 1, 2, 10, *range(20, len(whole) - 20, 97)]:
        (tiny / "model.onnx").write_bytes(whole[:length])
        if sealed:
            reseal(tiny)

        error = refused(tiny)

        assert error.path == tiny / "model.onnx"
        assert sealed is bool(re.search(r"cut short|no ONNX|no graph", error.reason)), error


@pytest.mark.parametrize("sealed", [False, True])
def test_a_missing_file_is_named(pristine: Path, tmp_path: Path, sealed: bool):
    """Each of them in turn, with checksums made anew too."""
    for file in every_file(pristine):
        copy = tmp_path / "tiny" / "1"
        shutil.copytree(pristine, copy)
        (copy / file).unlink()
        if sealed and file != SUMS_FILE:
            reseal(copy)

        error = refused(copy)

        assert (error.path, "missing" in error.reason or "not listed" in error.reason) == (copy / file, True), error
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    "file", ["notes.txt", "model.onnx.bak", "vocabularies/extra.json", "sub/file.json", ".hidden", "model.pkl"]
)
@pytest.mark.parametrize("sealed", [False, True])
def test_an_extra_file_is_named(tiny: Path, file: str, sealed: bool):
    """Listed or not, a file that the format does not have has no business here."""
    (tiny / file).parent.mkdir(exist_ok=True)
    (tiny / file).write_bytes(b"x")
    if sealed:
        reseal(tiny)

    error = refused(tiny)

    assert error.path == tiny / (SUMS_FILE if sealed and file == ".hidden" else file)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", "schema.json", SUMS_FILE, "vocabularies/ad_id.json"])
def test_a_symbolic_link_is_refused(tiny: Path, tmp_path: Path, file: str):
    """Even to the very same bytes: they could change without a new version."""
    shutil.move(tiny / file, tmp_path / "elsewhere")
    (tiny / file).symlink_to(tmp_path / "elsewhere")

    error = refused(tiny)

    assert (error.path, "symbolic link" in error.reason) == (tiny / file, True)


@pytest.mark.parametrize("which", ["vocabularies", ".", ".."])
def test_a_linked_folder_is_refused(tiny: Path, tmp_path: Path, which: str):
    """The vocabularies, the version, the model: a repository's folders are its own."""
    folder = (tiny / which).resolve()
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)

    error = refused(tiny)

    assert (error.path, "symbolic link" in error.reason) == (folder, True)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json", SUMS_FILE, "vocabularies/ad_id.json"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_regular_file_is_refused(tiny: Path, file: str, kind: str):
    """A folder in the way, and a pipe that would make a reader wait for ever."""
    (tiny / file).unlink()
    (tiny / file).mkdir() if kind == "folder" else os.mkfifo(tiny / file)

    error = refused(tiny)

    assert error.path == tiny / file
    assert ("folder" if kind == "folder" else "no regular file") in error.reason


@pytest.mark.parametrize(
    "path", ["../secret.json", "/etc/hostname", "./schema.json", "a//b", "a/../b", "~x", "a\\b", "..", " a", SUMS_FILE]
)
def test_a_listed_path_that_leads_outside_is_refused(tiny: Path, path: str):
    """Or that has a second spelling; nothing outside is even opened."""
    (tiny.parent / "secret.json").write_bytes(b"x")
    with (tiny / SUMS_FILE).open("a", encoding="ascii") as file:
        file.write(f"{hashlib.sha256(b'x').hexdigest()}  {path}\n")

    assert refused(tiny).path == tiny / SUMS_FILE


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "golden.json", "model.onnx.missing", ""])
def test_weights_outside_the_bundle_are_refused(tiny: Path, tmp_path: Path, location: str):
    """A graph may name any path for its weights; a bundle's may name model.onnx.<suffix> in the bundle."""
    _, graph = with_external_data(tmp_path, location)
    shutil.copy(graph, tiny / "model.onnx")
    reseal(tiny)

    error = refused(tiny)

    assert (error.path, "keeps weights in" in error.reason) == (tiny / "model.onnx", True)


@pytest.mark.parametrize("place", ["tiny/x", "tiny/01", "tiny/0", "tiny/-1", "Tiny/1", ".tiny/1", "tiny/١"])
def test_a_folder_that_is_no_version_is_refused(tiny: Path, tmp_path: Path, place: str):
    """<name>/<version>, nothing else."""
    shutil.copytree(tiny, tmp_path / "other" / place)

    assert "expected a folder <name>/<version>" in refused(tmp_path / "other" / place).reason


@pytest.mark.parametrize("place", ["other/1", "tiny/2"])
def test_a_bundle_is_never_renamed(tiny: Path, place: str):
    """Logs say which model and version answered; a copy under another name would make them lie."""
    moved = tiny.parents[1] / place
    shutil.copytree(tiny, moved)

    error = refused(moved)

    assert (error.path, "never renamed" in error.reason) == (moved / "manifest.json", True)


def test_an_absent_bundle_and_a_file_in_its_place_are_refused(tmp_path: Path):
    """With the bundle's own path."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "2").write_bytes(b"")

    assert str(refused(tmp_path / "tiny" / "1")) == f"{tmp_path / 'tiny' / '1'}: is missing"
    assert "is no folder" in refused(tmp_path / "tiny" / "2").reason


# --- formats ----------------------------------------------------------------------------------------------------


def test_a_newer_format_says_what_to_do_whatever_else_it_holds(tiny: Path):
    """The version is judged before the rest: a newer bundle may have other files and other keys."""
    (tiny / "something.new").write_bytes(b"x")
    (tiny / "golden.json").unlink()
    edit(tiny / "manifest.json", lambda manifest: manifest.update(format_version=BUNDLE_FORMAT + 1, new_key=1))

    error = refused(tiny)

    assert error.path == tiny / "manifest.json"
    newer, newest = BUNDLE_FORMAT + 1, BUNDLE_FORMAT
    assert f"written by a newer Retort (bundle format {newer}; this one reads up to {newest})" in error.reason
    assert "upgrade" in error.reason


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, None, True, [1]])
def test_a_format_that_is_no_version_is_refused(tiny: Path, version: Any):
    """Whole numbers from 1."""
    edit(tiny / "manifest.json", lambda manifest: manifest.update(format_version=version))

    assert "expected a bundle format version" in refused(tiny).reason


def test_a_newer_schema_in_a_bundle_says_what_to_do(tiny: Path):
    """The schema has a format of its own."""
    edit(tiny / "schema.json", lambda schema: schema.update(format_version=2))

    error = refused(tiny)

    assert (error.path, "newer Retort (schema format 2" in error.reason) == (tiny / "schema.json", True)


# --- contents that contradict one another ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("manifest.json", lambda m: m.update(extra=1), "extra"),
        ("manifest.json", lambda m: (m.pop("parity_error"), None)[1], "parity_error: is missing"),
        ("manifest.json", lambda m: m.update(created="yesterday"), "created"),
        ("manifest.json", lambda m: m.update(created="2026-01-01T00:00:00"), "created"),
        ("manifest.json", lambda m: m["table_sizes"].update(ad_id=7), "table_sizes: field 'ad_id'"),
        ("manifest.json", lambda m: (m["table_sizes"].pop("ad_id"), None)[1], "table_sizes: field 'ad_id'"),
        ("manifest.json", lambda m: m["table_sizes"].update(other=7), "table_sizes: field 'other'"),
        ("manifest.json", lambda m: [m], "format_version"),
        ("schema.json", lambda s: s["fields"][0].update(kind="numeric"), "a numeric field is encoded by"),
        ("schema.json", lambda s: s["fields"].append(s["fields"][0]), "named 2 times"),
        ("schema.json", lambda s: (s["fields"].pop(), None)[1], "vocabularies/position.json: does not belong"),
        ("vocabularies/ad_id.json", lambda v: v.append(v[0]), "stands twice"),
        ("vocabularies/ad_id.json", lambda v: v.extend(f"b{i}" for i in range(11)), "at most 50 values, got 51"),
        ("vocabularies/ad_id.json", lambda v: (v.pop(), None)[1], "table_sizes: field 'ad_id'"),
        ("vocabularies/ad_id.json", lambda v: v.append(7), "strings"),
        ("vocabularies/ad_id.json", lambda v: v.append("\ud800"), "canonical form"),
        ("vocabularies/ad_id.json", lambda v: {"a": 1}, "expected a list"),
        ("vocabularies/hour.json", lambda v: v.append("07"), "canonical form of integer"),
        ("vocabularies/price.json", lambda v: v.reverse(), "grow strictly"),
        ("vocabularies/price.json", lambda v: v.append(v[-1]), "grow strictly"),
        ("vocabularies/price.json", lambda v: v.extend(range(100, 120)), "at most 15 edges"),
        ("golden.json", lambda g: g.update(requests=[]), "requests"),
        ("golden.json", lambda g: g.update(tolerance=1), "tolerance"),
        ("golden.json", lambda g: g.update(tolerance=0), "tolerance"),
        ("golden.json", lambda g: (g["requests"][0]["logit"].pop(), None)[1], "expected a logit and a pctr for each"),
        ("golden.json", lambda g: g["requests"][0].update(candidates=[], logit=[], pctr=[]), "candidates"),
        ("golden.json", lambda g: g["requests"][0]["pctr"].__setitem__(0, 1.5), "from 0 to 1"),
        ("golden.json", lambda g: g["requests"][0]["logit"].__setitem__(0, None), "logit"),
        ("golden.json", lambda g: g["requests"][0]["context"].update(age="x"), "request 0: field 'age'"),
        ("golden.json", lambda g: g["requests"][0]["candidates"][1].update(price=True), r"'price'.*\(row 1\)"),
        ("golden.json", lambda g: g["requests"][0].update(note="x"), "note"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tiny: Path, file: str, change: Callable[[Any], Any], reason: str):
    """Resealed, so that only the contents tell; the error names the file and what was expected."""
    edit(tiny / file, change)

    error = refused(tiny)

    assert re.search(reason, str(error)), error


@pytest.mark.parametrize("file", ["manifest.json", "schema.json", "golden.json", "vocabularies/price.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[NaN]", "[Infinity]", "\ufeff[]", "[" * 100_000, '{"a": 1}}', "label: {column: click}"]
)
def test_what_is_no_json_is_refused(tiny: Path, file: str, text: str):
    """Nor YAML, though a schema may be YAML elsewhere; nor what only Python's parser takes for JSON."""
    (tiny / file).write_text(text, encoding="utf-8")
    reseal(tiny)

    assert refused(tiny).path == tiny / file


# --- golden rows --------------------------------------------------------------------------------------------------


def test_golden_scores_of_another_model_are_told(tiny: Path, tmp_path: Path):
    """The graph of a model with another bias under this one's golden rows: request, candidate, by how much."""
    ort = pytest.importorskip("onnxruntime")
    bundle = read_bundle(tiny)
    encoder = bundle.encoder

    def score_with(graph: bytes) -> Callable[..., Any]:
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return lambda context, candidates: session.run(
            [LOGIT, PCTR],
            graph_inputs([encoder.encode_context(context)], [encoder.encode_candidates(candidates)]),
        )

    check_golden(bundle.golden, score_with(tiny_graph(tiny_model())), tiny)
    with pytest.raises(BundleError, match="request 0: logit: candidate 0: expected") as caught:
        check_golden(bundle.golden, score_with(tiny_graph(tiny_model(bias=1e-3))), tiny)
    assert caught.value.path == tiny / "golden.json"


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Student", "../x", "a/b", ".x", "-x", "x" * 65, "a b", "é", "x\n"])
def test_a_model_is_not_called_so(tmp_path: Path, name: str):
    """Names become paths, so they are checked before anything is made."""
    with pytest.raises(BundleError, match="expected a name"):
        write_tiny_bundle(tmp_path, name)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_name", ["data.bin", "../model.onnx.data", "model.onnx", "model.onnx.a/b", "golden.json"])
def test_external_data_is_called_after_the_graph(tmp_path: Path, file_name: str):
    """Any other name could be another file's."""
    model = tiny_model()

    with pytest.raises(BundleError, match=r"model\.onnx\.<suffix>"):
        write_bundle(
            tmp_path,
            "tiny",
            encoder=model.encoder,
            card=tiny_card(model),
            golden=tiny_golden(model),
            model=b"",
            external={file_name: Path(__file__)},
        )


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path):
    """A graph that is none, and nothing is left of the attempt."""
    model = tiny_model()

    with pytest.raises(BundleError, match="cut short"):
        write_bundle(
            tmp_path,
            "tiny",
            encoder=model.encoder,
            card=tiny_card(model),
            golden=tiny_golden(model),
            model=tiny_graph(model)[:-50],
        )

    assert list((tmp_path / "tiny").iterdir()) == []


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs after it."""


def test_a_writer_killed_at_any_moment_leaves_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed at the n-th flush or rename, for every n: readers see whole versions only, and writing goes on."""
    real_fsync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(bundle_module.shutil, "rmtree", lambda *_, **__: None)  # the dead clean nothing up
    survived = False
    for moment in range(100):
        left = [moment]

        def strike(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        def fsync(descriptor: int, strike: Callable[[], None] = strike) -> None:
            strike()
            real_fsync(descriptor)

        def rename(path: Path, target: Path, strike: Callable[[], None] = strike) -> Path:
            strike()
            return real_rename(path, target)

        monkeypatch.setattr(bundle_module.os, "fsync", fsync)
        monkeypatch.setattr(bundle_module.Path, "rename", rename)
        try:
            write_tiny_bundle(tmp_path)
            survived = True
        except Killed:
            pass
        versions = Repository(tmp_path).versions("tiny") if Repository(tmp_path).names() else []
        assert [read_bundle(tmp_path / "tiny" / str(version)).version for version in versions] == versions
        if survived:
            break
    assert survived
    assert moment > 10
    assert len([entry for entry in (tmp_path / "tiny").iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]) > 10


def test_a_writer_killed_for_good_leaves_no_version(tmp_path: Path):
    """A real process and a real SIGKILL, in the middle of its work."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.models.tiny_bundle import write_tiny_bundle\n"
        "calls = iter(range(6))\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL) if next(calls, None) == 5 else None\n"
        "write_tiny_bundle(Path(sys.argv[1]))\n"
    )

    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)

    assert done.returncode == -signal.SIGKILL
    assert Repository(tmp_path).names() == []
    assert [entry.name[: len(TEMPORARY_PREFIX)] for entry in (tmp_path / "tiny").iterdir()] == [TEMPORARY_PREFIX]
    assert write_tiny_bundle(tmp_path).name == "1"


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk: the error is the system's own, and the temporary folder is gone."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module.os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        write_tiny_bundle(tmp_path)

    assert list((tmp_path / "tiny").iterdir()) == []


def test_writers_at_once_get_a_version_each(tmp_path: Path):
    """Four at a time, three bundles each: twelve versions, every one whole and each one's own."""
    biases: dict[str, float] = {}

    def write(first: float) -> None:
        for i in range(3):
            path = write_tiny_bundle(tmp_path, bias=first + i)
            biases[path.name] = first + i

    threads = [threading.Thread(target=write, args=(10.0 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Repository(tmp_path).versions("tiny") == list(range(1, 13))
    for version, bias in biases.items():
        bundle = read_bundle(tmp_path / "tiny" / version)
        assert bundle.golden == tiny_golden(tiny_model(bias=bias))
    assert not list((tmp_path / "tiny").glob(f"{TEMPORARY_PREFIX}*"))


def test_a_file_where_the_next_version_belongs_is_left_alone(tmp_path: Path):
    """Somebody's file called 1 is not ours to replace."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "1").write_bytes(b"mine")

    assert write_tiny_bundle(tmp_path).name == "2"
    assert (tmp_path / "tiny" / "1").read_bytes() == b"mine"


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path):
    """By the next writer; a folder touched lately may have a living one."""
    old, young = (tmp_path / "tiny" / f"{TEMPORARY_PREFIX}{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"x")
    long_ago = time.time() - bundle_module.STALE_AFTER_SECONDS - 1
    os.utime(old, (long_ago, long_ago))

    write_tiny_bundle(tmp_path)

    assert (old.exists(), young.exists()) == (False, True)


def test_a_file_that_cannot_be_read_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """A failing disk is a refused bundle, not another kind of error."""
    real = checksums.hash_file

    def failing(path: Path) -> str:
        if path.name == "model.onnx":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(checksums, "hash_file", failing)

    assert str(refused(tiny)) == f"{tiny / 'model.onnx'}: cannot be read: Input/output error"


def test_the_documented_format_names_every_key():
    """docs/bundle.md is written for readers in any language: no key is a secret."""
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")

    assert [key for key in Manifest.model_fields if f"`{key}`" not in text] == []

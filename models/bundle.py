"""A bundle: one version of one model on disk. Written whole or not at all, and read only when every byte is right.

    model.onnx (and model.onnx.<suffix>, its external data)    schema.json    vocabularies/<field>.json
    golden.json    manifest.json    SHA256SUMS

`docs/bundle.md` describes the format for readers in any language. Everything is JSON or ONNX, nothing pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models import checksums
from models.checksums import SUMS_FILE
from models.encoder import Encoder
from models.errors import BundleError, EncodeError, SchemaError, VocabularyError
from models.formats import format_refusal
from models.golden import FLOAT32_TOLERANCE, GOLDEN_FILE, Golden
from models.manifest import BUNDLE_FORMAT, Manifest, ModelCard
from models.onnx_files import external_locations
from models.problems import problems_of
from models.schema import FeatureSchema, HashEncoding
from models.versions import is_model_name, is_version, versions_in

MODEL_FILE = "model.onnx"
SCHEMA_FILE = "schema.json"
MANIFEST_FILE = "manifest.json"
VOCABULARIES = "vocabularies"

TEMPORARY_PREFIX = ".writing-"
"""A folder of this name is a bundle being written, or what a killed writer left; no reader looks into it."""

STALE_AFTER_SECONDS = 24 * 3600
"""A temporary folder untouched for so long has no writer any more and is removed by the next one."""

_EXTERNAL = re.compile(r"model\.onnx\.[A-Za-z0-9_.-]+")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle. The graph is left on disk, for the runtime to map."""

    path: Path
    name: str
    version: int
    manifest: Manifest
    schema: FeatureSchema
    encoder: Encoder
    golden: Golden
    model_path: Path
    sha256: str
    """Of SHA256SUMS, hence of everything: two bundles with the same are the same."""


def read_bundle(path: Path) -> Bundle:
    """The bundle in <repository>/<name>/<version>, or `BundleError` naming the file at fault and the reason.

    Refused: a byte that differs, a file missing, not listed or of another kind, a link, a path that leads
    outside, another format version, contents that contradict one another, golden rows that do not encode.
    What the golden rows score is checked by whoever runs the graph (`golden.check_golden`).
    """
    if not is_model_name(path.parent.name) or not is_version(path.name):
        raise BundleError(path, "expected a folder <name>/<version>, the version a whole number")
    for folder in (path.parent, path):
        if folder.is_symlink():
            raise BundleError(folder, "is a symbolic link, which a repository never holds")
    if not path.is_dir():
        raise BundleError(path, "is no folder" if path.exists() else "is missing")
    try:
        return _read(path, path.parent.name, int(path.name))
    except OSError as error:
        raise BundleError(error.filename or path, f"cannot be read: {error.strerror}") from None


def write_bundle(
    repository: Path,
    name: str,
    *,
    encoder: Encoder,
    card: ModelCard,
    golden: Golden,
    model: Path | bytes,
    external: Mapping[str, Path] | None = None,
) -> Path:
    """Write a bundle as the next version of `name` and return its folder, <repository>/<name>/<version>.

    `external` are the graph's external data files by the name the graph refers to: model.onnx.<suffix>.
    Everything is written to a temporary folder beside, flushed to the disk, read back and verified, and only
    then renamed; so a reader sees all of it or nothing, whenever the writer is killed. Of two writers at once,
    one gets the next number and the other the one after. Raises `BundleError` for what could not be read back.
    """
    folder = repository / name
    if not is_model_name(name):
        raise BundleError(folder, "expected a name of a-z, 0-9, '.', '_' and '-', at most 64 of them")
    for file_name in external or {}:
        if not _EXTERNAL.fullmatch(file_name):
            raise BundleError(folder / file_name, f"expected external data to be called {MODEL_FILE}.<suffix>")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        _write_contents(temporary, encoder, golden, model, external or {})
        sums = {path: checksums.hash_file(temporary / path) for path in checksums.files_below(temporary)}
        while True:
            version = max(versions_in(folder), default=0) + 1
            _write_manifest(temporary, name, version, encoder, card, sums)
            _read(temporary, name, version)
            try:
                temporary.rename(folder / str(version))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                continue  # another writer took the number meanwhile
            _flush_folder(folder)
            return folder / str(version)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(path: Path, name: str, version: int) -> Bundle:
    sums_data = checksums.read_regular(path / SUMS_FILE)
    sums = checksums.parse(sums_data, path / SUMS_FILE)
    # The format first: what else a newer format holds is not for this code to judge.
    manifest_data = checksums.read_regular(path / MANIFEST_FILE)
    if MANIFEST_FILE not in sums:
        raise BundleError(path / MANIFEST_FILE, f"is not listed in {SUMS_FILE}")
    if hashlib.sha256(manifest_data).hexdigest() != sums[MANIFEST_FILE]:
        raise BundleError(path / MANIFEST_FILE, f"is damaged: its sha256 is not the one in {SUMS_FILE}")
    document = _json(path / MANIFEST_FILE, manifest_data)
    found = document.get("format_version") if isinstance(document, dict) else None
    refusal = format_refusal("bundle", found, BUNDLE_FORMAT)
    if refusal:
        raise BundleError(path / MANIFEST_FILE, f"format_version: {refusal}")
    checksums.check(path, sums)

    manifest = _validated(Manifest, path / MANIFEST_FILE, manifest_data)
    if (manifest.name, manifest.version) != (name, version):
        raise BundleError(
            path / MANIFEST_FILE,
            f"is of {manifest.name} version {manifest.version}, but lies under {name} version {version}; "
            "a bundle is never renamed",
        )
    schema = _read_schema(path, sums)
    _check_files(path, schema, sums)
    encoder = _read_encoder(path, schema)
    if encoder.sizes != manifest.table_sizes:
        differing = min(field for field, _ in encoder.sizes.items() ^ manifest.table_sizes.items())
        raise BundleError(path / MANIFEST_FILE, f"table_sizes: field '{differing}' has another size in its encoder")
    golden = _validated(Golden, path / GOLDEN_FILE, checksums.read_regular(path / GOLDEN_FILE))
    if golden.tolerance > FLOAT32_TOLERANCE and (manifest.quantization is None):
        reason = f"tolerance: expected at most {FLOAT32_TOLERANCE:g} of a graph in float32, got {golden.tolerance:g}"
        raise BundleError(path / GOLDEN_FILE, reason)
    _check_golden_rows(path, golden, encoder)
    return Bundle(
        path=path,
        name=name,
        version=version,
        manifest=manifest,
        schema=schema,
        encoder=encoder,
        golden=golden,
        model_path=path / MODEL_FILE,
        sha256=hashlib.sha256(sums_data).hexdigest(),
    )


def _read_schema(path: Path, sums: Mapping[str, str]) -> FeatureSchema:
    if SCHEMA_FILE not in sums:
        raise BundleError(path / SCHEMA_FILE, "is missing")
    data = checksums.read_regular(path / SCHEMA_FILE)
    _json(path / SCHEMA_FILE, data)  # JSON in a bundle, though a schema file may be YAML
    try:
        return FeatureSchema.from_text(data.decode("utf-8"), SCHEMA_FILE)
    except SchemaError as error:
        raise BundleError(path / SCHEMA_FILE, str(error)) from None


def _check_files(path: Path, schema: FeatureSchema, sums: Mapping[str, str]) -> None:
    """The files are those the format has, and the graph's external data are among them."""
    expected = {MODEL_FILE, SCHEMA_FILE, GOLDEN_FILE, MANIFEST_FILE, *_vocabulary_files(schema).values()}
    for file in sorted(expected - sums.keys()):
        raise BundleError(path / file, "is missing")
    external = {file for file in sums if _EXTERNAL.fullmatch(file)}
    for file in sorted(sums.keys() - expected - external):
        raise BundleError(path / file, f"does not belong into a bundle of format {BUNDLE_FORMAT}")
    try:
        locations = external_locations(checksums.read_regular(path / MODEL_FILE))
    except ValueError as error:
        raise BundleError(path / MODEL_FILE, str(error)) from None
    for location in sorted(locations - external):
        raise BundleError(
            path / MODEL_FILE, f"keeps weights in {location!r}, which is no {MODEL_FILE}.<suffix> of the bundle"
        )
    for file in sorted(external - locations):
        raise BundleError(path / file, f"is external data that {MODEL_FILE} does not refer to")


def _read_encoder(path: Path, schema: FeatureSchema) -> Encoder:
    vocabularies: dict[str, Any] = {}
    for field, file in _vocabulary_files(schema).items():
        values = _json(path / file, checksums.read_regular(path / file))
        if not isinstance(values, list):
            raise BundleError(path / file, "expected a list")
        vocabularies[field] = values
    try:
        return Encoder(schema, vocabularies)
    except VocabularyError as error:
        raise BundleError(path / VOCABULARIES / f"{error.field}.json", error.reason) from None


def _check_golden_rows(path: Path, golden: Golden, encoder: Encoder) -> None:
    for index, request in enumerate(golden.requests):
        try:
            encoder.encode_context(request.context)
            encoder.encode_candidates(request.candidates)
        except EncodeError as error:
            raise BundleError(path / GOLDEN_FILE, f"request {index}: {error}") from None


def _vocabulary_files(schema: FeatureSchema) -> dict[str, str]:
    """By field that has one, the path of its vocabulary or edges."""
    return {
        field.name: f"{VOCABULARIES}/{field.name}.json"
        for field in schema.fields
        if not isinstance(field.encoding, HashEncoding)
    }


def _json(path: Path, data: bytes) -> object:
    def refuse(token: str) -> object:
        raise ValueError(f"{token} is no JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(path, f"is no JSON: {error}") from None


def _validated(model: type[_Model], path: Path, data: bytes) -> _Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(path, str(problems_of(error, model)[0])) from None


def _write_contents(
    folder: Path, encoder: Encoder, golden: Golden, model: Path | bytes, external: Mapping[str, Path]
) -> None:
    """Everything but the manifest and the checksums, which depend on the version number."""
    (folder / VOCABULARIES).mkdir()
    for field, values in encoder.to_vocabularies().items():
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",\n", ":"))
        _write(folder / VOCABULARIES / f"{field}.json", text.encode() + b"\n")
    _write(folder / SCHEMA_FILE, encoder.schema.to_json().encode())
    _write(folder / GOLDEN_FILE, _dump(golden))
    if isinstance(model, bytes):
        _write(folder / MODEL_FILE, model)
    else:
        _copy(model, folder / MODEL_FILE)
    for file_name, source in external.items():
        _copy(source, folder / file_name)
    _flush_folder(folder / VOCABULARIES)


def _write_manifest(
    folder: Path, name: str, version: int, encoder: Encoder, card: ModelCard, sums: Mapping[str, str]
) -> None:
    facts = {field: getattr(card, field) for field in ModelCard.model_fields}
    manifest = Manifest(
        **facts,
        format_version=card.oldest_format,
        name=name,
        version=version,
        created=datetime.now(UTC).replace(microsecond=0),
        table_sizes=encoder.sizes,
    )
    data = _dump(manifest)
    _write(folder / MANIFEST_FILE, data)
    every = {**sums, MANIFEST_FILE: hashlib.sha256(data).hexdigest()}
    _write(folder / SUMS_FILE, checksums.render(every))
    _flush_folder(folder)


def _dump(model: BaseModel) -> bytes:
    document = model.model_dump(mode="json")
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable. Only POSIX lets a folder be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            age = time.time() - left.lstat().st_mtime
        except FileNotFoundError:
            continue  # its writer has just finished
        if age > STALE_AFTER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)

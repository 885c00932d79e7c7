"""Bundles of earlier formats, kept for ever: this release loads each, or refuses it naming the command that helps.

bundles/v1/tiny/1 was written by the first release. It is never written anew; if this test fails, the code is wrong, or
the format has changed and wants a number.
"""

from pathlib import Path

import pytest

from models.bundle import read_bundle
from models.golden import check_golden
from models.graph import LOGIT, PCTR, graph_inputs
from tests.models.tiny_bundle import REQUESTS, tiny_model

KEPT = Path(__file__).parent / "bundles"


def test_the_first_bundle_is_read_to_the_last_key():
    """Schema, vocabularies, golden rows and manifest, with the meaning they had."""
    bundle = read_bundle(KEPT / "v1" / "tiny" / "1")

    assert bundle.sha256 == (KEPT / "v1" / "sha256").read_text(encoding="ascii").strip()
    assert bundle.manifest.format_version == 1
    assert bundle.encoder.to_vocabularies() == tiny_model().encoder.to_vocabularies()
    assert [request.context for request in bundle.golden.requests] == [context for context, _ in REQUESTS]


def test_the_first_bundle_still_scores_what_it_scored():
    """Encoder, graph and runtime of today give the scores of its first day."""
    ort = pytest.importorskip("onnxruntime")
    bundle = read_bundle(KEPT / "v1" / "tiny" / "1")
    session = ort.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])

    check_golden(
        bundle.golden,
        lambda context, candidates: session.run(
            [LOGIT, PCTR],
            graph_inputs([bundle.encoder.encode_context(context)], [bundle.encoder.encode_candidates(candidates)]),
        ),
        bundle.path,
    )

"""The words of the page, for a reader from another trade; and the way to its sections."""

from __future__ import annotations

from training.report.pieces import section
from training.report.values import Values

WORDS = (
    ("impression", "an ad (or any candidate) that was shown; it was clicked or not."),
    (
        "student, teachers, ensemble",
        "the student is the small network that serves; the teachers are larger or different ones, too slow to serve "
        "together; the ensemble is their joint prediction, which the student was trained to imitate (distillation).",
    ),
    (
        "control",
        "the student’s own network, trained on clicks alone, as one would without teachers. Only what the student has "
        "above it is the merit of the teachers.",
    ),
    ("AUC", "how often a clicked impression is ranked above one that was not: a half is chance, one is perfect."),
    ("gAUC", "the same within each user’s own impressions, averaged over users."),
    (
        "logloss",
        "how far predicted probabilities are from what happened, in nats an impression; less is better. Normalised "
        "entropy is the same as a share of the logloss of always predicting the mean click rate.",
    ),
    (
        "calibration, ECE",
        "whether as many are clicked as predicted. ECE is the mean gap over twenty groups of impressions; even a "
        "perfect model shows the ECE floor, by chance. Predicted over actual is the same for all rows together.",
    ),
    ("xAUC, xlogloss", "as above, but under the known true click probabilities of a made-up log: without luck."),
    ("gate", "what decides, impression by impression, how much each teacher counts in the ensemble."),
    ("KL", "how far the student’s probabilities are from its ensemble’s, in nats; zero is a perfect imitation."),
    (
        "seed",
        "one whole training from another random start. ± is the standard deviation between seeds; it leaves out the "
        "luck of which impressions are in the test rows.",
    ),
    (
        "interval",
        "where a mean difference would lie, nineteen times in twenty, had training been repeated from other seeds "
        "without end (Student’s t). Only one that leaves zero outside is called a win or a loss, and only from three "
        "seeds on: being ahead in three of three is what a coin does once in eight.",
    ),
    ("test rows", "impressions that nothing was learned or decided from: the last days, or the log’s own test part."),
    (
        "median, slowest hundredth",
        "how long scoring one request takes on one core at most: half of the requests, all but the slowest hundredth. "
        "It is the time of session.run (ONNX Runtime), without reading and encoding the request, which cost the same "
        "for every model.",
    ),
)


def words(v: Values) -> str:
    """What each word means here."""
    listed = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in WORDS)
    return section("Words on this page", f"<dl>{listed}</dl>", "words")

"""What a column's name suggests: its role, whether it is an id, a quantity, a time, or known only after the click.

Names are hints that a person confirms; nothing but `infer.py` reads them.
"""

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LABELS = ("click", "clicked", "is_click", "isclick", "is_clicked", "clk", "label", "target", "y")
"""Names of a label, the likeliest first."""
TRUTHS = ("true_pctr", "true_ctr", "true_probability", "truth")
"""Names of a known true probability, as synthetic logs have."""
UNITS = ("user", "uid", "member", "visitor", "customer", "account", "cookie", "device", "session")
"""Words for what an experiment hashes, the likeliest first."""
PARTS = _set("train training valid validation val dev eval test holdout")
"""Values of a column that says which part of a split a row is in."""
IDS = _set("id ids uid guid uuid code hash key zip zipcode ip")
QUANTITIES = _set("""
    count cnt num number price cost bid amount age days hours minutes seconds sec ms duration length len size width
    height score rate ratio pct percent avg mean sum total distance depth views visits ctr discount
""")
TIMES = _set("time timestamp ts date datetime dt created at day hour when")
POSITIONS = ("position", "pos", "rank")

_CANDIDATE = _set("""
    ad ads advert advertiser campaign creative banner item product sku offer video movie film song track music article
    news content doc document author seller shop brand category genre genres title tag tags price bid upload candidate
    landing discount release
""")
_CONTEXT = _set("""
    user uid member visitor customer account cookie device session hour weekday dow day weekend site app publisher
    page placement gender sex age os browser platform connection conn city country region state ip lang language tab
    history seen recent watched query search register registered follow fans friend referrer network carrier
""")
_OUTCOME = re.compile(
    r"^(is|has|did|was)_(like|follow|share|comment|forward|hate|dislike|convert|conversion|purchase|buy|bought|order|"
    r"install|skip|view|play|click)(e?d)?(_|$)"
    r"|^(play|dwell|watch|view|listen|read|stay|visible)_?(time|duration|ms|sec|seconds)(_|$)"
    r"|^propensity|^(conversions?|converted|purchased?|revenue|rating|long_view|clicks?|likes?|liked|dwell|post_click.*)$"
)


def words_of(name: str) -> list[str]:
    """user_id, userId, User-ID -> ["user", "id"]."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [w.lower() for w in re.split(r"[^A-Za-z0-9]+", parted) if w]


def side_of(name: str) -> str | None:
    """ "context" or "candidate" by the first word of the name that tells, else None."""
    for word in words_of(name):
        if word in _CONTEXT:
            return "context"
        if word in _CANDIDATE or word.removesuffix("s") in _CANDIDATE:
            return "candidate"
    return None


def is_id(name: str) -> bool:
    return bool(IDS & set(words_of(name)))


def is_quantity(name: str) -> bool:
    return bool(QUANTITIES & set(words_of(name)))


def is_time(name: str) -> bool:
    words = words_of(name)
    return bool(TIMES & set(words)) or any(w.startswith(("time", "date")) for w in words)


def is_outcome(name: str) -> bool:
    """Whether it sounds like something known only after the impression."""
    return _OUTCOME.search(name.lower()) is not None

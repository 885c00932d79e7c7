"""A seeded world of ad impressions whose true click probabilities are known.

The default log: it needs no download, and what a model should have said is on every row (`true_pctr`), so that a
difference of .001 AUC can be told from the noise of clicks. It is shaped like a real one:

- hierarchies (device model < brand, region < country, placement < publisher, ad < campaign < advertiser);
- Zipf's law over users, publishers, models and ads; heavy-tailed numbers; values that are missing;
- campaigns that start and end, so the last day shows ads that the first days never did;
- a true logit that is a sum of named effects, each with a fixed share of the variance: single fields, low-rank pairs
  and triples, unstructured crosses of a context field with an ad field (a value of their own in every cell, which
  nothing but counting can learn), smooth numbers, and drift from day to day.

Users, publishers and ads also have hidden traits that no column shows directly; a user's are visible only through what
the user did, and through `recent_categories`. Everything follows from the seed; more rows are more impressions of the
same world.

    inhabitants.py    who lives in it, and who meets what on a day: impressions before any click
    effects.py        what the true logit is made of
    world.py          both put together: true probabilities, clicks, the log
    columns.py        the visible columns by name, and the schema that says what they mean
    table_writer.py   tables into a Parquet, CSV or TSV file
"""

from training.data.synthetic.world import World, WorldReport

__all__ = ["World", "WorldReport"]

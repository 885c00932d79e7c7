"""What an experiment has shown so far, on any day somebody looks (docs/answers.md says what each number means).

Statistics over plain arrays, bottom up:

    moments.py       the sums that every estimator is made of; those of two groups of units are added
    sequences.py     how far from the truth an estimate may be, at every look at once
    lift.py          difference and ratio of two arms' click rates, clustered by unit, CUPED
    sample_ratio.py  whether the split is the one that was asked for
    paired.py        two models on the same impressions: the difference of their logloss, by who chose
    calibration.py   AUC, logloss, calibration from score histograms that are added
    latency.py       quantiles from histograms that are added
    off_policy.py    what another policy would have earned: IPS and SNIPS
    guard_rails.py   what switches an arm off
    decision.py      keep running, ship, roll back, or invalid

numpy and the standard library, no web framework; nothing here knows HTTP or a model. Not known is `None` with a
reason, never NaN.
"""

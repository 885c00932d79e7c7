"""Guard-rails that act: a process beside the workers reads the journal as it grows and halts an arm that does harm.

    following.py   what the journal's files hold that was not read yet
    evidence.py    records -> sums by unit of each arm, added up as they come
    judging.py     these sums against the rails that an experiment states
    process.py     looks, judges, writes a halt into the state file; what runs beside the workers

The statistics are those of `service/answers/guard_rails.py`; docs/experiments.md says what is promised.
"""

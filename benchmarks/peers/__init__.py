"""One epoch by other libraries, each run by the Python of an environment of its own: nothing here imports Retort.

python fuxictr_epoch.py NETWORK LOG SEED BATCH_ROWS THREADS     -> one line of JSON, as of `training_epoch.py`
"""

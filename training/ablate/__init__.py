"""`python -m training ablate`: the comparisons of arXiv:2011.04106 and the controls they should have had, on any log.

variations.py   a recipe's networks as teachers, copies and students of another recipe
tables.py       which rows each table has, what a row is compared with, what the paper claims of them
run.py          rows -> steps of the pipeline, shared by all that have them in common -> tables/<table>.json
paired.py       differences by seed and their intervals
markdown.py     the tables for people
"""

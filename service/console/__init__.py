"""The console: one page that an owner opens to see what an experiment does, and to change it.

    gather.py     what this worker knows, as plain values: the plan, the metrics, the models, the log's health
    durations.py  p50 and p99 of a histogram, since the start and over the last minute
    view.py       those values and a report -> the page; a pure function, made of `panels/`
    charts.py     its drawings      html.py    elements that escape whatever is put into them
    routes.py     /console, its two files, an example for its form; the headers that hold a browser to them

The page reads; it is written by the routes that everybody has (`PUT /experiments/{name}`, `load`, `/explain`), called
by its script with the token that an owner typed, which stays in the memory of the page. It shows no unit and no feature
of any request. It never scores, never reads the log, and gathers at most once a second however many look.
"""

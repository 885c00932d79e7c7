"""Traffic from the synthetic log's world against a running service: the whole loop, with the truth known.

Users arrive, the service scores, the best candidate is shown, and clicks drawn from the true probability come back.

    auctions.py    who arrives, with which candidates, and what is true of each: a pure function of seeds
    connection.py  one kept-alive HTTP connection
    traffic.py     the open loop: arrivals, answers, feedback after a delay
    tally.py       what was counted, the live line, the truth by arm
    run.py         a simulation from its first look at the service to what is written of it
    command.py     `python -m training simulate`
    demo.py        `python -m training demo`: a service, its traffic and the results, together

It knows the service by its HTTP interface alone (docs/api.md).
"""

"""`headgate bench`: load on OpenAI-compatible servers, and how well they serve whom.

    workload     who asks for what and when: a list, the same for the same seed
    clients      asks it of real servers, on time; `text`, `answer` and `retries` are what a caller knows
    origin       what became of each ask
    score        what that was worth, per class and overall; `breakdown`, by what may have decided it
    report       tables and JSON of scores; `plot`, pictures
    command      the plain tool: one load on one server

    scenarios    loads as multiples of capacity, which `capacity` measures
    contenders   systems to compare, `envoys` those without us
    runs         one system under one load; `engines` and `usage` look at it meanwhile
    triggers     how long a burst a system survives
    overload     `headgate bench overload`: every system under every load
    faults       `headgate bench faults`: a package of its own
    options      reading of command lines that several benches share

`workload`, `text`, `answer`, `retries`, `origin`, `score`, `breakdown`, `scenarios` and `envoys` are pure.
"""

"""`headgate bench faults`: what callers lose while parts of a system fail, and how soon it is without them.

    evidence     what was seen of one run: callers, requests per pod, ejections
    judge        figures from that, as a bound needs them
    trials       what is broken, under which load, and the bounds

    systems      who is compared
    breaks       breaks things
    watch        looks at a system from outside meanwhile
    run          one trial of one system
    command      every system in every trial, and the tables

`evidence`, `judge`, `trials` and `systems` are pure.
"""

"""`headgate bench`: load on an OpenAI-compatible server, and how well it served whom.

    workload     who asks for what and when: a list, the same for the same seed
    clients      asks it of real servers, on time, and repeats as the OpenAI SDK does
    origin       what became of each ask
    score        what that was worth, per class and overall
    report, plot tables, JSON and pictures of scores

All but `clients` and what is named here after `score` is pure: no sockets, no clock.
"""

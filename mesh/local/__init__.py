"""`headgate up`: Valkey, pods, sidecars and Envoy on one machine, kept running and ended together.

plan.py        pure    what to run, on which ports, with which configuration
backoff.py     pure    when a part that died is started again
child.py               one process: started so that it cannot outlive us, read line by line, ended
supervisor.py          keeps the parts running, tier by tier
console.py             what the terminal shows
machine.py             what the machine offers: binaries, ports, a private folder
up.py                  ties them together
"""

"""The control plane and the command line: what runs beside the data plane, never in it.

cli.py       `headgate`: one word for each program of the project
gateway.py   the shipped Envoy configuration, rendered for a list of sidecars
local/       `headgate up`: a whole mesh on one machine
exits.py     the exit statuses that all commands share
"""

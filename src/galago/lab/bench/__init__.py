"""`galago bench`: how fast a model is on this machine, how much memory it takes, and what the machine could do.

run.py         a plan of cases and rounds, and the results of a run
processes.py   starting a child process and reading its messages
child.py       what a child does: measure one case (measure.py) or the machine (ceilings.py)
random.py      checkpoints of random weights
results.py     the figures of a result; saving, reading and comparing results
table.py       results for a terminal
plot.py        results as a picture
"""

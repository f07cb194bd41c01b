"""Faults on purpose: the real steps of the tiny experiment under kills, full disks, damaged files and odd input.

    python -m faults                      all of it, and tests/faults/RESULTS.md (`make faults`)
    python -m faults --sample 40          so many trials of each kind, as `make test` has it
    python -m faults soak                 the server for half an hour, see soak.py (`make soak`)
    python -m faults --plant NAME         and with a bug put into the package (see plants.py): it must be found

A trial ends well in two ways: equal to an undisturbed run, perhaps after the same command again, or in one clear line
with everything that was there still there. Anything else is lost, and a bug.

    interpose.c    a preloaded library: a kill, a signal or an errno at the n-th change below a folder
    laboratory     a fork server: one process imports everything, each trial is a child in a small folder of its own
    steps          the steps of the experiment, and the states that they begin with
    kills, disks, damage, together, surroundings, hubs    kinds of faults, each a list of trials
    fuzz           everything that is read, fed with what hypothesis makes of it
    plants         bugs to be found
    soak           the server under load: served (its process), clients, exact (what it is to answer)
"""

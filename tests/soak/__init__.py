"""A long run of all hosts on one store, with faults, judged from outside."""

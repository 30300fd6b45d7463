"""Fault runs: processes killed, stopped and cut off, servers ended, clocks set, and what that costs, against bars."""

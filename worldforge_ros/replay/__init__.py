"""Replay of recorded runs: the planner on bags, and the report about it."""

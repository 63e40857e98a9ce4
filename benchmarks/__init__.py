"""Measurements of accuracy, alarms, robustness, speed and memory; each module is a command that prints a table."""

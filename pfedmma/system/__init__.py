"""Errors, files, memory, signals, and reading what others wrote: what any program needs."""

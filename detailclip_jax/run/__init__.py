"""A run: what is checked before it, the loop, and what the loop logs, saves and evaluates."""

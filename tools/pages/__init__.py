"""The parts of tools/page_numbers.py: how a number is measured, and how results become tables."""

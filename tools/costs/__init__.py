"""What the commands of tools/cost.py measure."""

"""Services that all commands use: processes, interrupts, locks, files, console, logs and provenance."""

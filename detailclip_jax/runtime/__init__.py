"""What surrounds every command: processes, interrupts, locks, files, the console, logs and provenance."""

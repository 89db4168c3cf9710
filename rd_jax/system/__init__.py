"""What the machine needs: processes, signals, whole files, one-line errors."""

"""What the machine needs: commands, signals, whole files, one-line errors, several hosts."""

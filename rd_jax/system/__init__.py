"""What all commands share: flags, signals, whole files, one-line errors, several hosts."""

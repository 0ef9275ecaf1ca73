"""What every script stands on: settings, files, processes, and how a script ends."""

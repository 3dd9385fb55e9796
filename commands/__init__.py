"""The commands in groups (``clipspm cache ...``), and what all commands share."""

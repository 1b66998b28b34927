"""The settings of a run: all sections, and which of them make it another run."""

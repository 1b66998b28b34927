"""A client's model outside a run: files, and models to use them with."""

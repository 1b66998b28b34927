"""The drawn world behind the data set ``shapes`` and the ``tiny`` CLIP."""

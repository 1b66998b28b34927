"""Where images come from: one file a family of data sets."""

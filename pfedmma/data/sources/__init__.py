"""Where images come from: one file a family of data sets; `registry` has all of them by name."""

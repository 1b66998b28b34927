"""The version of the package: it stands in every file that a run writes."""

VERSION = "0.2.0"

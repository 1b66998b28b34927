"""Data: where images come from, who holds them, and how they become pixels."""

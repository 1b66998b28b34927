"""The server of a federation: its state, how uploads are summed, and what becomes of the sum. It knows no method."""

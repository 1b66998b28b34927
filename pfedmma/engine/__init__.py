"""Federated training: rounds, participation, the server, and local training of stacked clients."""

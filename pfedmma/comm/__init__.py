"""Communication: the only room that touches torch.distributed, and the ledger of what is sent."""

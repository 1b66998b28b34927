"""What methods train in the towers: multi-modal adapters and learned context."""

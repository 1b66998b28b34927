"""Multi-modal adapters: stacked over clients for training, and as a module for one client."""

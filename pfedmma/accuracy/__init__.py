"""How good the clients' models are: Local, Base, Novel and their harmonic mean, beside zero-shot CLIP."""

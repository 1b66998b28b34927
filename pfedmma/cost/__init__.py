"""What a federation costs, said before anything is trained: ``python -m pfedmma.cost``."""

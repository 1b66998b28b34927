"""The shipped ``tiny`` CLIP: an open_clip local model folder (config and weights), made by `pfedmma.data.drawn.train_tiny`."""

from pathlib import Path

FOLDER = Path(__file__).parent

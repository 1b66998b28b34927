"""Names of columns that the CSV files of this project share: each ends in, or is, its unit and what it is of.

`up`, `down`: of one client and round, or summed over all clients of a round or a run. Scores are percent, their differences points of it.
"""

from __future__ import annotations

TRAINED = "trained_parameters_per_client"
EXCHANGED = "exchanged_parameters_per_client"
UP, DOWN = "uplink_bytes_per_client_round", "downlink_bytes_per_client_round"
UP_OF_ROUND, DOWN_OF_ROUND = "uplink_bytes_per_round", "downlink_bytes_per_round"
UP_OF_RUN, DOWN_OF_RUN = "uplink_bytes_per_run", "downlink_bytes_per_run"
RING = "ring_bytes_per_rank_round_modelled"
SECONDS = "seconds_per_round"
IMAGES, IMAGES_OF_ROUND = "training_images_per_client", "training_images_per_round"
PARTICIPANTS = "participants_per_round"


def percent(score: str, what: str = "") -> str:
    """The column of a score, such as ``local_percent``; ``what``: mean or std, of several runs."""
    return f"{score}_percent{what and f'_{what}'}"


def seconds(part: str) -> str:
    """The column of the seconds that a part of a round takes, such as ``train_seconds``."""
    return f"{part}_seconds"

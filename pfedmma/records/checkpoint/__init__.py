"""Checkpoints: safetensors shards and a manifest with their hashes, whole or absent."""

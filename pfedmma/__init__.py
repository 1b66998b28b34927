"""pfedmma: personalized federated fine-tuning of CLIP with multi-modal adapters, on torch.distributed."""

__version__ = "0.1.0"

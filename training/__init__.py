"""What a run has besides its algorithm: optimizer, checkpoints, health, monitoring, memory."""

"""What the U-Nets of several stages share: their shape, weights by name, models on disk, and trainings that a kill only
interrupts."""

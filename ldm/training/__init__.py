"""Training of stage 2 under Lightning."""

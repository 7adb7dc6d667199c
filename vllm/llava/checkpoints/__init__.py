"""Reading and converting checkpoints of stage 1."""

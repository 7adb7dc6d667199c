"""A small pretrained model for the mini world, made locally in place of downloaded weights."""

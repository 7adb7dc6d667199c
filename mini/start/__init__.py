"""Small pretrained weights of both stages for the mini world, made here, not downloaded."""

"""Small pretrained weights of both stages for the mini world, made locally in place of downloads."""

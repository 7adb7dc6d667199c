"""Small frozen networks of the mini world, in place of Stable Diffusion's autoencoder and CLIP."""

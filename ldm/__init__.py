"""Stage 2: latent diffusion conditioned on the frame, the description and the VLLM's features."""

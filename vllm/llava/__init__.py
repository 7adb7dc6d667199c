"""Stage 1: the vision-language model that describes actions in frames and yields its features."""

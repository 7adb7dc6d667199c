"""Stage 1: the vision-language model that describes an action in a frame and yields its features."""

"""Reading, writing and converting weights of stage 2."""

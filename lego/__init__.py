"""Both stages in one process."""

"""The networks of stage 2 by the released parameters, and layers that take less time on a CPU."""

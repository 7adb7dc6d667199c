"""Reading, writing and converting weights of stage 2."""

FORMS = ("released", "own", "diffusers")  # that `convert` knows; here, where nothing slow is loaded

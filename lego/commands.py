"""The commands that `pip install` puts on the path: each calls the `main` of a module."""

from collections.abc import Callable
from importlib import import_module

from egogen.errors import run_command


def _command(module: str) -> Callable[[], None]:
    return lambda: run_command(lambda argv: import_module(module).main(argv))


build = _command("egogen.build.__main__")
curate = _command("egogen.curate.__main__")
check = _command("egogen.check")
describe = _command("llava.eval.run_llava_in_loop")
cache = _command("ldm.cache")
train = _command("ldm.training.__main__")
generate = _command("metrics.inference")
frame = _command("lego.frame")
hub = _command("lego.hub")
metrics = _command("metrics.all_metrics_in_one")
compare = _command("metrics.compare")
report = _command("metrics.report")
demo = _command("lego.demo")

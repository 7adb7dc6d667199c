"""Convert a checkpoint of stage 2; names in the source give away its form."""

import sys
from pathlib import Path

sys.path[:1] = [str(Path(__file__).resolve().parents[1])]

from collections.abc import Sequence  # noqa: E402

from egogen import EgoGenError, read_parser, run_command  # noqa: E402
from egogen.download.hub import local_path  # noqa: E402
from ldm.checkpoints import FORMS, adapter_files  # noqa: E402
from ldm.config import load_model_params  # noqa: E402


def main(argv: Sequence[str]) -> int:
    commands = Path(__file__).with_name("commands.toml")  # also says what each form holds
    parser = read_parser(commands, "convert_checkpoint", __doc__, {"to": FORMS})
    options = parser.parse_intermixed_args(argv)
    params = load_model_params(options.config, options.overrides)
    adapter_files(options.lora)
    if not Path(source := local_path(options.source)).exists():
        raise EgoGenError(f"{source}: no such weight file")

    from ldm.checkpoints.convert import convert  # slow to import

    print("\n".join(convert(source, options.target, options.to, params, options.lora)))
    return 0


if __name__ == "__main__":
    run_command(main)

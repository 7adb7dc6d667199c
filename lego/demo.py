"""A page on which a photograph and an action become a frame, for people at a browser."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from egogen.errors import EgoGenError, need_package, run_command
from egogen.flags import read_parser
from lego.frame import open_stages


def main(argv: Sequence[str]) -> None:
    file = Path(__file__).with_name("commands.toml")
    options = read_parser(file, "demo", __doc__).parse_intermixed_args(argv)
    need_package("gradio", "lego.demo")
    stages, record = open_stages(options, keep=True)
    record["loras"] = [Path(lora).name for lora in record["loras"]]  # visitors get it to see
    _ = stages.describer, stages.model  # loaded now: what is wrong with them is told before a page
    local = ",".join(filter(None, (os.environ.get("no_proxy"), "localhost,127.0.0.1")))
    os.environ |= {"no_proxy": local, "NO_PROXY": local}  # gradio asks itself whether it is up
    with TemporaryDirectory(prefix="lego-demo-") as folder:  # for what visitors bring and get
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}

        def end(*_: object) -> None:  # at once: a thread that is in torch would abort a slow end
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(143)

        signal.signal(signal.SIGTERM, end)
        from lego.page import LAUNCH, Page

        page, where = Page(stages, record, folder).blocks, (options.host, options.port)
        how = {"share": options.share, "root_path": options.root_path, **LAUNCH}
        try:
            _, address, shared = page.launch(server_name=where[0], server_port=where[1], **how)
        except (OSError, OverflowError, ValueError) as error:
            raise EgoGenError("--host {}, --port {}: {}".format(*where, error)) from None
        print(f"page: {shared or address}", flush=True)
        page.block_thread()


if __name__ == "__main__":
    run_command(main)

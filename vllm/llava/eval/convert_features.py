"""Make a compact feature store from a released one, or the reverse."""

from collections.abc import Sequence
from pathlib import Path

from egogen.actions import read_actions
from egogen.errors import command_parser, run_command
from egogen.features.store import LAYOUTS
from egogen.jobs import floor_chunk

EXAMPLE = """example:
  python -m llava.eval.convert_features --kind image --to compact \\
      --action-label data/ego4d_val.json \\
      --projector checkpoints/llava-llama-2-13b-chat-forecasting-finetune \\
      features/image/val compact/image/val
The same command again continues where it was stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__, EXAMPLE, "python -m llava.eval.convert_features")
    add = parser.add_argument
    add("source", type=Path, help="feature store of the other layout")
    add("target", type=Path, help="folder of the new one")
    add("--kind", required=True, choices=("image", "text"))
    add("--to", required=True, choices=LAYOUTS, help="layout of the new store")
    add("--action-label", required=True, type=Path, help="action file: which frames there are")
    add("--projector", type=Path, help="checkpoint that made the image features (to compact)")
    add("--num-chunks", type=int, default=1, help="parts done by jobs of their own")
    add("--chunk-idx", type=int, default=1, help="1 to the number of chunks")
    args = parser.parse_args(argv)
    entries = floor_chunk(read_actions(args.action_label), args.num_chunks, args.chunk_idx)
    from llava.describing import feature_conversion as conversion  # slow to import

    needs = args.projector and args.kind == "image" and args.to == "compact"
    projector = conversion.projector_from(args.projector) if needs else None
    writer = f"{args.chunk_idx}-of-{args.num_chunks}"
    paths = args.source, args.target
    job = conversion.Conversion(*paths, args.kind, args.to, writer, projector)
    return conversion.convert(job, entries)


if __name__ == "__main__":
    run_command(main)

"""What is on disk, and what all rooms share; the others take the usual things from here."""

from egogen.actions import DESCRIPTION_KEY, ActionEntry, inside, read_actions, scan_actions
from egogen.atomic import atomic_path, read_json, read_object, write_csv, write_json, write_text
from egogen.errors import EXIT_INCOMPLETE, EgoGenError, check_choice, listed, run_command
from egogen.flags import add_flags, read_command, read_parser
from egogen.jobs import Progress, floor_chunk, lock, track
from egogen.layout import DATASETS, SPLITS, action_file, frame_folder, released
from egogen.provenance import check_provenance, record_provenance
from egogen.seeds import stable_seed

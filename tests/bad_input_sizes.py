"""Cases of bad input: sizes of stage 2's frames, in every command that reads them."""

from __future__ import annotations

from bad_input_damage import Case, untouched

FRAME_SIZES = [
    Case(
        entry,
        f"{key}={value}",
        untouched,
        (f"{place}.{key}={told}",),
        more=f"{place}.{key}={value}",
    )
    for entry, place in (
        ("train", "data.params.train.params"),
        ("cache", "data.params.validation.params"),
        ("generate", "data.params"),
        ("convert ldm", "data.params"),
    )
    for key, value, told in (
        ("res", "[32]", "[32]: expected a multiple of 4 pixels, or [height, width]"),
        ("res", "[30,32]", "[30, 32]: expected a multiple of 4"),
        ("res", "30", "30: expected a multiple of 4"),
        ("res", "0", "0: expected a multiple of 4"),
        ("res", "-32", "-32: expected a multiple of 4"),
        ("res", "a", "a: expected a multiple of 4"),
        ("res", "null", "None: expected a multiple of 4"),
        ("aspect_ratio", "-1", "-1.0: expected 1.0, or one number as res and a width of n * 4"),
        ("aspect_ratio", ".nan", "nan: expected 1.0, or one number as res"),
        (
            "aspect_ratio",
            "1.3",
            "1.3: expected 1.0, or one number as res and a width of n * 4, not 41",
        ),
        ("crop_res", "[32,32]", "[32, 32]: expected one number of pixels"),
    )
] + [
    Case(
        "generate",
        "aspect of a pair",
        untouched,
        ("data.params.aspect_ratio=1.5: expected 1.0",),
        more="data.params.res=[32,48] data.params.aspect_ratio=1.5",
    ),
    Case("generate", "height of 0", untouched, ("inference.height=0",), more="inference.height=0"),
]

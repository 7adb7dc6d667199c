"""The very frame: floor(time x rate + 1e-6), whatever the file's own unit of time is."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from made_films import SIZE, av, number_in, picture, write_film

from egogen.build.clips import open_clip
from egogen.errors import EgoGenError

COUNT = 200
RATES = [Fraction(30), Fraction(50), Fraction(60000, 1001), Fraction(24000, 1001)]
CODECS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4"}


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """-> path of a film of COUNT numbered pictures; made once."""
    folder, made = tmp_path_factory.mktemp("films"), {}

    def make(kind: str, rate: Fraction) -> Path:
        path = folder / f"{rate.numerator}.{kind}"
        if path not in made:
            with av.open(str(path), "w") as container:
                stream = container.add_stream(CODECS[kind], rate=rate, options={"g": "25"})
                stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
                for number in range(COUNT):
                    container.mux(stream.encode(av.VideoFrame.from_image(picture(number))))
                container.mux(stream.encode())
            made[path] = path
        return path

    return make


def frames_folder(folder: Path) -> Path:
    folder.mkdir()
    for number in range(COUNT):
        picture(number).save(folder / f"frame_{number + 1:010d}.bmp")
    return folder


def times(rate: Fraction) -> list[float]:
    """At random, and where frames begin: written in full, cut off, and just before."""
    draw = random.Random(int(rate))
    begins = [number / float(rate) for number in draw.sample(range(COUNT), 25)]
    anywhere = [draw.uniform(0, COUNT / float(rate)) for _ in range(25)]
    before = [max(time - 1e-5, 0) for time in begins[:10]]
    return anywhere + begins + [round(time, 4) for time in begins] + before


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.2f}")
@pytest.mark.parametrize("kind", CODECS)
def test_the_frame_of_a_film_is_time_times_rate(kind, rate, film):
    with open_clip(film(kind, rate), None) as clip:
        assert clip.fps == pytest.approx(float(rate), rel=1e-9)
        for time in times(rate):
            number = math.floor(time * rate + 1e-6)
            frame = clip.at(time)
            assert (number_in(frame.image), frame.name) == (number, f"{number:010d}"), time
        clip.at((COUNT - 0.01) / float(rate))
        with pytest.raises(EgoGenError, match="ends before"):
            clip.at(COUNT / float(rate))


@pytest.mark.parametrize("base", [Fraction(1001, 60000), Fraction(1, 50)], ids=["59.94", "50"])
def test_a_last_frame_of_another_duration_does_not_count(base, tmp_path):
    """The stream is said to have 30 a second, which is how long its last frame lasts."""
    path = write_film(tmp_path / "a.mp4", base=base)
    with av.open(str(path)) as film:
        assert film.streams.video[0].average_rate != 1 / base
    with open_clip(path, None) as clip:
        assert clip.fps == float(1 / base)
        for number in (0, 7, 59, 89):
            frame = clip.at(number * float(base))
            assert (number_in(frame.image), frame.name) == (number, f"{number:010d}")


def test_the_frame_of_a_folder_is_time_times_rate(tmp_path):
    folder = frames_folder(tmp_path / "clip")
    for rate in (30, 60000 / 1001):
        with open_clip(folder, rate) as clip:
            for time in times(Fraction(rate)):
                number = math.floor(time * rate + 1e-6)
                assert number_in(clip.at(time).image) == number, time


@pytest.mark.parametrize("kind", CODECS)
def test_the_last_frame(kind, film):
    with open_clip(film(kind, RATES[2]), None) as clip:
        assert clip.at(1).name == "0000000059"
        assert number_in(clip.at(clip.last()).image) == COUNT - 1
        assert number_in(clip.at(0).image) == 0


def test_the_last_frame_of_a_folder_and_of_a_film_with_longer_sound(tmp_path):
    with open_clip(frames_folder(tmp_path / "clip"), 29.97) as clip:
        assert number_in(clip.at(clip.last()).image) == COUNT - 1
    path = write_film(tmp_path / "a.mkv", times=range(40), sound=25)
    with open_clip(path, None) as clip:
        assert number_in(clip.at(clip.last()).image) == 39

"""What visitors must not: bad pictures, paths of the server, settings out of bounds."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import pytest
from page_server import ROOT, Client, Server, as_file, command, tiny_models
from PIL import Image
from small_dataset import picture

from lego.demo import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    server = Server.start(tmp_path_factory.mktemp("server"), *models, "--max-new-tokens", "4")
    yield server
    server.stop()
    assert "/lego/" not in (log := server.log.read_text()), log  # no traceback of ours


def saved(form: str, image: Image.Image | None = None, **how) -> bytes:
    data = io.BytesIO()
    (image or picture(3, (90, 60))).save(data, form, **how)
    return data.getvalue()


def png(width: int, height: int, rows: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    """A grey PNG that says it has this size, whatever its pixels are."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def turned(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved("JPEG", exif=exif)


def broken_exif() -> bytes:
    whole = turned(6)
    at = whole.index(b"Exif\0\0") + 6
    return whole[:at] + b"MM\0*\xff\xff\xff\xff" + b"\xff" * 10 + whole[at + 18 :]


HUGE = bytes(2**20)
BAD = {  # name, bytes or what makes them (which takes a second), what the line says
    "a huge header": ("a.png", png(2**31 - 1, 2**31 - 1), "expected at most 67108864 pixels"),
    "a bomb": (
        "a.png",
        lambda: png(60_000, 60_000, HUGE * 64),
        "expected at most 67108864 pixels",
    ),
    "200 million pixels": (
        "a.jpg",
        lambda: saved("JPEG", Image.new("L", (16320, 12240))),
        "16320x12240",
    ),
    "a bomb of texts": (
        "a.png",
        lambda: png(9, 9, b"", (b"zTXt", b"a\0\0" + zlib.compress(HUGE * 99))),
        "a.png",
    ),
    "not a picture": ("a.jpg", b"hello there, this is no picture", "expected a picture"),
    "nothing": ("a.jpg", b"", "expected a picture"),
    "a drawing with a script": ("a.jpg", b"<svg onload='alert(1)'/>", "expected a picture"),
    "a web page": ("a.png", b"<html><script>alert(1)</script>", "expected a picture"),
    "a program for a printer": (
        "a.jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "expected a picture",
    ),
    "cut short": ("a.jpg", saved("JPEG", picture(3, (900, 600)))[:2000], "a.jpg: unreadable"),
    "a stripe": ("a.png", saved("PNG", Image.new("L", (900, 9))), "6 times as long as wide"),
    "a name with marks": ("<img src=x onerror=alert(1)>.jpg", b"no", "&lt;img src=x onerror"),
}


@pytest.mark.parametrize("name, data, said", BAD.values(), ids=BAD)
def test_a_bad_upload_gets_one_line(name, data, said, server):
    """Both where it comes into the page and where a client goes on with it as it is."""
    client = Client(server)
    photo = as_file(server.upload(name, data() if callable(data) else data), name)
    for message in (client.call("source", "change", [None, photo]), client.make(photo)):
        line = message["output"]["error"]
        assert not message["success"] and said in line and "\n" not in line, message
        assert str(server.log.parent) not in line
    assert server.peak() < 2000, "MiB"


GOOD = {
    "turned": turned(6),
    "odd EXIF": broken_exif(),
    "CMYK": saved("JPEG", picture(3, (90, 60)).convert("CMYK")),
    "16 bits": saved("PNG", Image.new("I;16", (90, 60), 40_000)),
    "transparent": saved("PNG", picture(3, (90, 60)).convert("RGBA")),
    "moving": saved("GIF", save_all=True, append_images=[picture(4, (90, 60))]),
    "TIFF": saved("TIFF"),
    "WebP": saved("WEBP"),
    "large": saved("JPEG", picture(3, (4000, 3000))),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_an_odd_upload_is_shown_upright_in_a_form_that_browsers_know(data, server):
    message = Client(server).call("source", "change", [None, as_file(server.upload("a.x", data))])
    assert message["success"], message
    (shown,) = [x["path"] for x in message["output"]["data"] if isinstance(x, dict) and "path" in x]
    answer = server.file(shown)
    image = Image.open(io.BytesIO(answer.content))
    size = {turned(6): (60, 90), GOOD["large"]: (1024, 768)}.get(data, (90, 60))
    assert (answer.headers["content-type"], image.mode, image.size) == ("image/png", "RGB", size)


def test_no_file_of_the_server_is_read(server, models):
    secret = models[models.index("--config") + 1]
    inside = server.upload("a.png", saved("PNG"))
    for path in (
        "/etc/passwd",
        secret,
        f"{inside}/../../../../etc/passwd",
        str(ROOT / "README.md"),
        "README.md",
    ):
        assert server.file(path).status_code in (403, 404), path
    assert server.file(inside).status_code == 200
    client = Client(server)
    for path in (
        "/etc/passwd",
        secret,
        "file:///etc/passwd",
        "http://127.0.0.1:9/a.png",
        f"{inside}/../x",
    ):
        for message in (
            client.call("source", "change", [None, as_file(path)]),
            client.make(as_file(path)),
        ):
            assert not message["success"] and "root:" not in str(message), message
    assert "No such file" in client.make(as_file(f"{inside}x"))["output"]["error"]  # it was too old
    data = saved("PNG")
    for more in ({"url": "file:///etc/passwd"}, {"url": "data:image/png;base64,AAAA"}):
        photo = as_file(server.upload("a.png", data)) | more
        assert client.call("source", "change", [None, photo])["success"]


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_an_upload_is_no_page_of_the_server(kind, server):
    answer = server.file(server.upload(f"a.{kind}", b"<svg onload='alert(1)'/>"))
    assert "attachment" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    "more, said",
    [
        ({"steps": 1001}, "1000"),
        ({"steps": 0}, "1"),
        ({"seeds": 9}, "8"),
        ({"scales_txt": 1e9}, "30"),
        ({"temperature": -1}, "0"),
        ({"seed": 1e30}, "281474976710656"),
        ({"seed": None}, "a number in each field"),
        ({"sampler": "${oc.env:HOME}"}, "choices"),
        ({"action": "#C C"}, "names no action"),
        ({"action": ""}, "names no action"),
    ],
    ids=str,
)
def test_settings_out_of_bounds_get_one_line(more, said, server):
    photo = as_file(server.upload("a.png", saved("PNG")))
    message = Client(server).make(photo, **more)
    assert not message["success"] and said in message["output"]["error"], message


def test_without_a_photograph_there_is_one_line(server):
    assert "expected a photograph" in Client(server).make(None)["output"]["error"]


def test_texts_are_cut_at_what_their_boxes_take(server):
    photo = as_file(server.upload("a.png", saved("PNG")))
    message = Client(server).make(photo, "cut it and " * 99999, text="it " * 99999)
    assert message["success"] or "expected at most" in message["output"]["error"]


def test_a_file_that_is_too_large_is_refused(server):
    with pytest.raises(Exception, match="413"):
        server.upload("a.jpg", bytes(41 * 2**20))


def test_a_port_in_use_is_one_line(server, models):
    port = server.address.rstrip("/").rpartition(":")[2]
    process = command(*models, "--port", port)
    said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 2 and len(said) == 1, said
    assert said[0].startswith(f"error: --host 127.0.0.1, --port {port}: ")


def test_missing_models_and_packages_are_one_line(models, tmp_path, monkeypatch, capsys):
    from egogen.errors import EgoGenError

    with pytest.raises(EgoGenError, match="none: not there, expected what --vllm names"):
        main(["--vllm", str(tmp_path / "none")])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(EgoGenError, match="lego.demo: .* pip install gradio"):
        main(models)

"""The served page's API, asked in this process, over models that were really trained."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from asgi import answered, request
from PIL import Image, ImageDraw

import crayon
from crayon.use.serve import app as web
from crayon.use.serve import uploads
from crayon.use.serve.command import shown_names

FILES = [path.name for path in web.PAGE.iterdir()]


@pytest.fixture(scope="module")
def served(runs):
    """The application over a model of each kind, and the models by name."""
    models = {job: crayon.load(runs / job, device="cpu") for job in ("mnist", "autoencoder", "gan")}
    app = web.build(models, max_mib=0.25)
    return SimpleNamespace(app=app, **models)


def drawing(ink=255, paper=0):
    image = Image.new("L", (140, 140), paper)
    ImageDraw.Draw(image).line([(40, 30), (100, 30), (60, 110)], fill=ink, width=11)
    return image


def file(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def post(app, address, body, kind="image/png"):
    return request(app, "POST", address, body, content_type=kind)


def shown(url):
    """The pixels of a data: URL."""
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image)


def test_says_what_is_served(served):
    models = request(served.app, "GET", "/api/models").json
    assert [m["name"] for m in models] == ["mnist", "autoencoder", "gan"]
    assert [m["ability"] for m in models] == ["classify", "reconstruct", "generate"]
    assert models[0]["classes"] == [str(k) for k in range(10)]
    assert (models[0]["image_size"], models[0]["channels"]) == (16, 1)
    assert [m["sliders"] for m in models] == [0, 0, web.SLIDERS]
    assert models[0]["parameters"] == sum(p.numel() for p in served.mnist.networks.parameters())


def test_at_its_limit_it_refuses_in_json_and_says_when_to_come_again(served, monkeypatch):
    monkeypatch.setattr(web, "AT_ONCE", 1)
    monkeypatch.setattr(web, "WAITING", 1)
    app = web.build({"mnist": served.mnist}, max_mib=0.25)
    body = file(drawing())

    async def together():
        what = "POST", "/api/models/mnist/classify", body
        return await asyncio.gather(*(answered(app, *what, content_type="image/png") for _ in range(4)))

    answers = asyncio.run(together())
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503]
    refused = next(answer for answer in answers if answer.status == 503)
    assert refused.error == "Too many ask at once; ask again in a second."
    assert refused.headers["retry-after"] == "1"
    assert post(app, "/api/models/mnist/classify", body).status == 200  # places are given back


def test_bodies_that_do_not_arrive_make_room_for_newer_ones_and_end_in_time(served, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_AT_ONCE", 2)
    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.5)
    what = "POST", "/api/models/mnist/classify"

    async def together():
        half = [
            asyncio.ensure_future(answered(served.app, *what, content_type="image/png", stall=True))
            for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        whole = await answered(served.app, *what, file(drawing()), content_type="image/png")
        return whole, await asyncio.gather(*half)

    whole, half = asyncio.run(together())
    assert whole.status == 200
    assert [answer.status for answer in half] == [503, 503, 408]
    assert half[2].error == "The picture did not arrive within 0 s."
    assert served.app.app.state.arriving == {}


def test_a_drawn_digit_is_classified(served):
    answer = post(served.app, "/api/models/mnist/classify?kind=drawing", file(drawing())).json
    digit = uploads.centred(np.asarray(drawing()), 16)
    wanted = served.mnist.classify(torch.from_numpy(digit)[None, None])[0]
    got = torch.tensor([c["probability"] for c in answer["classes"]])
    assert torch.equal(got, wanted)
    assert [c["label"] for c in answer["classes"]] == served.mnist.classes
    assert answer["label"] == served.mnist.classes[int(wanted.argmax())]
    assert answer["probability"] == float(wanted.max())
    assert (shown(answer["seen"]) == digit).all()


def test_an_uploaded_picture_is_decoded_as_training_decodes(served):
    content = file(drawing().resize((70, 50)).convert("RGB"), "JPEG")
    answer = post(served.app, "/api/models/mnist/classify", content, "image/jpeg").json
    pixels = crayon.data.decode.decode(io.BytesIO(content), crayon.data.decode.Form(16, 16, 1))
    assert (shown(answer["seen"]) == pixels[:, :, 0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_any_mode_are_taken(served, mode):
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    image = drawing().convert("I") if mode == "I;16" else drawing()
    content = file(image.convert(mode), kind)
    answer = post(served.app, "/api/models/mnist/classify", content, "application/octet-stream")
    assert answer.status == 200
    assert abs(sum(c["probability"] for c in answer.json["classes"]) - 1) < 1e-5


def test_a_drawing_is_reconstructed(served):
    answer = post(served.app, "/api/models/autoencoder/reconstruct?kind=drawing", file(drawing())).json
    images = torch.from_numpy(uploads.centred(np.asarray(drawing()), 16))[None, None]
    made = served.autoencoder.reconstruct(images)[0, 0].numpy()
    assert (shown(answer["reconstruction"]) == made).all()
    assert (shown(answer["difference"]) == np.abs(made.astype(int) - images[0, 0].numpy())).all()
    assert answer["error"] == float(served.autoencoder.errors(images)[0])
    assert answer["code"] == served.autoencoder.encode(images)[0].tolist()


def image_of(served, query):
    answer = request(served.app, "GET", f"/api/models/gan/generate?{query}")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.body)) as image:
        return np.asarray(image).astype(int)


def test_a_seed_is_an_image_and_sliders_move_it(served):
    still = image_of(served, "seed=7")
    wanted = served.gan.generate(torch.tensor([7]))[0].permute(1, 2, 0).numpy()
    assert (still == wanted).all()
    assert (still == image_of(served, "seed=7&move=0&move=0")).all()
    assert (still != image_of(served, "seed=8")).any()
    first, second = image_of(served, "seed=7&move=2"), image_of(served, "seed=7&move=0&move=2")
    assert (first != still).any()
    assert (second != still).any()
    assert (first != second).any()
    assert (first == image_of(served, "seed=7&move=2")).all()


@pytest.mark.parametrize(
    ("method", "address", "body", "kind", "status", "says"),
    [
        ("POST", "mnist/classify", b"", "image/png", 422, "no picture"),
        ("POST", "mnist/classify", b"not a picture", "image/png", 422, "no picture that can be read"),
        ("POST", "mnist/classify", file(drawing())[:300], "image/png", 422, "damaged"),
        ("POST", "mnist/classify", file(drawing()), "text/plain", 415, "Content-Type"),
        ("POST", "mnist/classify", file(drawing()), "multipart/form-data; boundary=x", 415, "Content-Type"),
        ("POST", "mnist/classify?kind=painting", file(drawing()), "image/png", 422, "kind"),
        ("POST", "mnist/classify?kind=drawing", file(drawing(0)), "image/png", 422, "Nothing is drawn"),
        ("POST", "mnist/reconstruct", file(drawing()), "image/png", 422, "can't reconstruct"),
        ("POST", "first/classify", file(drawing()), "image/png", 404, "there are mnist, autoencoder, gan"),
        ("GET", "mnist/classify", b"", "", 405, "method"),
        ("GET", "mnist", b"", "", 404, "nothing at this address"),
        ("GET", "gan/generate", b"", "", 422, "seed"),
        ("GET", "gan/generate?seed=x", b"", "", 422, "seed"),
        ("GET", "gan/generate?seed=-1", b"", "", 422, "seed"),
        ("GET", "gan/generate?seed=9007199254740992", b"", "", 422, "seed"),
        ("GET", "gan/generate?seed=1&move=6", b"", "", 422, "from -5 to 5"),
        ("GET", "gan/generate?seed=1&move=nan", b"", "", 422, "from -5 to 5"),
        ("GET", "gan/generate?seed=1" + 9 * "&move=0", b"", "", 422, "8 directions"),
        ("GET", "mnist/generate?seed=1", b"", "", 422, "can't generate"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(served, method, address, body, kind, status, says):
    answer = request(served.app, method, f"/api/models/{address}", body, content_type=kind)
    assert answer.status == status
    assert says in answer.error
    assert "Traceback" not in answer.error
    assert answer.error.endswith(".")


def test_large_requests_are_refused(served):
    """Also where their length isn't told; the rest of one that is far too large is not waited for."""
    address, most = "/api/models/mnist/classify", 2**18
    padded = file(drawing()).ljust(most, b"\0")
    assert request(served.app, "POST", address, padded, chunk=1000, content_type="image/png").status == 200
    for size, chunk in ((most + 1, 0), (most + 1, 1000), (100 * most, most)):
        answer = request(served.app, "POST", address, bytes(size), chunk=chunk, content_type="image/png")
        assert answer.status == 413
        assert "at most 0.25 MiB" in answer.error


def test_a_failure_of_ours_gives_nothing_away(served, monkeypatch):
    def broken(images):
        raise ValueError("/home/someone/secret")

    monkeypatch.setattr(served.mnist, "classify", broken, raising=False)
    answer = post(served.app, "/api/models/mnist/classify", file(drawing()))
    assert answer.status == 500
    assert "secret" not in answer.error


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(served):
    html = {path: request(served.app, "GET", path).body.decode() for path in ("/", "/docs")}
    wanted = {a for text in html.values() for a in re.findall(r'(?:src|href)="(/[^"]*)"', text)}
    scripts = {f"/{name}": request(served.app, "GET", f"/{name}") for name in FILES if name.endswith(".js")}
    wanted |= {a for answer in scripts.values() for a in re.findall(r'from "(/[^"]*)"', answer.body.decode())}
    pages = {"/", "/docs", "/openapi.json"}
    assert wanted - pages == {f"/{name}" for name in FILES if not name.endswith(".html")}
    for path in wanted:
        answer = request(served.app, "GET", path)
        assert answer.status == 200, path
        text = answer.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|\burl\(|@import|style=|\bon\w+=\"|<script>|<style>", text), path
    for answer in scripts.values():
        assert answer.headers["content-type"].startswith("text/javascript")


def test_no_other_file_is_given_out(served):
    for path in ("/page/page.css", "/../web.py", "/web.py", "/index.html", "/%2e%2e/web.py", "/redoc"):
        assert request(served.app, "GET", path).status == 404


def test_the_api_describes_itself(served):
    about = request(served.app, "GET", "/openapi.json").json
    verbs = {f"/api/models/{{name}}/{verb}" for verb in ("classify", "reconstruct", "generate")}
    assert set(about["paths"]) == {"/api/models", *verbs}
    classify = about["paths"]["/api/models/{name}/classify"]["post"]
    assert "image/*" in classify["requestBody"]["content"]
    assert {"200", "413", "415", "422"} <= set(classify["responses"])
    told = about["components"]["schemas"]["Classification"]["properties"]
    assert set(told) == {"label", "probability", "classes", "seen", "milliseconds"}


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["runs/first", "runs/second/"], ["first", "second"]),
        (["runs/a/best", "runs/b/best"], ["a-best", "b-best"]),
        (["a/first", "b/first", "c/first"], ["first", "first-2", "first-3"]),
        (["s3://bucket/runs/first/checkpoints/step-000000430"], ["first-step-000000430"]),
        (["runs/größer & so"], ["gr--er---so"]),
        (["."], ["model"]),
    ],
)
def test_names_are_short_and_different(addresses, names):
    assert shown_names(addresses) == names

"""The web page's server: a JSON API over loaded models, its OpenAPI description, and the page's files.

An ordinary FastAPI application: Ray Serve runs it in a replica, the tests call it in their own process.

Shapes: B images, K classes, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from crayon import __version__
from crayon.errors import BadInput
from crayon.tasks.adversarial import directions
from crayon.tasks.adversarial.settings import AdversarialExperiment
from crayon.tasks.classification.settings import ClassificationExperiment
from crayon.tasks.reconstruction.settings import ReconstructionExperiment
from crayon.use.serve import uploads
from crayon.use.serve.guard import Guard, HTTPRefusal
from crayon.use.serve.schemas import Classification, ModelInfo, Probability, Problem, Reconstruction

PAGE = Path(__file__).parent / "page"
FILES = {
    "": "index.html",
    "docs": "docs.html",
    **{
        name: name
        for name in (
            "page.css",
            "page.js",
            "api.js",
            "panels.js",
            "input.js",
            "draw.js",
            "docs.js",
            "icon.svg",
        )
    },
}
"""What is given out, by path. No other file can be asked for."""
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
Ability = Literal["classify", "reconstruct", "generate"]
ABILITIES: tuple[tuple[type, Ability], ...] = (
    (ClassificationExperiment, "classify"),
    (ReconstructionExperiment, "reconstruct"),
    (AdversarialExperiment, "generate"),
)
SLIDERS = 8
FARTHEST = 5.0
"""How far a latent may be moved along a direction, in standard deviations."""
MOST_SEED = 2**53 - 1
"""The largest whole number that JavaScript keeps exactly."""
PICTURE = {
    "requestBody": {
        "required": True,
        "description": "An image file of any size.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}

Kind = Annotated[
    Literal["picture", "drawing"],
    Query(
        description="picture: cut to its central square and scaled, as training does with files. drawing: one digit, "
        "bright on dark or dark on bright, centred and scaled as MNIST's are."
    ),
]


async def picture(request: Request) -> bytes:
    """The request's body. Raises HTTPRefusal (415) where it isn't said to be a picture.

    No form of another site can send such a type without asking first (CORS), which is never granted here.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPRefusal(415, "Send the image file itself, with a Content-Type such as image/png.")
    return await request.body()


Picture = Annotated[bytes, Depends(picture)]


class Models:
    """The models by their names, used by one request at a time: threads that compute share the cores."""

    def __init__(self, models: Mapping[str, Any]):
        self.models = dict(models)
        for model in self.models.values():
            # Here one image is asked for at a time, and a person waits: it isn't padded to a block of many.
            model.block = 1
        self.busy = threading.Lock()
        # By the weights: the other method takes half a minute, and the page wants to start.
        self.directions = {
            name: directions.find(
                model.networks["generator"], "weights", min(SLIDERS, model.networks["generator"].latent_dim)
            ).vectors
            for name, model in self.models.items()
            if ability(model) == "generate"
        }

    def get(self, name: str, wanted: str | None = None) -> Any:
        """Raises HTTPRefusal: 404 no such model, 422 one that can't do what is wanted."""
        if name not in self.models:
            raise HTTPRefusal(404, f"There is no model {name[:80]!r}; there are {', '.join(self.models)}.")
        model = self.models[name]
        if wanted and ability(model) != wanted:
            raise HTTPRefusal(
                422, f"The model {name!r} ({model.job}) can't {wanted}; it can {ability(model)}."
            )
        return model

    def info(self, name: str) -> ModelInfo:
        model = self.get(name)
        parameters = sum(p.numel() for network in model.networks.values() for p in network.parameters())
        return ModelInfo(
            name=name,
            job=model.job,
            ability=ability(model),
            step=model.step,
            image_size=model.image_size,
            channels=model.channels,
            classes=model.classes,
            parameters=parameters,
            sliders=len(self.directions.get(name, ())),
        )

    def classify(self, name: str, content: bytes, kind: str) -> Classification:
        model = self.get(name, "classify")
        with self.busy:
            begun = time.perf_counter()
            images_BCHW = uploads.prepared(content, kind, model)
            probabilities = model.classify(images_BCHW)[0].tolist()
            milliseconds = 1000 * (time.perf_counter() - begun)
        labels = model.classes or [str(k) for k in range(len(probabilities))]
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return Classification(
            label=labels[best],
            probability=probabilities[best],
            classes=[
                Probability(label=label, probability=p)
                for label, p in zip(labels, probabilities, strict=True)
            ],
            seen=uploads.data_url(images_BCHW[0]),
            milliseconds=milliseconds,
        )

    def reconstruct(self, name: str, content: bytes, kind: str) -> Reconstruction:
        model = self.get(name, "reconstruct")
        with self.busy:
            begun = time.perf_counter()
            images_BCHW = uploads.prepared(content, kind, model)
            code = model.encode(images_BCHW)[0].tolist()
            made_BCHW = model.reconstruct(images_BCHW).cpu()
            error = float(model.errors(images_BCHW)[0])
            milliseconds = 1000 * (time.perf_counter() - begun)
        difference_CHW = (made_BCHW[0].int() - images_BCHW[0].int()).abs().to(torch.uint8)
        return Reconstruction(
            error=error,
            seen=uploads.data_url(images_BCHW[0]),
            reconstruction=uploads.data_url(made_BCHW[0]),
            difference=uploads.data_url(difference_CHW),
            code=code,
            milliseconds=milliseconds,
        )

    def generate(self, name: str, seed: int, move: list[float]) -> bytes:
        model = self.get(name, "generate")
        known = self.directions[name]
        if len(move) > len(known):
            raise HTTPRefusal(422, f"move is given {len(move)} times; {name!r} has {len(known)} directions.")
        if not all(abs(amount) <= FARTHEST for amount in move):  # NaN is no such number either
            raise HTTPRefusal(422, f"Each move must be a number from {-FARTHEST:g} to {FARTHEST:g}.")
        with self.busy:
            seeds = torch.tensor([seed])
            if not any(move):  # to the last bit what crayon gan generate makes of this seed
                return uploads.png(model.generate(seeds)[0])
            latents_BZ = model.latents(seeds)
            amounts = torch.tensor(move, dtype=torch.float32)
            latents_BZ = latents_BZ + amounts @ known[: len(move)].to(latents_BZ)
            return uploads.png(model.decode(latents_BZ)[0])


def ability(model: Any) -> Ability:
    """What a model does here: "classify", "reconstruct" or "generate"."""
    return next(name for kind, name in ABILITIES if isinstance(model.config, kind))


def build(models: Mapping[str, Any], *, names: tuple[str, ...] = (), max_mib: float = 8.0) -> Guard:
    """The application over loaded models (crayon.load) by the names that are shown, behind its guard.

    names: host names, max_mib: largest body, see crayon.use.serve.guard.
    """
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (403, 413, 415, 422)}
    app = FastAPI(
        title="Crayon",
        version=__version__,
        description='What was trained, to be asked. Every refusal is a JSON object with one sentence under "error".',
        docs_url=None,  # FastAPI's pages load their scripts from another host; /docs is one of our own
        redoc_url=None,
        responses={404: {"model": Problem}},
    )
    served = Models(models)

    @app.get("/api/models", summary="What is served")
    def list_models() -> list[ModelInfo]:
        return [served.info(name) for name in served.models]

    @app.post(
        "/api/models/{name}/classify", summary="Classify an image", openapi_extra=PICTURE, responses=refusals
    )
    def classify(name: str, content: Picture, kind: Kind = "picture") -> Classification:
        return served.classify(name, content, kind)

    @app.post(
        "/api/models/{name}/reconstruct",
        summary="Pass an image through the latent code",
        openapi_extra=PICTURE,
        responses=refusals,
    )
    def reconstruct(name: str, content: Picture, kind: Kind = "picture") -> Reconstruction:
        return served.reconstruct(name, content, kind)

    @app.get(
        "/api/models/{name}/generate",
        summary="Make an image",
        response_class=Response,
        responses=refusals
        | {200: {"content": {"image/png": {}}, "description": "The image, as a PNG file."}},
    )
    def generate(
        name: str,
        seed: Annotated[int, Query(ge=0, le=MOST_SEED, description="Which image.")],
        move: Annotated[
            list[float],
            Query(description="How far to go along each direction, in standard deviations of a latent."),
        ] = [],  # noqa: B006
    ) -> Response:
        # The same address is always the same image, as long as the same weights are served.
        return Response(
            served.generate(name, seed, move), media_type="image/png", headers={"cache-control": "no-store"}
        )

    _add_page(app)
    _add_errors(app)
    return Guard(app, names=names, max_bytes=int(max_mib * 2**20))


def _add_page(app: FastAPI) -> None:
    contents = {path: (PAGE / file).read_bytes() for path, file in FILES.items()}

    def file(request: Request) -> Response:
        path = request.url.path.removeprefix("/")
        kind = TYPES[Path(FILES[path]).suffix]
        return Response(contents[path], media_type=kind, headers={"cache-control": "no-cache"})

    for path in FILES:
        app.add_api_route(f"/{path}", file, methods=["GET"], include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse(
            {"error": sentence}, status, headers=dict(headers or {}) | {"cache-control": "no-store"}
        )

    @app.exception_handler(HTTPRefusal)
    async def refused(request: Request, error: HTTPRefusal) -> JSONResponse:
        return problem(error.status, error.sentence)

    @app.exception_handler(BadInput)
    async def bad_input(request: Request, error: BadInput) -> JSONResponse:
        return problem(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return problem(422, f"{where or first['loc'][0]}: {first['msg'][:1].lower()}{first['msg'][1:]}.")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        sentences = {404: "There is nothing at this address.", 405: "This address doesn't take that method."}
        sentence = sentences.get(error.status_code, f"{error.detail}.")
        return problem(error.status_code, sentence, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "Something went wrong here; the log of the server's replica says more.")

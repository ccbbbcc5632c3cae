"""The web page's server: a JSON API over loaded models, its OpenAPI description, and the page's files.

An ordinary FastAPI application: Ray Serve runs it in a replica, the tests call it in their own process.

Shapes: B images, K classes, C channels, H height, W width, Z latent dimensions.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from crayon import __version__
from crayon.errors import BadInput
from crayon.tasks.adversarial import directions
from crayon.use.serve import uploads
from crayon.use.serve.guard import Guard
from crayon.use.serve.schemas import Classification, ModelInfo, Probability, Problem, Reconstruction

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
Ability = Literal["classify", "reconstruct", "generate"]
ABILITIES: tuple[Ability, ...] = ("classify", "reconstruct", "generate")
"""What is served of a model: the first of these that it can do."""
AT_ONCE = 32
"""Requests that are answered at once; the models compute for one at a time."""
WAITING = 64
"""Requests that wait for that; more are refused."""
SLIDERS = 8
FARTHEST = 5.0
"""How far a latent may be moved along a direction, in standard deviations."""
MOST_SEED = 2**53 - 1
"""The largest whole number that JavaScript keeps exactly."""
ANY_FILE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
PICTURE = {
    "requestBody": {"required": True, "description": "An image file of any size.", "content": ANY_FILE}
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (403, 408, 413, 415, 422, 503)
}
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The image, as a PNG file."}
}
SENTENCES = {
    "Not Found": "There is nothing at this address.",
    "Method Not Allowed": "This address doesn't take that method.",
}
"""For what Starlette says by itself."""

Picture = Annotated[bytes, Depends(uploads.received)]
Kind = Annotated[
    Literal["picture", "drawing"],
    Query(
        description="picture: brought to the size of the images as training does with files. drawing: one digit, "
        "bright on dark or dark on bright, centred and scaled as MNIST's are."
    ),
]
Seed = Annotated[int, Query(ge=0, le=MOST_SEED, description="Which image.")]
Move = Annotated[
    list[float],
    Query(description="How far to go along each direction, in standard deviations of a latent."),
]


class Places:
    """A dependency of what the models compute for: a place among those that are answered at once or wait.

    Serve has such limits, too, but what it then says is no JSON, and doesn't say when to come again.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.answered = asyncio.Semaphore(AT_ONCE)

    async def __call__(self) -> AsyncIterator[None]:
        """Raises HTTPException: 503 all are taken."""
        if self.taken >= AT_ONCE + WAITING:
            raise HTTPException(503, "Too many ask at once; ask again in a second.", {"Retry-After": "1"})
        self.taken += 1
        try:
            async with self.answered:
                yield
        finally:
            self.taken -= 1


class Models:
    """What is answered of the models, by their names. One request at a time: threads that compute share the cores."""

    def __init__(self, models: Mapping[str, Any]):
        self.models = dict(models)
        self.busy = threading.Lock()
        self.directions: dict[str, Any] = {}
        for name, model in self.models.items():
            # Here one image is asked for at a time, and a person waits: it isn't padded to a block of many.
            model.block = 1
            self.directions[name] = []
            if ability(model) == "generate" and "edit" in model.config.abilities:
                generator = model.networks["generator"]
                # By the weights: the other method takes half a minute, and the page wants to start.
                found = directions.find(generator, "weights", min(SLIDERS, generator.latent_dim))
                self.directions[name] = found.vectors

    def get(self, name: str, wanted: Ability) -> Any:
        """Raises HTTPException: 404 no such model, 422 one that can't do what is wanted."""
        if name not in self.models:
            raise HTTPException(404, f"There is no model {name[:80]!r}; there are {', '.join(self.models)}.")
        model = self.models[name]
        if ability(model) != wanted:
            raise HTTPException(
                422, f"The model {name!r} ({model.job}) can't {wanted}; it can {ability(model)}."
            )
        return model

    def list_models(self) -> list[ModelInfo]:
        return [
            ModelInfo(
                name=name,
                job=model.job,
                ability=ability(model),
                step=model.step,
                image_size=model.image_size,
                channels=model.channels,
                classes=model.classes,
                parameters=sum(p.numel() for p in model.networks.parameters()),
                sliders=len(self.directions.get(name, ())),
            )
            for name, model in self.models.items()
        ]

    def classify(self, name: str, content: Picture, kind: Kind = "picture") -> Classification:
        model = self.get(name, "classify")
        with self.busy:
            begun = time.perf_counter()
            images_BCHW = uploads.prepared(content, kind, model)
            probabilities = model.classify(images_BCHW)[0].tolist()
            milliseconds = 1000 * (time.perf_counter() - begun)
        labels = model.classes or map(str, range(len(probabilities)))
        classes = [Probability(label=k, probability=p) for k, p in zip(labels, probabilities, strict=True)]
        best = max(classes, key=lambda one: one.probability)
        return Classification(
            label=best.label,
            probability=best.probability,
            classes=classes,
            seen=uploads.data_url(images_BCHW[0]),
            milliseconds=milliseconds,
        )

    def reconstruct(self, name: str, content: Picture, kind: Kind = "picture") -> Reconstruction:
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

    def generate(self, name: str, seed: Seed, move: Move = []) -> Response:  # noqa: B006
        model = self.get(name, "generate")
        known = self.directions[name]
        if len(move) > len(known):
            raise HTTPException(
                422, f"move is given {len(move)} times; {name!r} has {len(known)} directions."
            )
        if not all(abs(amount) <= FARTHEST for amount in move):  # NaN is no such number either
            raise HTTPException(422, f"Each move must be a number from {-FARTHEST:g} to {FARTHEST:g}.")
        with self.busy:
            seeds = torch.tensor([seed])
            if any(move):
                latents_BZ = model.latents(seeds)
                amounts = torch.tensor(move, dtype=torch.float32)
                images_BCHW = model.decode(latents_BZ + amounts @ known[: len(move)].to(latents_BZ))
            else:  # to the last bit what crayon gan generate makes of this seed
                images_BCHW = model.generate(seeds)
        return Response(uploads.png(images_BCHW[0]), media_type="image/png")


def ability(model: Any) -> Ability:
    """What a model does here. Raises BadInput where that is nothing."""
    for one in ABILITIES:
        if one in model.config.abilities:
            return one
    raise BadInput(
        f"{model.uri} is of the job {model.job}, which can't {', '.join(ABILITIES[:-1])} or {ABILITIES[-1]}, so it "
        "can't be served."
    )


def build(models: Mapping[str, Any], *, names: tuple[str, ...] = (), max_mib: float = 8.0) -> Guard:
    """The application over loaded models (crayon.load) by the names that are shown, behind its guard.

    names: host names, see crayon.use.serve.guard. max_mib: largest picture.
    """
    app = FastAPI(
        title="Crayon",
        version=__version__,
        description='What was trained, to be asked. Every refusal is a JSON object with one sentence under "error".',
        docs_url=None,  # FastAPI's pages load their scripts from another host; /docs is one of our own
        redoc_url=None,
        responses={404: {"model": Problem}},
        exception_handlers=dict.fromkeys(
            (HTTPException, RequestValidationError, BadInput, Exception), _refuse
        ),
    )
    app.state.max_bytes = int(max_mib * 2**20)
    app.state.arriving = {}  # by client, see uploads.received
    served = Models(models)
    add = app.add_api_route
    add("/api/models", served.list_models, summary="What is served")
    places = Depends(Places())
    # A body is there before it takes a place.
    whole: dict[str, Any] = {"dependencies": [Depends(uploads.received), places]}
    asked = {"methods": ["POST"], "openapi_extra": PICTURE, "responses": REFUSALS, **whole}
    add("/api/models/{name}/classify", served.classify, summary="Classify an image", **asked)
    add(
        "/api/models/{name}/reconstruct",
        served.reconstruct,
        summary="Pass an image through the latent code",
        **asked,
    )
    add(
        "/api/models/{name}/generate",
        served.generate,
        summary="Make an image",
        response_class=Response,
        responses=REFUSALS | IMAGE,
        dependencies=[places],
    )
    addresses = {"index.html": "/", "docs.html": "/docs"}
    for file in PAGE.iterdir():
        app.add_route(addresses.get(file.name, f"/{file.name}"), _giving(file))
    return Guard(app, names=names)


def _giving(file: Path) -> Callable[[Request], FileResponse]:
    return lambda request: FileResponse(file, media_type=TYPES[file.suffix])


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    headers = None
    match error:
        case HTTPException():
            status, headers = error.status_code, error.headers
            sentence = SENTENCES.get(error.detail, error.detail)
        case RequestValidationError():
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:]) or first["loc"][0]
            status, sentence = 422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}."
        case BadInput():
            status, sentence = 422, str(error)
        case _:
            status, sentence = 500, "Something went wrong here; the log of the server's replica says more."
    return JSONResponse({"error": sentence}, status, headers)

"""What the served page's API answers, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What every refusal looks like."""

    error: str = Field(description="One sentence: what is wrong and what to do.")


class ModelInfo(BaseModel):
    """A model that is served."""

    name: str = Field(description="As it stands in the paths below.")
    job: str
    ability: Literal["classify", "reconstruct", "generate"]
    step: int = Field(description="Optimizer steps after which the weights were kept.")
    image_size: int | list[int] = Field(
        description="Side of its images in pixels; height and width where they are no squares."
    )
    channels: int = Field(description="1 grey, 3 RGB.")
    classes: list[str] | None
    parameters: int
    sliders: int = Field(description="Directions in its latent space that generate takes.")


class Probability(BaseModel):
    label: str
    probability: float


class Classification(BaseModel):
    label: str = Field(description="The most probable class.")
    probability: float
    classes: list[Probability] = Field(description="All of them, in the order of the labels.")
    seen: str = Field(description="The image that the model was given, as a data: URL.")
    milliseconds: float = Field(description="Spent on the model and on decoding.")


class Reconstruction(BaseModel):
    error: float = Field(description="Mean squared difference of pixels in [0, 1].")
    seen: str = Field(description="The image that the model was given, as a data: URL.")
    reconstruction: str = Field(description="What it made of it, as a data: URL.")
    difference: str = Field(description="The absolute difference of both, as a data: URL.")
    code: list[float] = Field(description="The latent code in between.")
    milliseconds: float

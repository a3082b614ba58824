"""What every Moondream is, whatever computes its forward passes. Needs no PyTorch."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from PIL import Image

from galago.checkpoint.config_file import TEXT, members_of, one_of
from galago.engine.arrays import Array
from galago.engine.step import Crops, ImageInput, Prefix, Steps
from galago.errors import InvalidRequest
from galago.families import ModelFiles
from galago.families.moondream.config import MoondreamConfig, make_config
from galago.families.moondream.image import make_crops
from galago.families.moondream.prompts import Prompt
from galago.families.moondream.tokenizer import PROMPT_FAMILIES, decide_revision
from galago.families.text_model import TextModel
from galago.families.tokenizer import Tokenizer
from galago.media.clip import Clip
from galago.media.load import ONE_BY_ONE
from galago.media.picture import Picture
from galago.request import Detail, Media, Request, Skill

ONE_IMAGE = f"this model looks at one image, not at a clip; {ONE_BY_ONE}"


@dataclass(frozen=True, eq=False)
class MoondreamModel(TextModel):
    config: MoondreamConfig
    steps: Callable[["MoondreamModel", Request], Steps]
    """skills.skill_steps"""

    @abstractmethod
    def embed(self, prompt: Prompt) -> Array:
        """Token ids [n] where the prompt is text alone, else embeddings [n, dim]."""

    @property
    def revision(self) -> str:
        return self.config.revision.name

    @property
    def skills(self) -> frozenset[type[Skill]]:
        return frozenset(get_args(Skill))

    def skill(self, request: Request) -> Steps:
        return self.steps(self, request)

    def check_media(self, media: Media | None, variant: str | None = None) -> None:
        """Check one image, or none."""
        if isinstance(media, Clip):
            raise InvalidRequest(ONE_IMAGE, "image")
        if media is not None:
            super().check_media(media, variant)

    def image_prefix(self, media: Image.Image | Picture | Clip, detail: Detail = "high") -> Prefix:
        """BOS and an image, with which every question begins."""
        if isinstance(media, Clip):
            raise InvalidRequest(ONE_IMAGE, "image")
        return Prefix((ImageInput(media, detail),), self.config.prefix_len)

    def make_crops(self, image: Image.Image, detail: Detail = "high") -> Crops:
        """Cut an image for the vision tower; may run in any thread."""
        return make_crops(image, self.config.vision, tiled=detail == "high")


def config_of(files: ModelFiles, tokenizer: Tokenizer, revision: str | None = None) -> MoondreamConfig:
    """The config that the files give, with the caller's revision if there is one."""
    config = members_of(files.config, "config.json")
    stated = revision or files.revision or config.take("revision", TEXT, None)
    decided = decide_revision(stated, config.take("prompt_family", one_of(*PROMPT_FAMILIES), None), tokenizer)
    return make_config(config.part("config"), decided)

"""What every SmolVLM is, whatever computes its forward passes. Needs no PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from galago.engine.step import Crops, Prefix, Steps
from galago.errors import CheckpointError, ContextLengthExceeded
from galago.families import ModelFiles
from galago.families.smolvlm import prompts
from galago.families.smolvlm.config import SmolVLMConfig, make_config
from galago.families.smolvlm.image import make_crops
from galago.families.text_model import TextModel, check_vocabulary
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.media.timeline import FrameSampling
from galago.request import Caption, Chat, Detail, Encode, Query, Request, Skill


@dataclass(frozen=True, eq=False)
class SmolVLMModel(TextModel):
    config: SmolVLMConfig
    steps: Callable[["SmolVLMModel", Request], Steps]
    """skills.skill_steps"""

    @property
    def revision(self) -> str:
        return self.config.name

    @property
    def video_sampling(self) -> FrameSampling | None:
        return self.config.image.video

    @property
    def skills(self) -> frozenset[type[Skill]]:
        return frozenset({Caption, Query, Chat, Encode})

    def skill(self, request: Request) -> Steps:
        return self.steps(self, request)

    def image_prefix(self, media: Image.Image | Picture | Clip, detail: Detail = "high") -> Prefix:
        """The beginning of a conversation whose first turn begins with this. Raises ContextLengthExceeded."""
        prefix = prompts.image_prefix(self.config, self.tokenizer, media, detail)
        if prefix.positions > self.context:
            raise ContextLengthExceeded(f"the images take {prefix.positions} tokens, {self.context} fit", "image")
        return prefix

    def make_crops(self, image: Image.Image, detail: Detail = "high") -> Crops:
        """Cut an image into crops; may run in any thread."""
        c = self.config.image
        return make_crops(image, c, split=c.split and detail == "high")


def config_of(files: ModelFiles) -> SmolVLMConfig:
    """The config that the files give. Raises CheckpointError."""
    return make_config(files.config, files.preprocessor, files.video)


def checked_tokenizer(files: ModelFiles, config: SmolVLMConfig) -> tuple[Tokenizer, int]:
    """The tokenizer, and the token that ends an answer. Raises CheckpointError where it does not go with the config."""
    tokenizer = load_tokenizer(files.tokenizer, control=r"<[^<>\s]+>")
    check_vocabulary(tokenizer, config.text)
    needed = (prompts.START, prompts.END, prompts.AROUND, prompts.IMAGE)
    _, eos_id, _, image_id = (token_id(tokenizer, name) for name in needed)
    if image_id != config.image_id:
        raise CheckpointError(f"config.json: image_token_id is {config.image_id}, in tokenizer.json it is {image_id}")
    return tokenizer, eos_id


def token_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of a token. Raises CheckpointError where there is none of this name."""
    found = tokenizer.backend.token_to_id(name)
    if found is None:
        raise CheckpointError(f"tokenizer.json has no {name}")
    return int(found)

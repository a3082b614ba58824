"""How far lower precisions move Moondream2 from float32: on the golden vectors, and on the bundled model.

    python benchmarks/precision_drift.py --precisions bfloat16 int8 int4

First the golden vectors, of random models: the largest difference; the root mean square of the difference over
that of the golden values; for logits the Kullback-Leibler divergence from the golden distribution in nats,
mean and largest, and how often the most likely choice stays the same. Random models choose between equals, so
a trained one keeps more of its choices: the second table is of the bundled model, fed with its own float32
answers to all tasks about drawn scenes, for the tokens and for the bins of coordinates and sizes (of which
neighbours mean nearly the same). With outliers, some channels are that many times as large, see
outliers.py.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from outliers import write_with_outliers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from galago.families import ModelFiles
from galago.families.moondream.image import make_crops
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.families.moondream.text import logits_of
from galago.families.moondream.vision import crop_features, image_embedding
from galago.lab.eval.drift import Divergence, divergence, reference_answers, replay_logits
from galago.lab.eval.scenes.score import scene_questions, skill_of
from galago.precision import NAMES, pick_precision
from galago.store import hub
from galago.system.device import pick_device

VECTORS = Path(__file__).parents[1] / "tests" / "golden" / "vectors" / "moondream2-tiny"
Pairs = dict[str, list[tuple[Tensor, Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=NAMES, default=["bfloat16", "int8", "int4"])
    parser.add_argument("--scenes", type=int, default=40, help="for the bundled model; 0: leave it out")
    parser.add_argument("--seed", type=int, default=555, help="of the series of scenes")
    parser.add_argument("--outliers", nargs="*", type=int, default=[30, 100], metavar="FACTOR")
    parser.add_argument("--device")
    args = parser.parse_args()
    device = pick_device(args.device)
    on_golden_vectors(args.precisions, device)
    if args.scenes:
        on_scenes(args, device)


def on_golden_vectors(precisions: Sequence[str], device: torch.device) -> None:
    print(f"{'precision':10} {'model':8} {'what':12} {'max abs':>9} {'rms rel':>9} {'KL':>9} {'max KL':>9} {'same':>6}")
    for precision in precisions:
        for folder in sorted(p.parent for p in VECTORS.glob("*/expected.json")):
            pairs: Pairs = {}
            compare(opened(hub.locate(folder), precision, device), folder, pairs)
            for what, found in pairs.items():
                ours = torch.cat([a.float().cpu().flatten() for a, _ in found])
                golden = torch.cat([b.flatten() for _, b in found])
                off = ours - golden
                relative = float(off.square().mean().sqrt() / golden.square().mean().sqrt())
                line = f"{precision:10} {folder.name:8} {what:12} {float(off.abs().max()):9.2e} {relative:9.2e}"
                if "logits" in what:
                    line += told(divergence([b.float() for _, b in found], [a.float().cpu() for a, _ in found]))
                print(line, flush=True)


def on_scenes(args: argparse.Namespace, device: torch.device) -> None:
    """The bundled model, fed with what it says itself in float32."""
    plain = hub.locate("scenes")
    reference = opened(plain, "float32", device)
    asked = []
    for scene, tasks in scene_questions(args.seed, args.scenes):
        answers = reference_answers(reference, reference.encode_image(scene.image), map(skill_of, tasks))
        asked.append((scene.image, answers, replay_logits(reference, scene.image, answers)))
    print(f"\n{'precision':10} {'outliers':8} {'what':12} {'count':>19} {'KL':>9} {'max KL':>9} {'same':>6}")
    with tempfile.TemporaryDirectory() as kept:
        for factor in (1, *args.outliers):
            files = plain if factor == 1 else hub.locate(write_with_outliers(plain, Path(kept, str(factor)), factor))
            for precision in args.precisions:
                m = opened(files, precision, device)
                found = [(wanted, replay_logits(m, image, answers)) for image, answers, wanted in asked]
                for what in reference.heads:
                    wanted, ours = (
                        [x for found_in in side for x in found_in[what]] for side in zip(*found, strict=True)
                    )
                    much = divergence(wanted, ours)
                    print(f"{precision:10} {f'x{factor}':8} {what:12} {much.count:19}{told(much)}", flush=True)


def opened(files: ModelFiles, precision: str, device: torch.device) -> Moondream:
    return load_moondream(files, precision=pick_precision(precision, device), device=device)


def told(d: Divergence) -> str:
    return f" {d.mean:9.2e} {d.largest:9.2e} {d.agreed:6.3f}"


@torch.inference_mode()
def compare(m: Moondream, folder: Path, pairs: Pairs) -> None:
    """Collect (ours, golden) of each kind; every prompt is fed as the reference fed it."""
    table = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    golden = load_file(folder / "expected.safetensors")

    def note(what: str, ours: Tensor, wanted: Tensor) -> None:
        pairs.setdefault(what, []).append((ours, wanted))

    encoded = {}
    for name, facts in table["images"].items():
        image = Image.open(folder / facts["file"])
        crops = make_crops(image, m.config.vision)
        pixels = torch.from_numpy(crops.pixels).to(m.device)
        features = crop_features(pixels, m.weights.vision, m.config.vision, m.precision.kv)
        shown = [min(i, len(features) - 1) for i in facts["feature_crops"]]
        note("features", features[shown], golden[f"{name}.vision.features"])
        seen = image_embedding(pixels, crops.tiling, m.weights.vision, m.config.vision, m.precision.kv)
        note("embedding", seen, golden[f"{name}.embedding"])
        encoded[name] = m.encode_image(image)

    for case in table["cases"]:
        segment = case.get("segments", [case])[0]
        key = f"{case['id']}.seg0" if "segments" in case else case["id"]
        args = case["args"]
        if f"{key}.prompt_hidden" not in golden or "spatial_refs" in args or "lora" in args:
            continue
        cache = m.new_cache(encoded[case["image"]] if case["image"] else None)
        hidden = m.hidden(cache, torch.tensor(segment["prompt_ids"], device=m.device))
        note("hidden", hidden, golden[f"{key}.prompt_hidden"])
        note("logits", logits_of(hidden[-1], m.weights.text), golden[f"{key}.prompt_logits"])
        if f"{key}.step_logits" in golden:
            steps = m.hidden(cache, torch.tensor(segment["token_ids"], device=m.device))
            note("step logits", logits_of(steps, m.weights.text), golden[f"{key}.step_logits"])


if __name__ == "__main__":
    main()

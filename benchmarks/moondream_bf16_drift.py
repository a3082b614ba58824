"""How far a lower precision moves Moondream2's features and logits from the float32 golden vectors.

    python benchmarks/moondream_bf16_drift.py --precision bfloat16

Columns: the largest difference, the root mean square of the difference over that of the golden
values, and for logits how often the most likely token stays the same. The golden models are random,
so their choices are close: a trained model keeps more of them.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from galago import hub
from galago.families.moondream.image import make_crops
from galago.families.moondream.model import Moondream, load_moondream
from galago.families.moondream.text import logits_of
from galago.families.moondream.vision import crop_features, image_embedding
from galago.nn.device import pick_device
from galago.precision import NAMES, pick_precision

DEFAULT = Path(__file__).parents[2] / "shared" / "golden"
Pairs = dict[str, list[tuple[Tensor, Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=NAMES, default="bfloat16")
    parser.add_argument("--device")
    args = parser.parse_args()
    root = Path(os.environ.get("GALAGO_GOLDEN", DEFAULT)) / "moondream2-tiny"
    print(f"{'model':8} {'what':12} {'max abs':>9} {'rms rel':>9} {'same top':>9}   ({args.precision})")
    for folder in sorted(p.parent for p in root.glob("*/expected.json")):
        device = pick_device(args.device)
        model = load_moondream(hub.locate(folder), precision=pick_precision(args.precision, device), device=device)
        pairs: Pairs = {}
        compare(model, folder, pairs)
        for what, found in pairs.items():
            ours = torch.cat([a.float().cpu().flatten() for a, _ in found])
            golden = torch.cat([b.flatten() for _, b in found])
            off = ours - golden
            relative = float(off.square().mean().sqrt() / golden.square().mean().sqrt())
            same = [(a.argmax(-1).cpu() == b.argmax(-1)).float().flatten() for a, b in found if "logits" in what]
            agreed = f"{torch.cat(same).mean():9.3f}" if same else ""
            print(f"{folder.name:8} {what:12} {float(off.abs().max()):9.2e} {relative:9.2e} {agreed}")


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

"""Make the pictures that matplotlib saved in the notebooks smaller: PNGs keep their size in pixels and get a palette of 256 colours.

A plot looks the same and takes a third of the space. Pictures that have a palette already are left alone, so running
this twice changes nothing; and so are those without an alpha channel, whose code chose their colours.
"""
import base64
import io
import json
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def shrink(encoded: str) -> str:
    "A PNG in base64, with a palette where that makes it smaller."
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode != "RGBA":
        return encoded
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    small = io.BytesIO()
    flat.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    result = base64.b64encode(small.getvalue()).decode()
    return result if len(result) < len(encoded) else encoded


def main() -> None:
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        changed = False
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    before = "".join(data["image/png"]).strip()
                    after = shrink(before)
                    if after != before:
                        data["image/png"], changed = after, True
        if changed:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()

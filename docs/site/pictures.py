"""Takes the pictures of the pages: the site's first page, and the report of a run, in headless Chromium.

    make docs
    python docs/site/pictures.py runs/grpo

writes ``docs/images/site.png`` and ``docs/images/report.png``. Look at both before they are committed.
Needs Chromium (``apt install chromium``) and Pillow, which matplotlib brings.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from PIL import Image

from chatlearn.report import write_report

ROOT = Path(__file__).resolve().parent.parent.parent
SITE = ROOT / "build" / "site"
IMAGES = ROOT / "docs" / "images"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def main() -> None:
    """Takes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run with samples")
    run = parser.parse_args().run
    if not (SITE / "index.html").is_file():
        raise SystemExit(f"{SITE} has no index.html; make docs builds it.")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # the search of the site wants a server; the report is a file that stands alone
    take(f"http://127.0.0.1:{server.server_port}/index.html", IMAGES / "site.png", width=1280, height=860)
    server.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(run, Path(folder) / "report.html")
        take(page.as_uri(), IMAGES / "report.png", width=1100, height=1140)


def take(address: str, picture: Path, *, width: int, height: int) -> None:
    """Takes a picture of a page, with 256 colours, which is a third of the bytes."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed; apt install chromium")
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    size = f"--window-size={width},{height}"
    subprocess.run([chromium, *switches, size, f"--screenshot={picture}", address], check=True, capture_output=True)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()

"""A browser for the tests of the page.   in: this machine   out: the path of a Chromium, or None

scripts/setup looks in the same places, and installs one where there is none.
"""

import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# --no-sandbox: root in a container has no other way; the page is our own.  Layers are put together
# by the processor itself: the GPU that it would play otherwise costs it more.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-gpu-compositing",
    "--disable-software-rasterizer",
    "--force-color-profile=srgb",
    "--lang=en",
)


def find_browser(downloaded: str | None = None) -> str | None:
    """An installed Chrome or Chromium that runs, or the one that Playwright has downloaded."""
    candidates = [*(shutil.which(name) for name in NAMES), *PLACES, downloaded]
    return next((path for path in candidates if path and _runs(path)), None)


def _runs(path: str) -> bool:
    """Ubuntu's chromium is an empty shell of a package: it does not even tell its version."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=20, check=False)
    except OSError:
        return False
    return done.returncode == 0
